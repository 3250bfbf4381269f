"""Build the training of a judge, and run it."""

import logging
import math
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from accelerate.data_loader import SeedableRandomSampler
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ProgressCallback, set_seed

from pt_app.core import console
from pt_app.core.dataset import draw
from pt_app.core.errors import UserError
from pt_app.core.orders import both_orders
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.settings import Settings
from pt_app.core.verdicts import Verdict
from pt_app.evidence.prior import Prior
from pt_app.models import adapters
from pt_app.models.bases import ModelSource
from pt_app.models.contention import watched
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Shapes, StepCollator
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import use_attention, why_no_tree
from pt_app.scoring.scorer import largest_trie
from pt_app.training.checkpoints import newest_complete
from pt_app.training.distributed import is_lost_rank, shard_base
from pt_app.training.learning import Learning
from pt_app.training.loop import LoopArguments, LoopState, Model, TrainingLoop
from pt_app.training.loss import AnswerLoss
from pt_app.training.ordering import STOPPING, GroupedOrder, Order, RowSteps
from pt_app.training.preparation import Prepared
from pt_app.training.validation import AGREEMENT, Validation, quality_metric

LoadBase = Callable[[ModelSource, Settings, Platform], Model]
# Completes the arguments that both recipes share by what the platform needs.
MakeArguments = Callable[[LoopArguments, Platform], LoopArguments]
# Takes numbers by name and the optimizer step that they are of.
LogNumbers = Callable[[dict[str, float], int], None]
log = logging.getLogger(__name__)


def load_judge(
    settings: Settings, platform: Platform, prepared: Prepared, load_base: LoadBase
) -> Model:
    """Load the base of a run and attach a fresh adapter to it."""
    set_seed(settings.seed)
    log.info("loading %s, weights in %s", prepared.source.name, platform.weights)
    model = assemble(load_base(prepared.source, settings, platform), settings, platform)
    if settings.shard_base:
        shard_base(model, platform.device)
    trainable, total = model.get_nb_trainable_parameters()
    log.info("trainable parameters: %s of %s", f"{trainable:,}", f"{total:,}")
    return model


def assemble(base: Model, settings: Settings, platform: Platform) -> Model:
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
    model: Model,
    make_arguments: MakeArguments,
    log_numbers: LogNumbers,
) -> TrainingLoop:
    """Build the training loop of a run: its steps, their packs and order, and its validation."""
    objective = _objective(settings, platform, prepared, model)
    collate = StepCollator(objective.pad_id, settings.pack_tokens, objective.shapes)
    validate, callbacks, metric = None, [Progress(log_numbers)], None
    if prepared.val is not None:
        rows, encoder = prepared.data.val, prepared.encoder
        train = draw(prepared.data.train, settings.max_samples, settings.seed)
        how = collate, objective, priors_of(train, encoder), settings.shard_base
        validate = Validation(rows, prepared.val, encoder, *how)
        if encoder.questions:
            metric = f"eval_{AGREEMENT}"
        else:
            metric = f"eval_{quality_metric(prepared.data.scale, rows)}"
            callbacks.append(Learning(validate, train, settings.lr))
    common = LoopArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        optim=platform.optimizer,
        seed=settings.seed,
        save_steps=settings.save_steps,
        patience=settings.patience,
        metric_for_best_model=metric,
        use_cpu=platform.on_cpu,
        activation_checkpointing=settings.activation_checkpointing == "full",
        sharded=settings.shard_base,
    )
    args = make_arguments(common, platform)
    steps = _steps(settings, prepared, collate, args)
    number = math.ceil(len(steps) * settings.epochs)
    args = replace(args, eval_steps=share_of(settings.eval_steps, number))
    return TrainingLoop(
        model,
        args,
        steps,
        objective,
        partial(adamw, args.optim, settings.lr),
        partial(cosine, settings.warmup_steps),
        validate,
        callbacks,
    )


def priors_of(train: Sequence[JudgeExample], encoder: PromptEncoder) -> dict[str, Prior]:
    """Return the frequencies of the labels that are trained on, by question; "": without one."""
    labels: dict[str, list[Verdict]] = defaultdict(list)
    for row in both_orders(train):
        if row.label is not None:
            labels[row.asks].append(row.label.verdict)
    if not encoder.questions:
        return {"": Prior.of(labels[""], encoder.scale)}
    return {q.name: Prior.of(labels[q.name], q.scale) for q in encoder.questions}


def _steps(
    settings: Settings, prepared: Prepared, collate: StepCollator, args: LoopArguments
) -> RowSteps:
    """Return the steps of an epoch; a batch of their loader is a whole step of a rank."""
    examples = examples_a_step(settings)
    order = order_of(settings, prepared)
    workers, pin_memory = args.dataloader_num_workers, args.dataloader_pin_memory
    how = collate, workers, pin_memory, prepared.members
    steps = RowSteps(prepared.train, order, examples, *how)
    shape = f"batch {settings.batch_size} x accumulation {settings.gradient_accumulation}"
    number = math.ceil(len(steps) * settings.epochs)
    log.info("steps: %d of %d examples (%s x %d ranks)", number, examples, shape, console.ranks())
    return steps


def order_of(settings: Settings, prepared: Prepared) -> Order:
    """Return the order of the training rows: that of the seed, in groups if that is asked for."""
    members = prepared.members
    if settings.group_variants:
        groups = prepared.train["group"]
        groups = groups if members is None else [groups[own[0]] for own in members]
        return GroupedOrder(groups, examples_a_step(settings), settings.seed)
    order: Order = SeedableRandomSampler(members or prepared.train, data_seed=settings.seed)
    return order


def examples_a_step(settings: Settings) -> int:
    """Return the number of examples per optimizer step, over all processes."""
    return settings.batch_size * settings.gradient_accumulation * console.ranks()


def _objective(
    settings: Settings, platform: Platform, prepared: Prepared, model: Model
) -> AnswerLoss:
    """Decide how steps are computed: as prefix trees, unless the attention does not allow it."""
    why = why_no_tree(model, settings.max_seq_length)
    if why is None:
        log.info("packs: up to %d tokens, with each common prefix once", settings.pack_tokens)
    else:
        log.warning("packs: rows are computed one by one: %s", why)
    return AnswerLoss(
        pad_id=prepared.encoder.end_token_id,  # a tokenizer may lack a padding token
        rows=1 if platform.fixed_lengths else settings.batch_size,
        shapes=fixed_shapes(settings, platform, prepared),
        trees=why is None,
        tolerance=platform.loss_tolerance,
        pack_tokens=settings.pack_tokens,
        weights=platform.weights,
        unchecked=not settings.shard_base,
    )


def fixed_shapes(settings: Settings, platform: Platform, prepared: Prepared) -> Shapes:
    """Return the few sizes that the tensors of a run have, if its platform asks for that."""
    if not platform.fixed_lengths:
        return Shapes()
    # Validation reads each prompt with the trie of all verdicts appended.
    nodes = len(largest_trie(prepared.encoder).tokens)
    return Shapes.up_to(max(settings.pack_tokens, settings.max_seq_length + nodes))


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return AdamW as the platforms name it: torch's, or bitsandbytes' paged one in 8 bits."""
    if name == "paged_adamw_8bit":
        from bitsandbytes.optim import AdamW

        return partial(AdamW, optim_bits=8, is_paged=True)
    return torch.optim.AdamW


def adamw(name: str, rate: float, model: Model) -> Sequence[torch.optim.Optimizer]:
    """Make the optimizer of an adapter, whose weights do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [optimizer_class(name)(trained, lr=rate, weight_decay=0.0)]


def share_of(amount: float, steps: int) -> int:
    """Return an amount of steps, which below 1 is a fraction of all `steps`."""
    return int(amount) if amount >= 1 else math.ceil(amount * steps)


def cosine(warmup: float, step: int, steps: int) -> float:
    """Return a fraction that rises linearly from 0 to 1 and then falls to 0 as a cosine.

    Args:
        warmup: steps of the rise, or below 1 the fraction of all steps.
        step: the number of past updates.
        steps: all steps.
    """
    rise = share_of(warmup, steps) if steps > 1 else 0  # a rise of a single step would be 0
    if step < rise:
        return step / rise
    done = (step - rise) / max(1, steps - rise)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


RECENT = 5  # logged losses, of ten steps each
JUMPED = (
    "step %d: the loss jumped from %.3g to %.3g: what was learned before may be lost: "
    "look at the evaluation, or train with a lower --lr"
)


class Progress(ProgressCallback):  # type: ignore[misc]
    """Show a bar with an ETA and one line per log; pass the numbers to `log_numbers` too."""

    def __init__(self, log_numbers: LogNumbers = lambda *_: None) -> None:
        super().__init__()
        self.log_numbers = log_numbers

    def on_log(
        self, args: object, state: LoopState, control: object, logs: dict[str, float], **_: object
    ) -> None:
        """Handle the newest numbers; the loop calls it on every rank."""
        self.log_numbers(logs, state.global_step)
        shown = ("loss", "grad_norm", "learning_rate", "train_runtime")
        names = [name for name in logs if name in shown or name.startswith("eval_")]
        # The others are in the line of `Learning`, or the same each time.
        more = ("_low", "_high", "_gain", "_log_loss", "_entropy", "_n_tokens", "_n_bytes")
        names = [name for name in names if not name.endswith(more)]
        line = ", ".join(f"{name} {logs[name]:.4g}" for name in names)
        before = loss_before_jump(state.log_history) if "loss" in logs else None
        with logging_redirect_tqdm(console.LOGGERS):
            log.info("step %d/%d: %s", state.global_step, state.max_steps, line)
            if before is not None:
                log.warning(JUMPED, state.global_step, before, logs["loss"])


def loss_before_jump(history: Sequence[Mapping[str, float]]) -> float | None:
    """Return the median of the last losses if the newest one jumped away from it; else None.

    A jump is to over twice the median of the five before, and by over 0.1: the losses of the
    trainings that lost what they had learned went from 0.1 to 0.5 within ten steps (docs/LOG.md),
    those of the others vary by a third.
    """
    *before, now = [entry["loss"] for entry in history if "loss" in entry]
    if len(before) < RECENT:
        return None
    usual = median(before[-RECENT:])
    return usual if now > 2 * usual + 0.1 else None


@contextmanager
def listening(loop: TrainingLoop) -> Iterator[None]:
    """Within, SIGINT, SIGTERM and SIGUSR1 end the training after its step and a checkpoint.

    After another process is gone they are ignored: the launcher sends SIGTERM at once, and this
    process ends by itself as soon as it has said why.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one can
        yield
        return

    def interrupt(*_: object) -> None:
        loop.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in STOPPING}
    try:
        yield
    except RuntimeError as error:
        if is_lost_rank(error):
            before = dict.fromkeys(STOPPING, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(loop: TrainingLoop, checkpoint: Path | None) -> None:
    """Train to the end, or on an interrupt to the end of the step and a checkpoint.

    Args:
        loop: the training.
        checkpoint: where it resumes.

    Raises:
        UserError: if another process of the training is gone.
        KeyboardInterrupt: after the checkpoint that a signal asked for.
    """
    try:
        with listening(loop), watched(loop.accelerator.device):
            loop.train(checkpoint)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        newest, _ = newest_complete(loop.args.output_dir)
        kept = f"{loop.args.again} from {newest}" if newest else "start again"
        raise UserError(
            f"one of the {console.ranks()} processes that trained together is gone, in step "
            f"{loop.state.global_step + 1}; look at its last lines; {kept}"
        ) from error
    if loop.interrupted:
        log.warning("interrupted; %s from the checkpoint of this step", loop.args.again)
        raise KeyboardInterrupt
    loop.load_best()
