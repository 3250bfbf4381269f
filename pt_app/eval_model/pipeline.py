"""The run that both recipes share: settings -> data -> trainer -> adapter -> evaluation.

A recipe hands in two callables, how its base is loaded and its training arguments; whatever a
platform changes is in those and in `platforms.py`.
"""

import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ProgressCallback, TrainingArguments, set_seed

from pt_app.eval_model import adapters, checkpoints, console, models, platforms
from pt_app.eval_model.data import JudgeData, JudgeExample, read_dataset, to_dataset
from pt_app.eval_model.evaluation import PREDICTIONS, evaluate
from pt_app.eval_model.ordering import GroupedOrder
from pt_app.eval_model.orders import both_orders, names_a_candidate
from pt_app.eval_model.packing import Shapes, StepCollator
from pt_app.eval_model.platforms import Platform
from pt_app.eval_model.prompt_templates import Template
from pt_app.eval_model.prompts import PromptEncoder
from pt_app.eval_model.provenance import about_this_run
from pt_app.eval_model.scoring import verdict_trie
from pt_app.eval_model.settings import Recipe, Settings
from pt_app.eval_model.tracking import Tracker
from pt_app.eval_model.tracking_access import resolve_access
from pt_app.eval_model.trainer import JudgeTrainer, Layout, StopAfterStep, ValidateAtTheEnd
from pt_app.eval_model.tree_attention import use_attention, why_no_tree
from pt_app.eval_model.validation import Validation, quality_metric
from pt_app.eval_model.verdicts import Scale

LoadBase = Callable[[models.ModelSource, Settings, Platform], Any]
MakeArguments = Callable[[dict[str, Any], Platform], TrainingArguments]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that is read and checked before a model is loaded or a file written."""

    source: models.ModelSource
    data: JudgeData
    encoder: PromptEncoder
    train: Any
    """A `datasets.Dataset` with input_ids and prompt_length; so is `val`."""
    val: Any
    test: Sequence[JudgeExample]


def run(recipe: Recipe, settings: Settings, load_base: LoadBase, arguments: MakeArguments) -> Path:
    """Train a judge, save its adapter, evaluate it; give the adapter's folder.

    Raises UserError for whatever the user can mend.
    """
    console.start()
    platform = platforms.decide(
        recipe, no_4bit=settings.no_4bit, precision=settings.train_precision
    )
    log.info("platform: %s (%s)", platform.hardware, platform.reason)
    if settings.tracking == "online":
        resolve_access("online")  # a missing key is said before anything is written
    prepared = prepare(settings)
    folder, checkpoint = _open_run(settings, platform, prepared)
    console.also_to(folder / "train.log")
    with Tracker.start(
        settings.tracking,
        settings.project_name,
        folder.name,
        folder,
        asdict(settings),
        settings.log_texts,
        say=log.info,
    ) as tracker:
        adapter = Path(f"{folder}_final")
        if not adapter.exists():
            model = _load(settings, platform, prepared, load_base)
            trainer = _trainer(settings, platform, prepared, folder, model, arguments, tracker)
            _train(trainer, checkpoint)
            if console.is_main_process():
                _save(settings, platform, prepared, trainer, adapter)
            del model, trainer
            platform.free_memory()
        if console.is_main_process():
            results = None if settings.skip_eval else _evaluate(settings, prepared, adapter)
            tracker.finish(results, adapter / "evaluation" / PREDICTIONS, adapter)
            log.info("adapter: %s", adapter)
    return adapter


def prepare(settings: Settings) -> Prepared:
    """Find the model, read and check the data, tokenise it."""
    # before a model of several GB is fetched
    data = read_dataset(Path(settings.data_dir), settings.allow_leaks)
    source = models.resolve_model(settings.model)
    encoder = PromptEncoder(
        models.load_tokenizer(source),
        Template.load(data.card.template, data.card.rubric),
        Scale.from_name(data.card.scale),
        settings.max_seq_length,
    )
    for note in data.notes:
        log.warning("%s", note)
    if data.leaks:
        log.warning("LEAKS: %d texts stand on both sides: %s", len(data.leaks), data.leaks[0])
    train = _encode(encoder, draw(data.train, settings.max_samples, settings.seed), "training")
    val = _encode(encoder, data.val, "validation") if data.val and settings.eval_steps else None
    test = draw(data.test, settings.test_samples, settings.seed)
    return Prepared(source, data, encoder, train, val, test)


def _encode(encoder: PromptEncoder, rows: Sequence[JudgeExample], name: str) -> Any:
    """Lay rows out for the trainer, pairs in both orders."""
    if encoder.scale.task == "pairwise":
        rows = _with_both_orders(rows, name)
    encoded, cuts = encoder.encode(rows)
    ids, starts = [row.input_ids for row in encoded], [row.prompt_length for row in encoded]
    supervised = sum(map(len, ids)) - sum(starts)
    log.info(
        "%s: %d rows, %s supervised tokens, longest %d tokens, %d rows shortened",
        name,
        len(rows),
        f"{supervised:,}",
        cuts.longest,
        cuts.rows_cut,
    )
    return to_dataset(rows, {"input_ids": ids, "prompt_length": starts})


def _with_both_orders(rows: Sequence[JudgeExample], name: str) -> Sequence[JudgeExample]:
    both = both_orders(rows)
    bare = sum(names_a_candidate(row.label) for row in rows if row.label and row.candidates)
    log.info(
        "%s: %d pairs in both orders, %d rows of chat in one; %d comments that name a candidate "
        "are not supervised in the other order",
        name,
        len(both) - len(rows),
        2 * len(rows) - len(both),
        bare,
    )
    return both


def draw(rows: Sequence[JudgeExample], count: int, seed: int) -> Sequence[JudgeExample]:
    """`count` of the rows, drawn by the seed and in their order; all where count is 0."""
    if not 0 < count < len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _open_run(
    settings: Settings, platform: Platform, prepared: Prepared
) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to go on from; rank 0 opens it and tells the others."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    about = {
        "settings": asdict(settings),
        "data_sha256": prepared.data.sha256,
        "platform": {
            "weights": platform.weights,
            "optimizer": platform.optimizer,
            "ranks": console.ranks(),
        },
    }

    def name_at(time: datetime) -> str:
        name = adapters.adapter_folder_name(prepared.source.name, settings.epochs, time)
        return name.removesuffix("_final")

    opened: list[Any] = [None]
    if console.is_main_process():
        output_dir = Path(settings.output_dir)
        if settings.resume == "off":
            opened = [(checkpoints.open_run(output_dir, name_at, about), None)]
        else:
            opened = [checkpoints.resume_run(output_dir, name_at, settings.resume, about)]
    if console.ranks() > 1:
        PartialState(cpu=platform.on_cpu)
        broadcast_object_list(opened)
    folder, checkpoint = opened[0]
    return folder, checkpoint


def _train(trainer: JudgeTrainer, checkpoint: Path | None) -> None:
    """Train to the end; on an interrupt, to the end of the step and a checkpoint."""
    stop = StopAfterStep()
    trainer.add_callback(stop)
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked:
        log.warning("interrupted; --resume goes on from the checkpoint of this step")
        raise KeyboardInterrupt
    trainer.load_best()


def _load(settings: Settings, platform: Platform, prepared: Prepared, load_base: LoadBase) -> Any:
    set_seed(settings.seed)
    log.info("loading %s, weights in %s", prepared.source.name, platform.weights)
    model = adapters.attach_lora(
        load_base(prepared.source, settings, platform),
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_targets,
    )
    use_attention(model, platform.attention)
    trainable, total = model.get_nb_trainable_parameters()
    log.info("trainable parameters: %s of %s", f"{trainable:,}", f"{total:,}")
    return model


def _trainer(
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    folder: Path,
    model: Any,
    make_arguments: MakeArguments,
    tracker: Tracker,
) -> JudgeTrainer:
    metric = None
    if prepared.val is not None:
        metric = quality_metric(prepared.data.scale, prepared.data.val)
    arguments = make_arguments(common_arguments(settings, platform, folder, metric), platform)
    # One process drives one GPU; torchrun starts one for each.
    arguments._n_gpu = min(1, arguments.n_gpu)
    ranks, batch = arguments.world_size, settings.batch_size * settings.gradient_accumulation
    steps = math.ceil(len(prepared.train) / (ranks * batch)) * settings.epochs
    log.info(
        "steps: %d of %d examples (batch %d x accumulation %d x %d ranks)",
        math.ceil(steps),
        ranks * batch,
        settings.batch_size,
        settings.gradient_accumulation,
        ranks,
    )
    layout = _layout(settings, platform, prepared, model)
    collate = StepCollator(layout.pad_id, settings.pack_tokens, layout.shapes)
    validate, order = None, None
    if prepared.val is not None:
        rows = prepared.data.val
        validate = Validation(rows, prepared.val, prepared.encoder, collate, layout)
    if settings.group_variants:
        order = GroupedOrder(prepared.train["group"], batch, settings.seed)
    trainer = JudgeTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.val,
        data_collator=collate,
        processing_class=prepared.encoder.tokenizer,
        layout=layout,
        validate=validate,
        order=order,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress(tracker))
    trainer.add_callback(ValidateAtTheEnd())
    return trainer


def _layout(settings: Settings, platform: Platform, prepared: Prepared, model: Any) -> Layout:
    """How steps are computed: as packs, unless the model's attention forbids it."""
    why = why_no_tree(model, settings.max_seq_length)
    if why is None:
        log.info(
            "packs: up to %d tokens, in which common beginnings stand once", settings.pack_tokens
        )
    else:
        log.warning("packs: rows are computed one by one: %s", why)
    shapes, rows = Shapes(), settings.batch_size
    if platform.fixed_lengths:
        # Validation reads prompts with the trie of all verdicts behind them.
        nodes = len(verdict_trie(prepared.encoder).tokens)
        shapes = Shapes.up_to(max(settings.pack_tokens, settings.max_seq_length + nodes))
        rows = 1
    return Layout(
        pad_id=prepared.encoder.tokenizer.pad_token_id,
        rows=rows,
        shapes=shapes,
        trees=why is None,
        tolerance=platform.loss_tolerance,
    )


def common_arguments(
    settings: Settings, platform: Platform, folder: Path, metric: str | None
) -> dict[str, Any]:
    """The training arguments that no platform changes; `metric` is what validation is judged by."""
    only_best = "best" if metric else "no"
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        # A batch of Trainer's is a whole step; packs are laid out within it (packing.py).
        "per_device_train_batch_size": settings.batch_size * settings.gradient_accumulation,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_steps,
        "seed": settings.seed,
        "use_cpu": platform.on_cpu,
        "eval_strategy": "steps" if metric else "no",
        "eval_steps": settings.eval_steps or None,
        "metric_for_best_model": f"eval_{metric}" if metric else None,
        "greater_is_better": True if metric else None,
        "save_strategy": "steps" if settings.save_steps else only_best,
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 2,
        "logging_steps": 10,
        # The filter would put the mean of earlier losses in place of one that is not finite.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
    }


class _Progress(ProgressCallback):  # type: ignore[misc]
    """A bar with an ETA and one line for each log; the numbers go to the tracker too."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by Trainer with the newest numbers, on every rank."""
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        self.tracker.log(numbers, state.global_step)
        shown = ("loss", "grad_norm", "learning_rate", "train_runtime")
        names = [name for name in numbers if name in shown or name.startswith("eval_")]
        line = ", ".join(f"{name} {numbers[name]:.4g}" for name in names)
        with logging_redirect_tqdm(console.LOGGERS):
            log.info("step %d/%d: %s", state.global_step, state.max_steps, line)


def _save(
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    trainer: JudgeTrainer,
    adapter: Path,
) -> None:
    identity = models.model_identity(prepared.source)
    adapters.save_adapter(
        trainer.accelerator.unwrap_model(trainer.model),
        prepared.encoder,
        adapter,
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


def _evaluate(settings: Settings, prepared: Prepared, adapter: Path) -> dict[str, Any]:
    from pt_app.report import terminal_table, write_report

    if console.ranks() > 1:
        # torchrun gives each rank one thread; the others have ended by now.
        torch.set_num_threads(os.cpu_count() or 1)
    log.info("evaluating base and adapter on the CPU: %d rows", len(prepared.test))
    about = about_this_run() | {"seed": settings.seed}
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
