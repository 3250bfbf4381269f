"""Build the trainer of a run, and train with it."""

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ProgressCallback, TrainerCallback, TrainingArguments, set_seed

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
from pt_app.training.checkpoints import newest_complete
from pt_app.training.distributed import any_rank, is_lost_rank, shard_base
from pt_app.training.layout import Layout
from pt_app.training.ordering import GroupedOrder
from pt_app.training.preparation import Prepared
from pt_app.training.trainer import JudgeTrainer
from pt_app.training.validation import Validation, quality_metric

LoadBase = Callable[[ModelSource, Settings, Platform], Any]
MakeArguments = Callable[[dict[str, Any], Platform], TrainingArguments]
LogNumbers = Callable[[dict[str, float], int], None]
"""Takes numbers by name and the optimizer step that they are of."""
NEVER = 2**31  # more optimizer steps than any run has
STOPPING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # SLURM sends it before a job's limit (sbatch --signal)
    STOPPING.append(signal.SIGUSR1)
log = logging.getLogger(__name__)


def load_judge(
    settings: Settings, platform: Platform, prepared: Prepared, load_base: LoadBase
) -> Any:
    """Load the base of a run and attach a fresh adapter to it."""
    set_seed(settings.seed)
    log.info("loading %s, weights in %s", prepared.source.name, platform.weights)
    model = assemble(load_base(prepared.source, settings, platform), settings, platform)
    if settings.shard_base:
        shard_base(model, platform.device)
    trainable, total = model.get_nb_trainable_parameters()
    log.info("trainable parameters: %s of %s", f"{trainable:,}", f"{total:,}")
    return model


def assemble(base: Any, settings: Settings, platform: Platform) -> Any:
    """Attach a fresh adapter to a base, and choose how its attention and MLPs are computed."""
    model = adapters.attach_lora(
        base,
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_targets,
    )
    use_attention(model, platform.attention)
    keep_less(model)
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
    """Build the trainer of a run: its steps, their packs and order, and its validation."""
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
    """Return the number of examples per optimizer step, over all processes."""
    return settings.batch_size * settings.gradient_accumulation * console.ranks()


def _layout(settings: Settings, platform: Platform, prepared: Prepared, model: Any) -> Layout:
    """Decide how steps are computed: as prefix trees, unless the attention does not allow it."""
    why = why_no_tree(model, settings.max_seq_length)
    if why is None:
        log.info("packs: up to %d tokens, with each common prefix once", settings.pack_tokens)
    else:
        log.warning("packs: rows are computed one by one: %s", why)
    return Layout(
        pad_id=prepared.encoder.tokenizer.pad_token_id,
        rows=1 if platform.fixed_lengths else settings.batch_size,
        shapes=fixed_shapes(settings, platform, prepared),
        trees=why is None,
        tolerance=platform.loss_tolerance,
    )


def fixed_shapes(settings: Settings, platform: Platform, prepared: Prepared) -> Shapes:
    """Return the few sizes that the tensors of a run have, if its platform asks for that."""
    if not platform.fixed_lengths:
        return Shapes()
    # Validation reads each prompt with the trie of all verdicts appended.
    nodes = len(verdict_trie(prepared.encoder).tokens)
    return Shapes.up_to(max(settings.pack_tokens, settings.max_seq_length + nodes))


def common_arguments(
    settings: Settings, platform: Platform, folder: Path, metric: str | None
) -> dict[str, Any]:
    """Return the training arguments that no platform changes.

    Args:
        metric: the number of a validation whose maximum gives the best weights, if there is one.
    """
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        # A batch of Trainer is a whole step, which is laid out as packs (models/packing.py).
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
        # JudgeTrainer itself saves a checkpoint at the best validation. The strategy "best" of
        # transformers would cancel the checkpoint that a signal asks for.
        "save_strategy": "steps" if settings.save_steps or metric else "no",
        "save_steps": settings.save_steps or NEVER,
        "logging_steps": 10,
        # The filter would replace a loss that is not finite by the mean of earlier losses.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "remove_unused_columns": False,
        "activation_checkpointing": settings.activation_checkpointing == "full",
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }


class _Progress(ProgressCallback):  # type: ignore[misc]
    """Show a bar with an ETA and one line per log; pass the numbers to `log_numbers` too."""

    def __init__(self, log_numbers: LogNumbers) -> None:
        super().__init__()
        self.log_numbers = log_numbers

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Handle the newest numbers; Trainer calls it on every rank."""
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, (int, float))}
        self.log_numbers(numbers, state.global_step)
        shown = ("loss", "grad_norm", "learning_rate", "train_runtime")
        names = [name for name in numbers if name in shown or name.startswith("eval_")]
        line = ", ".join(f"{name} {numbers[name]:.4g}" for name in names)
        with logging_redirect_tqdm(console.LOGGERS):
            log.info("step %d/%d: %s", state.global_step, state.max_steps, line)


class StopAfterStep(TrainerCallback):  # type: ignore[misc]
    """Finish the step, save a checkpoint and stop on SIGINT, SIGTERM or SIGUSR1."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within; only the main thread can, another leaves them alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._ask) for s in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop after this optimizer step if any rank was asked to."""
        self.asked = any_rank(self.asked, args.device)
        if self.asked:
            control.should_save = control.should_training_stop = True


def train(trainer: JudgeTrainer, checkpoint: Path | None) -> None:
    """Train to the end, or on an interrupt to the end of the step and a checkpoint.

    Raises:
        UserError: if another process of the training is gone.
        KeyboardInterrupt: after the checkpoint that a signal asked for.
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
        kept = (
            f"the same command with --resume continues from {newest}" if newest else "start again"
        )
        raise UserError(
            f"one of the {console.ranks()} processes that trained together is gone, in step "
            f"{trainer.state.global_step + 1}; look at its last lines; {kept}"
        ) from error
    if stop.asked:
        log.warning("interrupted; --resume continues from the checkpoint of this step")
        raise KeyboardInterrupt
    trainer.load_best()
