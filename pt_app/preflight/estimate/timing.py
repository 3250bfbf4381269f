"""Time a few steps of a run on its own model, and forecast the seconds of the whole run."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from pt_app.core import console
from pt_app.models.gemm import fast_matmul
from pt_app.models.memory import is_out_of_memory
from pt_app.models.packing import Batch
from pt_app.preflight.estimate.estimate import Estimate
from pt_app.preflight.estimate.plan import Plan, Step, scoring_passes
from pt_app.scoring.scorer import JudgeScorer, largest_trie
from pt_app.training.learning import MAX_BASE_ROWS
from pt_app.training.loop import TrainingLoop
from pt_app.training.loss import AnswerLoss, summed_loss
from pt_app.training.ordering import RowSteps

QUANTILES = (0.1, 0.5, 0.9)  # of the steps by size: one step at each is timed
SCORING = 0.8  # rate of scoring relative to matmul; 0.79 to 0.85 in docs/PERFORMANCE.md
SCORED = 16  # rows that are scored, to time it
MATMUL = 512, 1024, 4096  # rows, inputs and outputs of the matmul that is timed
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
        parts = ("training", "validation", "evaluation")
        times = [f"{_duration(getattr(self, part))} of {part}" for part in parts]
        source = f"from {self.packs} timed packs, which took {self.spent:.1f} s"
        lines = [f"time: about {', '.join(times)} ({source})"]
        if (dollars := self.dollars(price)) is not None:
            lines.append(f"price: about {dollars:.2f} dollars")
        return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def chosen_steps(plan: Plan) -> list[Step]:
    """Choose the steps that are timed: a small, a medium and a large one."""
    by_size = sorted(plan.steps, key=lambda step: step.tokens)
    return [by_size[i] for i in sorted({round(q * (len(by_size) - 1)) for q in QUANTILES})]


def before_training(needs: Estimate, trainer: TrainingLoop) -> None:
    """Log how long a run will take, if finding it out is short beside the training."""
    if console.ranks() > 1:
        return
    chosen = chosen_steps(needs.plan)
    timed = [pack for step in chosen for pack in step.packs]
    if needs.cost.training(timed) > MAX_SHARE * needs.cost.training(needs.plan.packs):
        log.info("time: not forecast, since the training is too short for it")
        return
    try:
        for line in time_run(trainer, needs).lines():
            log.info("%s", line)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("time: unknown, since memory ran out; training will try smaller packs")
    trainer.model.zero_grad()


def time_run(trainer: TrainingLoop, needs: Estimate) -> Seconds:
    """Time some steps of the run on the model of its trainer, and forecast the whole from them.

    Weights, optimizer and the state of the random numbers stay as they were; gradients are dropped.
    """
    began = time.perf_counter()
    plan, cost, model = needs.plan, needs.cost, trainer.model
    chosen, was_training = chosen_steps(plan), model.training
    batches = [batch for step in chosen for batch in _batches(trainer, step)]
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices, device_type=model.device.type):
        model.train()
        _compute(model, batches[:1])  # the first pass is slower, and does not count
        seconds = _timed(partial(_compute, model, batches))
    model.train(was_training)
    for parameter in model.parameters():
        parameter.grad = None
    rate = cost.training([pack for step in chosen for pack in step.packs]) / seconds
    scoring = _scoring_rate(trainer, needs)
    operations = plan.validations * cost.forward([*plan.validation, *plan.validation_loss])
    if plan.validations:  # and the base, on some of the rows
        share = min(1.0, MAX_BASE_ROWS / len(needs.prepared.data.val))
        operations += share * cost.forward(plan.validation)
    training, validation = cost.training(plan.packs) / rate, operations / scoring
    evaluation = 0.0
    if needs.evaluation is not None:
        # It computes in float32 on the CPU: where the training does too, at the measured rate.
        plain = needs.platform.on_cpu and needs.platform.weights == "float32"
        evaluation = cost.forward(plan.evaluation) / (scoring if plain else _matmul_rate())
        evaluation += REPORT_SECONDS
    spent = time.perf_counter() - began
    return Seconds(training, validation, evaluation, len(batches), spent)


def _batches(trainer: TrainingLoop, step: Step) -> list[Batch]:
    """Return the batches that the trainer computes in a step, on the device of the model."""
    steps, objective = cast(RowSteps, trainer.steps), cast(AnswerLoss, trainer.objective)
    packs = steps.collate([steps.rows[row] for row in step.rows])["packs"]
    device = trainer.model.device
    packs = [{name: tensor.to(device) for name, tensor in pack.items()} for pack in packs]
    return packs if objective.trees else [b for p in packs for b in objective.plain(p)]


def _compute(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    for batch in batches:
        summed_loss(model, batch).backward()  # type: ignore[no-untyped-call]


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of `work`, including what a GPU does asynchronously."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _scoring_rate(trainer: TrainingLoop, needs: Estimate) -> float:
    """Return the operations per second while a few rows are scored.

    The rate of training is another one: scoring normalizes logits, and has no backward pass.
    """
    prepared, objective = needs.prepared, cast(AnswerLoss, trainer.objective)
    rows = list(prepared.data.val or prepared.data.train)[:SCORED]
    scorer = JudgeScorer(trainer.model, prepared.encoder, order="as_given", progress=False)
    scorer.shapes, scorer.trees = objective.shapes, objective.trees
    scorer.score(rows[:2])  # the first pass is slower
    seconds = _timed(partial(scorer.score, rows))
    trie = largest_trie(prepared.encoder)
    passes = scoring_passes(prepared, rows, trie, needs.vocabulary)
    return needs.cost.forward(passes) / seconds


def _matmul_rate() -> float:
    """Return the operations per second of scoring on this CPU, as a matmul suggests."""
    rows, inputs, outputs = MATMUL
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    with torch.inference_mode(), fast_matmul(torch.device("cpu")):
        best = min(_timed(partial(F.linear, x, weight)) for _ in range(4))
    return SCORING * 2 * rows * inputs * outputs / best
