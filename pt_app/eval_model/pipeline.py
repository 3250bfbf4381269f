"""The run that both recipes share: settings -> data -> trainer -> adapter -> evaluation.

A recipe hands in two callables, how its base is loaded and its training arguments; whatever a
platform changes is in those and in `platforms.py`.
"""

import logging
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pt_app.doctor.short import check_first
from pt_app.errors import UserError
from pt_app.estimate.in_run import before_loading, before_training
from pt_app.eval_model import (
    adapters,
    console,
    launcher,
    models,
    out_of_memory,
    platforms,
    room,
    runs,
)
from pt_app.eval_model.base_files import tokenizer_files
from pt_app.eval_model.evaluation import evaluate
from pt_app.eval_model.platforms import Platform
from pt_app.eval_model.preparation import Prepared, prepare
from pt_app.eval_model.provenance import about_this_run
from pt_app.eval_model.settings import Recipe, Settings
from pt_app.eval_model.tracking import Tracker
from pt_app.eval_model.tracking_access import resolve_access
from pt_app.eval_model.trainer import JudgeTrainer
from pt_app.eval_model.training import (
    LoadBase,
    MakeArguments,
    build_trainer,
    examples_a_step,
    load_judge,
    train,
)
from pt_app.evidence.results import PREDICTIONS
from pt_app.files import is_full

log = logging.getLogger(__name__)


def run(recipe: Recipe, settings: Settings, load_base: LoadBase, arguments: MakeArguments) -> Path:
    """Train a judge, save its adapter, evaluate it; give the adapter's folder.

    Raises UserError for whatever the user can mend.
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
        resolve_access("online")  # a missing key is said before anything is written
    prepared = prepare(settings)
    check_first(platform, prepared.source)
    before = _run_to_resume(settings, prepared)
    trained = before is not None and Path(f"{before}_final").exists()
    needs = before_loading(recipe, settings, platform, prepared, trained=trained)
    with ExitStack() as stack:
        folder, checkpoint = _open_run(settings, platform, prepared, before, stack)
        console.also_to(folder / "train.log")
        tracker = stack.enter_context(
            Tracker.start(
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
                    settings, platform, prepared, folder, model, arguments, tracker
                )
                before_training(needs, trainer, prepared.source)
                if console.is_main_process():
                    room.keep(folder, model, tokenizer_files(prepared.source.path))
                    stack.callback(room.release, folder)
                train(trainer, checkpoint)
            if console.is_main_process():
                _save(settings, platform, prepared, trainer, adapter)
            del model, trainer
            platform.free_memory()
        if console.is_main_process():
            results = None if settings.skip_eval else _evaluate(settings, prepared, adapter)
            tracker.finish(results, adapter / "evaluation" / PREDICTIONS, adapter)
            log.info("adapter: %s", adapter)
    return adapter


def _name_of(settings: Settings, prepared: Prepared, time: datetime) -> str:
    name = adapters.adapter_folder_name(prepared.source.name, settings.epochs, time)
    return name.removesuffix("_final")


def _run_to_resume(settings: Settings, prepared: Prepared) -> Path | None:
    """The run that --resume means."""
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
    """The run's folder, held until `stack` ends, and the checkpoint to go on from.

    Rank 0 opens it, or goes on with the run `before`, and tells the others.
    """
    from accelerate.utils import broadcast_object_list

    about = {
        "settings": asdict(settings),
        "base": models.short_identity(prepared.source),
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
    identity = models.model_identity(prepared.source)
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


def _evaluate(settings: Settings, prepared: Prepared, adapter: Path) -> dict[str, Any]:
    from pt_app.report import terminal_table, write_report

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
        report = write_report(adapter / "evaluation")
    console.show(terminal_table(results))
    log.info("report: %s", report)
    return results
