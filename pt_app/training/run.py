"""Puts the trainer of a run together, and trains."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ProgressCallback, TrainingArguments, set_seed

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.settings import Settings
from pt_app.models import adapters
from pt_app.models.bases import ModelSource
from pt_app.models.contention import watched
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Shapes, StepCollator
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import use_attention, why_no_tree
from pt_app.scoring.scorer import verdict_trie
from pt_app.training.callbacks import StopAfterStep
from pt_app.training.checkpoints import newest_complete
from pt_app.training.distributed import is_lost_rank, shard_base
from pt_app.training.layout import Layout
from pt_app.training.ordering import GroupedOrder
from pt_app.training.preparation import Prepared
from pt_app.training.trainer import JudgeTrainer
from pt_app.training.validation import Validation, quality_metric

LoadBase = Callable[[ModelSource, Settings, Platform], Any]
MakeArguments = Callable[[dict[str, Any], Platform], TrainingArguments]
LogNumbers = Callable[[dict[str, float], int], None]
"""Takes numbers by name and the optimizer step that they are of."""
NEVER = 2**31  # steps: more than any run has
log = logging.getLogger(__name__)


def load_judge(
    settings: Settings, platform: Platform, prepared: Prepared, load_base: LoadBase
) -> Any:
    """The base of a run with a fresh adapter on it, ready to be trained."""
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
    keep_less(model)
    if settings.shard_base:
        shard_base(model, platform.device)
    trainable, total = model.get_nb_trainable_parameters()
    log.info("trainable parameters: %s of %s", f"{trainable:,}", f"{total:,}")
    return model


def build_trainer(
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    folder: Path,
    model: Any,
    make_arguments: MakeArguments,
    log_numbers: LogNumbers,
) -> JudgeTrainer:
    """The trainer of a run: its steps, their packs and order, its validation."""
    metric = None
    if prepared.val is not None:
        metric = quality_metric(prepared.data.scale, prepared.data.val)
    arguments = make_arguments(common_arguments(settings, platform, folder, metric), platform)
    # One process drives one GPU; torchrun starts one for each.
    arguments._n_gpu = min(1, arguments.n_gpu)
    examples = examples_a_step(settings)
    steps = math.ceil(len(prepared.train) / examples) * settings.epochs
    log.info(
        "steps: %d of %d examples (batch %d x accumulation %d x %d ranks)",
        math.ceil(steps),
        examples,
        settings.batch_size,
        settings.gradient_accumulation,
        console.ranks(),
    )
    layout = _layout(settings, platform, prepared, model)
    collate = StepCollator(layout.pad_id, settings.pack_tokens, layout.shapes)
    validate, order = None, None
    if prepared.val is not None:
        rows = prepared.data.val
        validate = Validation(rows, prepared.val, prepared.encoder, collate, settings.shard_base)
    if settings.group_variants:
        order = GroupedOrder(prepared.train["group"], examples, settings.seed)
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
        weights=platform.weights,
        sharded=settings.shard_base,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress(log_numbers))
    return trainer


def examples_a_step(settings: Settings) -> int:
    """The examples of an optimizer step, over all processes that train together."""
    return settings.batch_size * settings.gradient_accumulation * console.ranks()


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
        # The trainer asks for a checkpoint at the best validation by itself. Trainer's own strategy
        # for that, "best", would take back the one that a signal asks for.
        "save_strategy": "steps" if settings.save_steps or metric else "no",
        "save_steps": settings.save_steps or NEVER,
        "logging_steps": 10,
        # The filter would put the mean of earlier losses in place of one that is not finite.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "remove_unused_columns": False,
        "activation_checkpointing": settings.activation_checkpointing == "full",
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }


class _Progress(ProgressCallback):  # type: ignore[misc]
    """A bar with an ETA and one line for each log; the numbers go to `log_numbers` too."""

    def __init__(self, log_numbers: LogNumbers) -> None:
        super().__init__()
        self.log_numbers = log_numbers

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by Trainer with the newest numbers, on every rank."""
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        self.log_numbers(numbers, state.global_step)
        shown = ("loss", "grad_norm", "learning_rate", "train_runtime")
        names = [name for name in numbers if name in shown or name.startswith("eval_")]
        line = ", ".join(f"{name} {numbers[name]:.4g}" for name in names)
        with logging_redirect_tqdm(console.LOGGERS):
            log.info("step %d/%d: %s", state.global_step, state.max_steps, line)


def train(trainer: JudgeTrainer, checkpoint: Path | None) -> None:
    """Train to the end; on an interrupt, to the end of the step and a checkpoint.

    Raises UserError where another process of the training is gone.
    """
    stop = StopAfterStep()
    trainer.add_callback(stop)
    try:
        with stop.listening(), watched(trainer.args.device):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        newest, _ = newest_complete(Path(trainer.args.output_dir))
        kept = f"the same command with --resume goes on from {newest}" if newest else "start anew"
        raise UserError(
            f"one of the {console.ranks()} processes that trained together is gone, in step "
            f"{trainer.state.global_step + 1}; look at what it said last; {kept}"
        ) from error
    if stop.asked:
        log.warning("interrupted; --resume goes on from the checkpoint of this step")
        raise KeyboardInterrupt
    trainer.load_best()
