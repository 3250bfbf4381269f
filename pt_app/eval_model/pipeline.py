"""The run that both recipes share: settings -> data -> trainer -> adapter -> evaluation.

A recipe hands in two callables, how its base is loaded and its training arguments; whatever a
platform changes is in those and in `platforms.py`.
"""

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

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
from pt_app.tracking.access import check_tracking
from pt_app.tracking.tracker import Tracker
from pt_app.training import room, runs
from pt_app.training.loop import TrainingLoop
from pt_app.training.preparation import Prepared, prepare
from pt_app.training.run import (
    LoadBase,
    MakeArguments,
    build_trainer,
    examples_a_step,
    load_judge,
    train,
)

log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What the caller of a run does around it: checks before it costs anything, a report after.

    `entry.py` has the one of the recipes; a test may hand in another.
    """

    def before_loading(self, platform: Platform, prepared: Prepared, trained: bool) -> None:
        """Called before a model is loaded; `trained`: only the evaluation is left to do."""

    def before_training(self, trainer: TrainingLoop, prepared: Prepared) -> None:
        """Called before the first step, with the model loaded."""

    def after_evaluation(self, adapter: Path, results: Results) -> None:
        """Called when results.json is written, before the tracking ends."""

    def charts(self, results: Results) -> Iterable[tuple[str, str]]:
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
    check_tracking(settings.tracking)
    this = _Run(settings, platform, prepare(settings), load_base, arguments, around)
    before = this.to_resume()
    trained = before is not None and Path(f"{before}_final").exists()
    around.before_loading(platform, this.prepared, trained)
    with ExitStack() as stack:
        folder, checkpoint = this.open(before, stack)
        console.also_to(folder / "train.log")
        tracker = stack.enter_context(Tracker(settings, folder, say=log.info))
        adapter = Path(f"{folder}_final")
        if not adapter.exists():
            this.train(folder, checkpoint, tracker, stack)
            platform.free_memory()
        if console.is_main_process():
            results = None if settings.skip_eval else this.evaluate(adapter)
            tracker.finish(results, adapter / "evaluation" / PREDICTIONS, adapter, around.charts)
            log.info("adapter: %s", adapter)
    return adapter


@dataclass(frozen=True)
class _Run:
    """The parts of a run: what was asked for, and what was prepared for it."""

    settings: Settings
    platform: Platform
    prepared: Prepared
    load_base: LoadBase
    arguments: MakeArguments
    around: Surroundings

    def name_at(self, time: datetime) -> str:
        """Name the run's folder, which is the adapter's without "_final"."""
        source, epochs = self.prepared.source, self.settings.epochs
        return adapters.adapter_folder_name(source.name, epochs, time).removesuffix("_final")

    def to_resume(self) -> Path | None:
        """Return the run that --resume means."""
        if self.settings.resume == "off":
            return None
        prefix = self.name_at(datetime.now())[: -len("YYYYMMDD_HHMMSS")]
        return runs.find_run(Path(self.settings.output_dir), self.settings.resume, prefix)

    def open(self, before: Path | None, stack: ExitStack) -> tuple[Path, Path | None]:
        """Open the folder of the run, locked until `stack` ends, and find the checkpoint to resume.

        Rank 0 creates it, or resumes the run `before`, and broadcasts it.
        """
        from accelerate.utils import broadcast_object_list

        about = {
            "settings": asdict(self.settings),
            "base": bases.short_identity(self.prepared.source),
            "data_sha256": self.prepared.data.sha256,
            "examples_a_step": examples_a_step(self.settings),
            "platform": {"weights": self.platform.weights, "ranks": console.ranks()},
        }
        opened: list[tuple[Path, Path | None] | None] = [None]
        if console.is_main_process():
            folder = before or runs.open_run(Path(self.settings.output_dir), self.name_at, about)
            stack.enter_context(runs.held(folder))
            checkpoint = runs.checkpoint_to_resume(folder, about) if before else None
            opened = [(folder, checkpoint)]
        if console.ranks() > 1:
            broadcast_object_list(opened)
        assert opened[0] is not None, "rank 0 broadcast no folder"
        return opened[0]

    def train(
        self, folder: Path, checkpoint: Path | None, tracker: Tracker, stack: ExitStack
    ) -> None:
        """Load the model, train it, and save the adapter on rank 0.

        Until `stack` ends, or the adapter is saved, rank 0 reserves room for it on the disk.
        """
        settings, platform, prepared = self.settings, self.platform, self.prepared
        with out_of_memory.explained("training"):
            model = load_judge(settings, platform, prepared, self.load_base)
            trainer = build_trainer(
                settings, platform, prepared, folder, model, self.arguments, tracker.log
            )
            self.around.before_training(trainer, prepared)
            if console.is_main_process():
                room.keep(folder, model, tokenizer_files(prepared.source.path))
                stack.callback(room.release, folder)
            train(trainer, checkpoint)
        if console.is_main_process():
            self.save(trainer, folder)

    def save(self, trainer: TrainingLoop, folder: Path) -> None:
        """Save the adapter in the room that was reserved; elsewhere if that is taken too."""
        room.release(folder)
        data, identity = self.prepared.data, bases.model_identity(self.prepared.source)
        write = partial(
            adapters.save_adapter,
            trainer.model,
            self.prepared.encoder,
            identity=identity,
            training_config={
                "settings": asdict(self.settings),
                "platform": {k: str(v) for k, v in asdict(self.platform).items()},
                "base": identity,
                "data": {"name": data.path.name, "sha256": data.sha256, "leaks": len(data.leaks)},
                "steps": trainer.state.global_step,
                "log_history": trainer.state.log_history,
                **about_this_run(),
            },
        )
        adapter = Path(f"{folder}_final")
        try:
            write(adapter)
        except UserError as error:
            if not is_full(error):
                raise
            other = room.elsewhere(adapter.name)
            with room.explained(folder, f"{other} has no room either, and the adapter is lost"):
                write(other)
            raise UserError(
                f"the disk of {folder} is full: the adapter is whole, and lies in {other}: move it"
            ) from error

    def evaluate(self, adapter: Path) -> Results:
        """Evaluate base and adapter on the CPU, and hand the results to the caller's report."""
        if console.ranks() > 1:
            # torchrun gives each rank one thread; the others have ended by now.
            torch.set_num_threads(platforms.cores())
        settings, prepared = self.settings, self.prepared
        log.info("evaluating base and adapter on the CPU: %d rows", len(prepared.test))
        about = about_this_run() | {"seed": settings.seed}
        whole = f"the adapter is whole, {adapter}"
        remedies = f"{whole}: --resume evaluates it, or judge eval elsewhere"
        with (
            out_of_memory.explained("the evaluation on the CPU", remedies),
            room.explained(adapter, f"{whole}: make room, then --resume evaluates it"),
        ):
            precision = settings.score_precision
            results = evaluate(prepared, adapter, about, settings.feedback, precision)
            adapters.update_model_card(adapter, results)
            self.around.after_evaluation(adapter, results)
        return results
