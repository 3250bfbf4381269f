"""`judge estimate`: what a run will cost, before it begins."""

import importlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pt_app.core import console
from pt_app.core.settings import Recipe, Settings, resolve
from pt_app.core.streams import print_json
from pt_app.models import launcher, platforms
from pt_app.preflight.estimate.asked import Asked
from pt_app.preflight.estimate.estimate import Estimate, estimate
from pt_app.preflight.estimate.in_run import dollars_of, time_lines
from pt_app.preflight.estimate.memory import GIB
from pt_app.preflight.estimate.timing import Seconds, time_run
from pt_app.training.preparation import Prepared, prepare
from pt_app.training.run import build_trainer, load_judge

log = logging.getLogger(__name__)


def run_estimate(asked: Asked, argv: Sequence[str]) -> None:
    """Print the estimate of the run that `argv`, a recipe's flags, would start; both are checked.

    Raises UserError where the run cannot fit, after its lines; with `json` that is in "fits".
    """
    recipe = asked.named or platforms.recipe_for_this_machine()
    settings = resolve(recipe, argv, "judge estimate", "")
    console.start()
    launcher.settle()
    platform = _platform(asked, recipe, settings)
    prepared = prepare(settings)
    gpu = None if asked.gpu_memory is None else round(asked.gpu_memory * GIB)
    found = estimate(recipe, settings, platform, prepared, gpu)
    seconds = None
    can_run = platform.reason != platforms.PLANNED and found.training_fits
    if asked.timing and can_run:
        seconds = _timed(recipe, settings, platform, prepared, found)
    if asked.json:
        about = {"recipe": recipe, "device": platform.device}
        print_json(json.dumps(about | as_json(found, seconds, asked.price), indent=2))
        return
    print("\n".join([f"platform: {platform.hardware} ({platform.reason})", *_work(found)]))
    print("\n".join([*found.lines(), found.what_fits(), *time_lines(seconds, asked.price)]))
    if asked.timing and not can_run:
        print("time: not known, since the model was not run here")
    found.check()


def _platform(asked: Asked, recipe: Recipe, settings: Settings) -> platforms.Platform:
    """This machine's, or that of a GPU which it has not."""
    on_cpu = asked.platform == "cpu"
    # Without the precision: a planned GPU may have one that this machine has not.
    here = platforms.decide(recipe, no_4bit=settings.no_4bit, on_cpu=on_cpu)
    if asked.gpu_memory is None and asked.platform in ("auto", here.device):
        return platforms.decide(
            recipe,
            no_4bit=settings.no_4bit,
            precision=settings.train_precision,
            on_cpu=on_cpu,
        )
    return platforms.planned(
        recipe,
        no_4bit=settings.no_4bit,
        precision=settings.train_precision,
        gib=asked.gpu_memory,
    )


def _timed(
    recipe: Recipe,
    settings: Settings,
    platform: platforms.Platform,
    prepared: Prepared,
    found: Estimate,
) -> Seconds:
    """Load the model as the run would and time some of its steps."""
    module = importlib.import_module(f"pt_app.eval_model.judge_train_{recipe}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = load_judge(settings, platform, prepared, module.load_base)
        trainer = build_trainer(
            settings, platform, prepared, folder, model, module.training_arguments, _log_nowhere
        )
        return time_run(trainer, found.plan, found.cost, prepared.source)


def _log_nowhere(numbers: dict[str, float], step: int) -> None:
    """Take the numbers of a training that is only timed."""


def as_json(found: Estimate, seconds: Seconds | None, price: float | None) -> dict[str, Any]:
    """The estimate for programs; sizes in bytes, `dollars` for the time at `price` an hour."""
    spent = ("training", "validation", "evaluation")
    return {
        "steps": len(found.plan.steps),
        "examples_a_step": found.plan.examples_a_step,
        "tokens": found.plan.tokens,
        "flops": found.cost.of_training(found.plan),
        "memory": asdict(found.memory) | {"total": found.memory.total},
        "evaluation_memory": found.evaluation.total if found.evaluation else None,
        "limit": asdict(found.limit),
        "fits": found.fits,
        "pack_tokens_that_fit": found.pack_tokens_that_fit,
        "seconds": {name: getattr(seconds, name) for name in spent} if seconds else None,
        "disk_bytes": found.disk,
        "base_bytes": found.base_bytes,
        "dollars": dollars_of(seconds, price),
    }


def _work(found: Estimate) -> list[str]:
    plan = found.plan
    return [
        f"work: {len(plan.steps):,} steps of {plan.examples_a_step} examples, "
        f"{plan.tokens:,} tokens, {found.cost.of_training(plan):.3g} floating-point operations"
    ]
