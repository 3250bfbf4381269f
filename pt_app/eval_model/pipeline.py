"""The run that both recipes share: settings -> data -> trainer -> adapter -> evaluation.

A recipe hands in two callables, how its base is loaded and its training arguments; whatever a
platform changes is in those and in `platforms.py`.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import is_full
from pt_app.core.results import PREDICTIONS, Results
from pt_app.core.settings import Recipe, Settings
from pt_app.eval_model.evaluation import evaluate
from pt_app.models import adapters, bases, launcher, out_of_memory, platforms
from pt_app.models.base_files import tokenizer_files
from pt_app.models.platforms import Platform
from pt_app.models.provenance import about_this_run
from pt_app.tracking.access import resolve_access
from pt_app.tracking.tracker import Tracker
from pt_app.training import room, runs
from pt_app.training.preparation import Prepared, prepare
from pt_app.training.run import (
    LoadBase,
    MakeArguments,
    build_trainer,
    examples_a_step,
    load_judge,
    train,
)
from pt_app.training.trainer import JudgeTrainer

log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What the caller of a run does around it: checks before it costs anything, a report after.

    `entry.py` has the one of the recipes; a test may hand in another.
    """

    def before_loading(self, platform: Platform, prepared: Prepared, trained: bool) -> None:
        """Called before a model is loaded; `trained`: only the evaluation is left to do."""

    def before_training(self, trainer: JudgeTrainer, prepared: Prepared) -> None:
        """Called before the first step, with the model loaded."""

    def after_evaluation(self, adapter: Path, results: Results) -> None:
        """Called when results.json is written, before the tracking ends."""

    def charts(self, results: Mapping[str, object]) -> Iterable[tuple[str, str]]:
        """Draw what a dashboard shows of the results: names and SVG texts."""


def run(
    recipe: Recipe,
    settings: Settings,
    load_base: LoadBase,
    arguments: MakeArguments,
    around: Surroundings,
) -> Path:
    """Train a judge, save its adapter and evaluate it.

    Args:
        recipe: which of the two recipes runs; it decides the platform.
        settings: the resolved settings of the run.
        load_base: loads the frozen base as the recipe wants it.
        arguments: makes the training arguments of the recipe.
        around: what is checked before, and reported after.

    Returns:
        The adapter's folder; `evaluation/results.json` below it holds what was measured.

    Raises:
        UserError: for whatever the user can fix.
    """
    console.start()
    launcher.settle()
    platform = platforms.decide(
        recipe,
        no_4bit=settings.no_4bit,
        precision=settings.train_precision,
        sharded=settings.shard_base,
    )
    log.info("platform: %s (%s)", platform.hardware, platform.reason)
    if settings.tracking == "online":
        resolve_access("online")  # a missing key is an error before anything is written
    prepared = prepare(settings)
    before = _run_to_resume(settings, prepared)
    trained = before is not None and Path(f"{before}_final").exists()
    around.before_loading(platform, prepared, trained)
    with ExitStack() as stack:
        folder, checkpoint = _open_run(settings, platform, prepared, before, stack)
        console.also_to(folder / "train.log")
        tracker = stack.enter_context(
            Tracker(
                settings.tracking,
                settings.project_name,
                folder.name,
                folder,
                asdict(settings),
                settings.log_texts,
                say=log.info,
            )
        )
        adapter = Path(f"{folder}_final")
        if not adapter.exists():
            with out_of_memory.explained("training"):
                model = load_judge(settings, platform, prepared, load_base)
                trainer = build_trainer(
                    settings, platform, prepared, folder, model, arguments, tracker.log
                )
                around.before_training(trainer, prepared)
                if console.is_main_process():
                    room.keep(folder, model, tokenizer_files(prepared.source.path))
                    stack.callback(room.release, folder)
                train(trainer, checkpoint)
            if console.is_main_process():
                _save(settings, platform, prepared, trainer, adapter)
            del model, trainer
            platform.free_memory()
        if console.is_main_process():
            results = None
            if not settings.skip_eval:
                results = _evaluate(settings, prepared, adapter, around)
            predictions = adapter / "evaluation" / PREDICTIONS
            numbers = results.as_json() if results else None
            tracker.finish(numbers, predictions, adapter, around.charts)
            log.info("adapter: %s", adapter)
    return adapter


def _name_of(settings: Settings, prepared: Prepared, time: datetime) -> str:
    name = adapters.adapter_folder_name(prepared.source.name, settings.epochs, time)
    return name.removesuffix("_final")


def _run_to_resume(settings: Settings, prepared: Prepared) -> Path | None:
    """Return the run that --resume means."""
    if settings.resume == "off":
        return None
    prefix = _name_of(settings, prepared, datetime.now())[: -len("YYYYMMDD_HHMMSS")]
    return runs.find_run(Path(settings.output_dir), settings.resume, prefix)


def _open_run(
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    before: Path | None,
    stack: ExitStack,
) -> tuple[Path, Path | None]:
    """Open the folder of the run, locked until `stack` ends, and find the checkpoint to resume.

    Rank 0 creates it, or resumes the run `before`, and broadcasts it.
    """
    from accelerate.utils import broadcast_object_list

    about = {
        "settings": asdict(settings),
        "base": bases.short_identity(prepared.source),
        "data_sha256": prepared.data.sha256,
        "examples_a_step": examples_a_step(settings),
        "platform": {"weights": platform.weights, "ranks": console.ranks()},
    }

    opened: list[Any] = [None]
    if console.is_main_process():
        if before is None:
            name_at = partial(_name_of, settings, prepared)
            before = runs.open_run(Path(settings.output_dir), name_at, about)
            stack.enter_context(runs.held(before))
            opened = [(before, None)]
        else:
            stack.enter_context(runs.held(before))
            opened = [(before, runs.checkpoint_to_resume(before, about))]
    if console.ranks() > 1:
        broadcast_object_list(opened)
    folder, checkpoint = opened[0]
    return folder, checkpoint


def _save(
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    trainer: JudgeTrainer,
    adapter: Path,
) -> None:
    """Save the adapter in the room that was kept for it; elsewhere where that is taken too."""
    run = Path(str(adapter).removesuffix("_final"))
    room.release(run)
    identity = bases.model_identity(prepared.source)
    write = partial(
        adapters.save_adapter,
        trainer.accelerator.unwrap_model(trainer.model),
        prepared.encoder,
        identity=identity,
        training_config={
            "settings": asdict(settings),
            "platform": {k: str(v) for k, v in asdict(platform).items()},
            "base": identity,
            "data": {
                "name": prepared.data.path.name,
                "sha256": prepared.data.sha256,
                "leaks": len(prepared.data.leaks),
            },
            "steps": trainer.state.global_step,
            "log_history": trainer.state.log_history,
            **about_this_run(),
        },
    )
    try:
        write(adapter)
    except UserError as error:
        if not is_full(error):
            raise
        other = room.elsewhere(adapter.name)
        with room.explained(run, f"{other} has no room either, and the adapter is lost"):
            write(other)
        raise UserError(
            f"the disk of {run} is full: the adapter is whole, and lies in {other}: move it"
        ) from error


def _evaluate(
    settings: Settings, prepared: Prepared, adapter: Path, around: Surroundings
) -> Results:
    if console.ranks() > 1:
        # torchrun gives each rank one thread; the others have ended by now.
        torch.set_num_threads(platforms.cores())
    log.info("evaluating base and adapter on the CPU: %d rows", len(prepared.test))
    about = about_this_run() | {"seed": settings.seed}
    remedies = f"the adapter is whole, {adapter}: --resume evaluates it, or judge eval elsewhere"
    full = f"the adapter is whole, {adapter}: make room, then --resume evaluates it"
    with (
        out_of_memory.explained("the evaluation on the CPU", remedies),
        room.explained(adapter, full),
    ):
        results = evaluate(
            prepared.source,
            adapter,
            prepared.data,
            prepared.test,
            prepared.encoder,
            about,
            feedback=settings.feedback,
            precision=settings.score_precision,
        )
        adapters.update_model_card(adapter, results)
        around.after_evaluation(adapter, results)
    return results
