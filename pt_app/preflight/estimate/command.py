"""Run `judge estimate`: forecast what a run costs before it begins."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from pt_app.core import console
from pt_app.core.settings import Recipe, Settings, resolve
from pt_app.core.streams import print_json
from pt_app.models import launcher, platforms
from pt_app.preflight.estimate.estimate import Estimate
from pt_app.preflight.estimate.memory import GIB
from pt_app.preflight.estimate.timing import Seconds, time_run
from pt_app.training.preparation import prepare
from pt_app.training.run import build_trainer, examples_a_step, load_judge


def run_estimate(
    recipe: Recipe | None,
    argv: Sequence[str],
    module_of: Callable[[Recipe], ModuleType],
    *,
    device: str = "auto",
    gpu_memory: float | None = None,
    price: float | None = None,
    timing: bool = True,
    as_json: bool = False,
) -> None:
    """Print the estimate of a run; the arguments are checked already.

    Args:
        recipe: the recipe of the run; None: that of this machine.
        argv: its flags.
        module_of: returns the module of the recipe.
        device: "auto" (this machine's), "cpu", "mps" or "cuda".
        gpu_memory: GiB of a GPU that is not present.
        price: dollars per hour.
        timing: time some steps, if the model fits here.
        as_json: print JSON.

    Raises:
        UserError: if the run cannot fit, after its lines; as JSON, this is in "fits".
    """
    recipe = recipe or platforms.recipe_for_this_machine()
    settings = resolve(recipe, argv, "judge train", "")
    console.start()
    launcher.settle()
    platform = _platform(recipe, settings, device, gpu_memory)
    gpu_bytes = None if gpu_memory is None else round(gpu_memory * GIB)
    needs = Estimate(settings, platform, prepare(settings), gpu_bytes)
    can_run = platform.reason != platforms.PLANNED and needs.training_fits
    seconds = _time(module_of(recipe), needs) if timing and can_run else None
    if as_json:
        print_json(json.dumps({"recipe": recipe} | _as_json(needs, seconds, price), indent=2))
        return
    plan, flops = needs.plan, needs.cost.training(needs.plan.packs)
    print(f"platform: {platform.hardware} ({platform.reason})")
    print(
        f"work: {len(plan.steps):,} steps of {examples_a_step(settings)} examples, "
        f"{plan.tokens:,} tokens, {flops:.3g} floating-point operations"
    )
    times = seconds.lines(price) if seconds else []
    print("\n".join([*needs.lines(), needs.what_fits(), *times]))
    if timing and not can_run:
        print("time: unknown, since the model was not run here")
    needs.check()


def _platform(
    recipe: Recipe, settings: Settings, device: str, gpu_memory: float | None
) -> platforms.Platform:
    """Return the platform of this machine, or that of a GPU that is not present."""
    no_4bit, precision, on_cpu = settings.no_4bit, settings.train_precision, device == "cpu"
    # Without the precision, since a planned GPU may have one that this machine lacks.
    here = platforms.decide(recipe, no_4bit=no_4bit, on_cpu=on_cpu)
    if gpu_memory is None and device in ("auto", here.device):
        return platforms.decide(recipe, no_4bit=no_4bit, precision=precision, on_cpu=on_cpu)
    return platforms.planned(recipe, no_4bit=no_4bit, precision=precision, gib=gpu_memory)


def _time(module: ModuleType, needs: Estimate) -> Seconds:
    """Load the model as the run would, and time some of its steps."""
    run = needs.settings, needs.platform, needs.prepared
    model, arguments = load_judge(*run, module.load_base), module.training_arguments
    with TemporaryDirectory() as folder:
        trainer = build_trainer(*run, Path(folder), model, arguments, lambda *_: None)
        return time_run(trainer, needs)


def _as_json(needs: Estimate, seconds: Seconds | None, price: float | None) -> dict[str, object]:
    """Return the estimate with sizes in bytes, and `dollars` for the time at `price` per hour."""
    parts = ("training", "validation", "evaluation")
    return {
        "device": needs.platform.device,
        "steps": len(needs.plan.steps),
        "examples_a_step": examples_a_step(needs.settings),
        "tokens": needs.plan.tokens,
        "flops": needs.cost.training(needs.plan.packs),
        "memory": asdict(needs.memory) | {"total": needs.memory.total},
        "evaluation_memory": needs.evaluation.total if needs.evaluation else None,
        "limit": asdict(needs.limit),
        "fits": needs.training_fits and needs.evaluation_fits,
        "pack_tokens_that_fit": needs.pack_tokens_that_fit,
        "seconds": {name: getattr(seconds, name) for name in parts} if seconds else None,
        "disk_bytes": needs.disk,
        "base_bytes": needs.base_bytes,
        "dollars": seconds.dollars(price) if seconds else None,
    }
