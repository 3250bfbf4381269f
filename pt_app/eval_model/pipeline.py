"""The run that both recipes share: settings -> data -> training -> adapter -> evaluation.

Each stage is a method of `Run`; `entry.py` calls them in order, and does between them what a run
must not know of: checks of the machine, forecasts, the report. A recipe hands in two callables, how
its base is loaded and its training arguments; whatever else a platform changes is in
`platforms.py`.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import is_full
from pt_app.core.grids import grid_name
from pt_app.core.results import PREDICTIONS, Results
from pt_app.core.settings import Recipe, Settings
from pt_app.eval_model.evaluation import evaluate
from pt_app.models import adapters, bases, launcher, memory, platforms
from pt_app.models.bases import tokenizer_files
from pt_app.models.provenance import about_this_run
from pt_app.tracking.access import check_tracking
from pt_app.tracking.tracker import Charts, Tracker
from pt_app.training import checkpoints, run, runs
from pt_app.training.loop import TrainingLoop
from pt_app.training.preparation import prepare

log = logging.getLogger(__name__)


class Run:
    """A run of a recipe: its platform is decided, its data are read, and no file is written yet.

    Args:
        recipe: which of the two recipes runs; it decides the platform.
        settings: the resolved settings of the run.

    Attributes:
        settings: the same, with the grid that was chosen.
        platform: what the machine changes.
        prepared: the data and the base.
        resumed: the folder of the run that --resume means.
        trained: whether only the evaluation of `resumed` is left to do.

    Raises:
        UserError: for whatever the user can fix.
    """

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        console.start()
        launcher.settle()
        self.platform = platforms.decide(
            recipe,
            no_4bit=settings.no_4bit,
            precision=settings.train_precision,
            sharded=settings.shard_base,
        )
        log.info("platform: %s (%s)", self.platform.hardware, self.platform.reason)
        check_tracking(settings.tracking)
        self.prepared = prepare(settings)
        self.settings = replace(settings, grid=grid_name(self.prepared.encoder.asked))
        self.resumed: Path | None = None
        if settings.resume != "off":
            prefix = self._name_at(datetime.now())[: -len("YYYYMMDD_HHMMSS")]
            self.resumed = runs.find_run(Path(settings.output_dir), settings.resume, prefix)
        self.trained = self.resumed is not None and Path(f"{self.resumed}_final").exists()

    def _name_at(self, time: datetime) -> str:
        """Name the run's folder, which is the adapter's without "_final"."""
        source, epochs = self.prepared.source, self.settings.epochs
        return adapters.adapter_folder_name(source.name, epochs, time).removesuffix("_final")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder of the run, its log and its tracking within."""
        with ExitStack() as stack:
            self.folder, self.checkpoint = self._open_folder(stack)
            self.adapter = Path(f"{self.folder}_final")
            console.also_to(self.folder / "train.log")
            tracker = Tracker(self.settings, self.folder, say=log.info)
            self.tracker = stack.enter_context(tracker)
            yield

    def _open_folder(self, stack: ExitStack) -> tuple[Path, Path | None]:
        """Return the folder of the run, locked until `stack` ends, and the checkpoint to resume.

        Rank 0 creates the folder, or opens that of the resumed run, and broadcasts both.
        """
        about: runs.About = {
            "settings": asdict(self.settings),
            "base": bases.short_identity(self.prepared.source),
            "data_sha256": self.prepared.data.sha256,
            "prompts_sha256": self.prepared.prompts_sha256,
            "examples_a_step": run.examples_a_step(self.settings),
            "platform": {"weights": self.platform.weights, "ranks": console.ranks()},
        }
        opened: list[tuple[Path, Path | None] | None] = [None]
        if console.is_main_process():
            output_dir = Path(self.settings.output_dir)
            folder = self.resumed or runs.open_run(output_dir, self._name_at, about)
            stack.enter_context(runs.held(folder))
            checkpoint = runs.checkpoint_to_resume(folder, about) if self.resumed else None
            opened = [(folder, checkpoint)]
        if console.ranks() > 1:
            broadcast_object_list(opened)
        assert opened[0] is not None, "rank 0 broadcast no folder"
        return opened[0]

    def build_trainer(self, load_base: run.LoadBase, arguments: run.MakeArguments) -> TrainingLoop:
        """Load the model, and build its training.

        Args:
            load_base: loads the frozen base as the recipe wants it.
            arguments: makes the training arguments of the recipe.
        """
        parts = self.settings, self.platform, self.prepared
        model = run.load_judge(*parts, load_base)
        return run.build_trainer(*parts, self.folder, model, arguments, self.tracker.log)

    def train(self, trainer: TrainingLoop) -> None:
        """Train, while rank 0 reserves room for the adapter on the disk."""
        if not console.is_main_process():
            run.train(trainer, self.checkpoint)
            return
        checkpoints.reserve(self.folder, trainer.model, tokenizer_files(self.prepared.source.path))
        try:
            run.train(trainer, self.checkpoint)
        finally:
            checkpoints.release(self.folder)

    def save(self, trainer: TrainingLoop) -> None:
        """Save the adapter in the room that was reserved; elsewhere if that is taken too."""
        data, identity = self.prepared.data, bases.model_identity(self.prepared.source)
        write = partial(
            adapters.save_adapter,
            trainer.model,
            self.prepared.encoder,
            identity=identity,
            state=data.card.state,
            training_config={
                "settings": asdict(self.settings),
                "platform": {k: str(v) for k, v in asdict(self.platform).items()},
                "data": {"name": data.path.name, "sha256": data.sha256, "leaks": len(data.leaks)},
                "steps": trainer.state.global_step,
                "log_history": trainer.state.log_history,
                **about_this_run(),
            },
        )
        try:
            write(self.adapter)
        except UserError as error:
            if not is_full(error):
                raise
            other = checkpoints.elsewhere(self.adapter.name)
            lost = f"{other} has no room either, and the adapter is lost"
            with checkpoints.full_disk_explained(self.folder, lost):
                write(other)
            raise UserError(
                f"the disk of {self.folder} is full: the adapter is whole, and lies in {other}: "
                "move it"
            ) from error

    @contextmanager
    def evaluated(self) -> Iterator[Results]:
        """Evaluate base and adapter on the CPU; yield the results, for a report of them.

        Raises:
            UserError: if memory or disk do not suffice, also for what is done within.
        """
        if console.ranks() > 1:
            # torchrun gives each rank one thread; the others have ended by now.
            torch.set_num_threads(platforms.cores())
        settings, prepared, adapter = self.settings, self.prepared, self.adapter
        log.info("evaluating base and adapter on the CPU: %d rows", len(prepared.test))
        about = about_this_run() | {"seed": settings.seed}
        whole = f"the adapter is whole, {adapter}"
        remedies = f"{whole}: --resume evaluates it, or judge eval elsewhere"
        remedy = f"{whole}: make room, then --resume evaluates it"
        with (
            memory.shortage_explained("the evaluation on the CPU", remedies),
            checkpoints.full_disk_explained(adapter, remedy),
        ):
            feedback, precision = settings.feedback, settings.score_precision
            rows, reading = settings.probe_rows, settings.reading
            results = evaluate(prepared, adapter, about, feedback, precision, rows, reading)
            adapters.update_model_card(adapter, results)
            yield results

    def finish(self, results: Results | None, charts: Charts) -> None:
        """Track what the run has made."""
        predictions = self.adapter / "evaluation" / PREDICTIONS
        self.tracker.finish(results, predictions, self.adapter, charts)
        log.info("adapter: %s", self.adapter)
