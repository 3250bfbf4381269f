"""Seconds of a run, from a few of its own packs: computed, timed and forgotten again."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812

from pt_app.models.base_files import weight_files
from pt_app.models.bases import ModelSource
from pt_app.models.gemm import fast_products
from pt_app.models.packing import Batch, Shapes
from pt_app.preflight.estimate.flops import Cost
from pt_app.preflight.estimate.plan import Plan, Rows, Step, readings
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.trainer import JudgeTrainer, summed_loss
from pt_app.training.validation import Validation

SPREAD = (0.1, 0.5, 0.9)  # of the steps by size: one of each is timed
SCORING = 0.8  # of the best product rate; 0.79 to 0.85 in docs/PERFORMANCE.md
READ = 16  # validation rows whose verdicts are read once, timed
ROWS = 512  # of the products that this rate is timed with
HASHED = 1 << 25  # bytes that the rate of sha256 is timed with
WORTH = 0.05  # of a training's operations that timing may take
# Results with their intervals, charts and pages: 2 to 4 s on the machine of docs/ESTIMATE.md.
REPORT_SECONDS = 3.0


@dataclass(frozen=True)
class Seconds:
    """What a run takes; `packs` were timed, in `spent` seconds."""

    training: float
    validation: float
    evaluation: float
    packs: int
    spent: float

    @property
    def total(self) -> float:
        """All together."""
        return self.training + self.validation + self.evaluation


def chosen_steps(plan: Plan, cost: Cost) -> list[Step]:
    """The steps that are timed: a small one, a middling one and a large one."""
    by_size = sorted(plan.steps, key=lambda step: sum(map(cost.training, step.packs)))
    return [by_size[i] for i in sorted({round(q * (len(by_size) - 1)) for q in SPREAD})]


def worth_timing(plan: Plan, cost: Cost) -> bool:
    """Whether timing takes at most a twentieth of the training; the first step counts twice."""
    chosen = chosen_steps(plan, cost)
    packs = [pack for step in [chosen[0], *chosen] for pack in step.packs]
    return sum(map(cost.training, packs)) <= WORTH * cost.of_training(plan)


def time_run(trainer: JudgeTrainer, plan: Plan, cost: Cost, source: ModelSource) -> Seconds:
    """Time some of the run's own steps on the trainer's model and reckon the whole from them.

    Weights, the optimizer and the state of random numbers are as before, gradients are none.
    """
    began = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.args.activation_checkpointing:  # Trainer switches it on when it begins
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=trainer.args.activation_checkpointing_kwargs
        )
    chosen = chosen_steps(plan, cost)
    batches = [_batches(trainer, step, model.device) for step in chosen]
    training = model.training
    with _same_random_numbers(model.device):
        model.train()
        _pass(trainer, model, batches[0])  # the very first is slower, and does not count
        seconds = [_timed(partial(_pass, trainer, model, some)) for some in batches]
        model.eval()
        with torch.no_grad():
            forward = _timed(partial(_pass, trainer, model, batches[-1]))
        rate = sum(map(cost.forward, chosen[-1].packs)) / forward
        model.train(training)
    for parameter in model.parameters():
        parameter.grad = None
    reading = reading_rate(trainer, model, cost) or rate
    of_step = fit([sum(map(cost.training, step.packs)) for step in chosen], seconds)
    plain = model.device.type == "cpu" and next(model.parameters()).dtype == torch.float32
    plain = plain and not getattr(model, "is_loaded_in_4bit", False)
    once = cost.of_reading(plan.validation) / reading + cost.of_reading(plan.validation_loss) / rate
    steps = sum(of_step(sum(map(cost.training, step.packs))) for step in plan.steps)
    return Seconds(
        training=steps + _check_flops(trainer, plan.steps[0], cost) / rate,
        validation=plan.validations * once,
        evaluation=evaluation_seconds(plan, cost, source, reading if plain else None),
        packs=sum(map(len, batches)),
        spent=time.perf_counter() - began,
    )


def _check_flops(trainer: JudgeTrainer, first: Step, cost: Cost) -> float:
    """Of `JudgeTrainer._check_trees`: the first step's smallest pack, and its rows one by one."""
    if not trainer.layout.trees:
        return 0.0
    smallest = min(first.packs, key=lambda pack: pack.tokens)
    rows = Rows([trainer.train_dataset[row] for row in first.rows], Shapes(), trees=False)
    apart = rows.packs(range(len(first.rows)), 0)
    share = smallest.kept / sum(pack.kept for pack in first.packs)
    return cost.forward(smallest) + share * cost.of_reading(apart)


def _batches(trainer: JudgeTrainer, step: Step, device: torch.device) -> list[Batch]:
    """The packs of a step as the trainer computes them, on the model's device."""
    packs = trainer.data_collator([trainer.train_dataset[row] for row in step.rows])["packs"]
    packs = [{name: tensor.to(device) for name, tensor in pack.items()} for pack in packs]
    return packs if trainer.layout.trees else [b for p in packs for b in trainer.layout.plain(p)]


def _pass(trainer: JudgeTrainer, model: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        # Trainer wraps the model in the platform's 16 bits once it trains.
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss = summed_loss(model, batch)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Within, dropout may draw; after, the state is the one before, on the device too."""
    on_device = torch.get_device_module(device) if device.type != "cpu" else None
    state = on_device.get_rng_state() if on_device else None
    with torch.random.fork_rng(devices=[]):
        yield
    if on_device:
        on_device.set_rng_state(state)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of `work`, until a GPU has done it too."""
    start = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def fit(flops: Sequence[float], seconds: Sequence[float]) -> Callable[[float], float]:
    """Seconds as a fixed part and one that grows with the operations, neither below zero."""
    x, y = torch.tensor(flops).double(), torch.tensor(seconds).double()
    spread = x - x.mean()
    slope = float((spread * y).sum() / (spread**2).sum()) if float((spread**2).sum()) else 0.0
    fixed = float(y.mean()) - slope * float(x.mean())
    if slope <= 0 or fixed < 0:  # noise, or steps of one size
        slope, fixed = float(y.sum() / x.sum()), 0.0
    return lambda of: fixed + slope * of


def reading_rate(trainer: JudgeTrainer, model: Any, cost: Cost) -> float | None:
    """Operations a second while verdicts are read, from READ validation rows; None without any."""
    validate = cast(Validation | None, trainer.validate)
    if validate is None:
        return None
    rows = list(validate.rows)[:READ]
    budget = validate.collate.budget
    scorer = JudgeScorer(
        model,
        validate.encoder,
        batch_tokens=budget,
        progress=False,
        shapes=trainer.layout.shapes,
    )
    scorer.score(rows[:2])
    seconds = _timed(partial(scorer.score, rows))
    prompts = [validate.encoder.prompt_ids(row) for row in rows]
    return cost.of_reading(readings(prompts, scorer.trie, budget, cost.vocabulary)) / seconds


def product_rate(cost: Cost) -> float:
    """Operations a second that scoring reaches on this CPU, from a product of the model's size."""
    weight = torch.randn(cost.widest, cost.head // max(cost.vocabulary, 1))
    x = torch.randn(ROWS, weight.shape[1])
    with torch.inference_mode(), fast_products(torch.device("cpu")):
        best = min(_timed(partial(F.linear, x, weight)) for _ in range(4))
    return SCORING * 2 * ROWS * weight.numel() / best


def evaluation_seconds(
    plan: Plan, cost: Cost, source: ModelSource, reading: float | None = None
) -> float:
    """Base and adapter on the test rows, the adapter on validation rows, on this CPU in float32.

    `reading` is the measured rate, where the training's model is in float32 on this CPU too.
    """
    if not plan.test:
        return 0.0
    rate = product_rate(cost) if reading is None else reading
    flops = 2 * cost.of_reading(plan.test) + cost.of_reading(plan.calibration)
    files = weight_files(source.path)
    # The weights are hashed when the adapter is saved and when it is evaluated.
    hashed = 2 * sum(file.stat().st_size for file in files) / HASHED
    return flops / rate + hashed * _timed(partial(hashlib.sha256, bytes(HASHED))) + REPORT_SECONDS
