"""Time a few packs of a run on its own model, and forecast the seconds of the whole run."""

import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812

from pt_app.core import console
from pt_app.models.base_files import weight_files
from pt_app.models.bases import ModelSource
from pt_app.models.gemm import fast_matmul
from pt_app.models.out_of_memory import is_out_of_memory
from pt_app.models.packing import Batch, Shapes
from pt_app.preflight.estimate.estimate import Estimate
from pt_app.preflight.estimate.flops import Cost
from pt_app.preflight.estimate.plan import Plan, Rows, Step, readings
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.trainer import JudgeTrainer, summed_loss
from pt_app.training.validation import Validation

QUANTILES = (0.1, 0.5, 0.9)  # of the steps by size: one step at each is timed
SCORING = 0.8  # rate of scoring relative to matmul; 0.79 to 0.85 in docs/PERFORMANCE.md
READ = 16  # validation rows whose verdicts are read, to time it
ROWS = 512  # of the matmul that is timed
HASHED = 1 << 25  # bytes whose sha256 is timed
MAX_SHARE = 0.05  # of the operations of a training that timing may take
# Results with their intervals, charts and pages: 2 to 4 s on the machine of docs/ESTIMATE.md.
REPORT_SECONDS = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seconds:
    """The forecast seconds of a run; `packs` were timed for it, in `spent` seconds."""

    training: float
    validation: float
    evaluation: float
    packs: int
    spent: float

    def dollars(self, price: float | None) -> float | None:
        """Return what the run costs at `price` dollars per hour; None without a price."""
        total = self.training + self.validation + self.evaluation
        return None if price is None else price * total / 3600

    def lines(self, price: float | None = None) -> list[str]:
        """Return lines about the time, and about the dollars at `price` per hour."""
        lines = [
            f"time: about {_duration(self.training)} of training, {_duration(self.validation)} of "
            f"validation, {_duration(self.evaluation)} of evaluation (from {self.packs} timed "
            f"packs, which took {self.spent:.1f} s)"
        ]
        if (dollars := self.dollars(price)) is not None:
            lines.append(f"price: about {dollars:.2f} dollars")
        return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def chosen_steps(plan: Plan, cost: Cost) -> list[Step]:
    """Choose the steps that are timed: a small, a medium and a large one."""
    by_size = sorted(plan.steps, key=lambda step: cost.training(step.packs))
    return [by_size[i] for i in sorted({round(q * (len(by_size) - 1)) for q in QUANTILES})]


def worth_timing(plan: Plan, cost: Cost) -> bool:
    """Return whether timing is short beside the training; the first step is computed twice."""
    chosen = chosen_steps(plan, cost)
    packs = [pack for step in [chosen[0], *chosen] for pack in step.packs]
    return cost.training(packs) <= MAX_SHARE * cost.training(plan.packs)


def before_training(needs: Estimate, trainer: JudgeTrainer, source: ModelSource) -> None:
    """Log how long a run will take, if finding it out is short beside the training."""
    if console.ranks() > 1:
        return
    if not worth_timing(needs.plan, needs.cost):
        log.info("time: not forecast, since the training is too short for it")
        return
    try:
        seconds = time_run(trainer, needs.plan, needs.cost, source)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("time: unknown, since memory ran out; training will try smaller packs")
    else:
        for line in seconds.lines():
            log.info("%s", line)
    trainer.model.zero_grad()


def time_run(trainer: JudgeTrainer, plan: Plan, cost: Cost, source: ModelSource) -> Seconds:
    """Time some steps of the run on the model of its trainer, and forecast the whole from them.

    Weights, optimizer and the state of the random numbers stay as they were; gradients are dropped.
    """
    began = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.args.activation_checkpointing:  # Trainer switches it on only when it begins
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=trainer.args.activation_checkpointing_kwargs
        )
    chosen = chosen_steps(plan, cost)
    batches = [_batches(trainer, step, model.device) for step in chosen]
    training = model.training
    with _same_random_numbers(model.device):
        model.train()
        _pass(trainer, model, batches[0])  # the first pass is slower, and does not count
        seconds = [_timed(partial(_pass, trainer, model, some)) for some in batches]
        model.eval()
        with torch.no_grad():
            forward = _timed(partial(_pass, trainer, model, batches[-1]))
        model.train(training)
    for parameter in model.parameters():
        parameter.grad = None
    rate = cost.forward(chosen[-1].packs) / forward
    reading = reading_rate(trainer, model, cost) or rate
    of_step = fit([cost.training(step.packs) for step in chosen], seconds)
    # The evaluation computes in float32 on the CPU: where the training does too, at the same rate.
    plain = model.device.type == "cpu" and next(model.parameters()).dtype == torch.float32
    plain = plain and not getattr(model, "is_loaded_in_4bit", False)
    validation = cost.forward(plan.validation) / reading + cost.forward(plan.validation_loss) / rate
    return Seconds(
        training=sum(of_step(cost.training(step.packs)) for step in plan.steps)
        + _check_flops(trainer, plan.steps[0], cost) / rate,
        validation=plan.validations * validation,
        evaluation=evaluation_seconds(plan, cost, source, reading if plain else None),
        packs=sum(map(len, batches)),
        spent=time.perf_counter() - began,
    )


def _check_flops(trainer: JudgeTrainer, first: Step, cost: Cost) -> float:
    """Return the operations of `JudgeTrainer._check_trees`, which compares two layouts.

    They are the first step's smallest pack, and the rows of that pack one by one, whose share of
    the step is that of its supervised tokens.
    """
    if not trainer.layout.trees:
        return 0.0
    smallest = min(first.packs, key=lambda pack: pack.tokens)
    rows = Rows([trainer.train_dataset[row] for row in first.rows], Shapes(), trees=False)
    share = smallest.logit_positions / sum(pack.logit_positions for pack in first.packs)
    return cost.forward([smallest]) + share * cost.forward(rows.packs(0))


def _batches(trainer: JudgeTrainer, step: Step, device: torch.device) -> list[Batch]:
    """Return the batches that the trainer computes in a step, on the device of the model."""
    packs = trainer.data_collator([trainer.train_dataset[row] for row in step.rows])["packs"]
    packs = [{name: tensor.to(device) for name, tensor in pack.items()} for pack in packs]
    return packs if trainer.layout.trees else [b for p in packs for b in trainer.layout.plain(p)]


def _pass(trainer: JudgeTrainer, model: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        # Trainer enters the platform's mixed precision only when it trains.
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss = summed_loss(model, batch)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the state of the random numbers afterwards, also that of the device."""
    on_device = torch.get_device_module(device) if device.type != "cpu" else None
    state = on_device.get_rng_state() if on_device else None
    with torch.random.fork_rng(devices=[]):
        yield
    if on_device:
        on_device.set_rng_state(state)


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of `work`, including what a GPU does asynchronously."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def fit(flops: Sequence[float], seconds: Sequence[float]) -> Callable[[float], float]:
    """Fit seconds as a fixed part and one that grows with the operations, neither negative."""
    slope = fixed = 0.0
    with suppress(statistics.StatisticsError):  # steps of one size, or one step
        slope, fixed = statistics.linear_regression(flops, seconds)
    if slope <= 0 or fixed < 0:  # noise
        slope, fixed = sum(seconds) / sum(flops), 0.0
    return lambda of: fixed + slope * of


def reading_rate(trainer: JudgeTrainer, model: Any, cost: Cost) -> float | None:
    """Return the operations per second while verdicts of validation rows are read; None without."""
    validate = cast(Validation | None, trainer.validate)
    if validate is None:
        return None
    rows, budget = list(validate.rows)[:READ], validate.collate.budget
    scorer = JudgeScorer(
        model,
        validate.encoder,
        batch_tokens=budget,
        progress=False,
        shapes=trainer.layout.shapes,
    )
    scorer.score(rows[:2])  # the first pass is slower
    seconds = _timed(partial(scorer.score, rows))
    prompts = [validate.encoder.prompt_ids(row) for row in rows]
    return cost.forward(readings(prompts, scorer.trie, budget, cost.vocabulary)) / seconds


def matmul_rate(cost: Cost) -> float:
    """Return the operations per second of scoring on this CPU, from a matmul of that size."""
    weight = torch.randn(cost.widest, cost.head // max(cost.vocabulary, 1))
    x = torch.randn(ROWS, weight.shape[1])
    with torch.inference_mode(), fast_matmul(torch.device("cpu")):
        best = min(_timed(partial(F.linear, x, weight)) for _ in range(4))
    return SCORING * 2 * ROWS * weight.numel() / best


def evaluation_seconds(
    plan: Plan, cost: Cost, source: ModelSource, rate: float | None = None
) -> float:
    """Forecast the evaluation of base and adapter, in float32 on this CPU.

    Args:
        plan: the packs of the run.
        cost: their operations.
        source: the base, whose weights are hashed.
        rate: operations per second of scoring, if measured; else that of a matmul is.
    """
    if not plan.test:
        return 0.0
    flops = 2 * cost.forward(plan.test) + cost.forward(plan.calibration)
    # The weights are hashed when the adapter is saved, and when it is evaluated.
    hashed = 2 * sum(file.stat().st_size for file in weight_files(source.path)) / HASHED
    hashing = hashed * _timed(partial(hashlib.sha256, bytes(HASHED)))
    return flops / (rate or matmul_rate(cost)) + hashing + REPORT_SECONDS
