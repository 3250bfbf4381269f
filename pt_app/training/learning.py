"""Has it learned anything yet? A judge in training beside its base, baselines and the prior."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from transformers import TrainerCallback

from pt_app.core import console
from pt_app.core.dataset import draw
from pt_app.core.formatting import NAMES, interval, number
from pt_app.core.records import JudgeExample
from pt_app.core.results import Metric
from pt_app.evidence.baselines import Labelled, fit_baselines
from pt_app.evidence.summary import strict_agreement
from pt_app.training.loop import LoopState, Model
from pt_app.training.validation import Validation, quality_metric

MAX_BASE_ROWS = 200  # validation rows on which the base is scored before the first step
Numbers = Mapping[str, float]
log = logging.getLogger(__name__)


class Learning(TrainerCallback):  # type: ignore[misc]
    """Log at each validation what its numbers are to be compared with, and warn of no progress.

    Args:
        validate: the validation of the training.
        train: the rows that are trained on.
        lr: the peak learning rate, for the warning.
    """

    def __init__(self, validate: Validation, train: Sequence[JudgeExample], lr: float) -> None:
        super().__init__()
        self.validate, self.train, self.lr = validate, train, lr
        self.scale = validate.encoder.scale
        self.metric = quality_metric(self.scale, validate.rows)
        self.name = NAMES[self.metric]

    @cached_property
    def baselines(self) -> dict[str, float]:
        """The agreement on the validation rows of each baseline without a model."""
        both = (self.validate.rows, self.train)
        test, train = (Labelled.of_examples(rows, self.scale) for rows in both)
        labels = [self.scale.values[place] for place in test.labels]
        return {
            baseline.name: strict_agreement(labels, baseline.verdicts, self.scale)[self.metric]
            for baseline in fit_baselines(test, self.scale, train)
            if not baseline.missing
        }

    def on_train_begin(
        self, args: object, state: LoopState, control: object, model: Model, **_: object
    ) -> None:
        """Score the base: before the first step an adapter changes nothing.

        A resumed training has the numbers in its history.
        """
        if state.global_step:
            return
        if self.validate.sharded:
            # The buffers of FSDP's first pass would be tensors that no gradient may pass.
            log.info("validation of the base: left out, since it is sharded")
            return
        every = self.validate.rows
        rows = draw(every, MAX_BASE_ROWS, seed=0)
        log.info("validation of the base: %d of %d rows", len(rows), len(every))
        numbers = replace(self.validate, rows=rows, encoded=())(model)
        named = {f"base_{name}": value for name, value in numbers.items()}
        state.log_history.append({**named, "step": 0})

    def on_log(
        self, args: object, state: LoopState, control: object, logs: Numbers, **_: object
    ) -> None:
        """Compare the numbers of a validation; the loop hands them to every rank."""
        if "eval_gain" not in logs or not console.is_main_process():
            return
        log.info("validation: %s", self._compared(logs, state.log_history))
        validated = [entry for entry in state.log_history if "eval_gain" in entry]
        past_an_epoch = [entry for entry in validated if entry["epoch"] >= 1]
        if len(past_an_epoch) == 1 and not any(map(self._beats_the_prior, validated)):
            log.warning("%s", self._why_nothing(logs))

    def _compared(self, logs: Numbers, history: Sequence[Numbers]) -> str:
        """Write a validation beside the base, the best baseline and the prior."""
        best = max(self.baselines, key=self._defined)
        values = {"base": history[0].get(f"base_{self.metric}"), best: self.baselines[best]}
        others = ", ".join(f"{name} {number(value)}" for name, value in values.items())
        own, gain = (_estimate(logs, f"eval_{name}") for name in (self.metric, "gain"))
        return (
            f"{self.name} {own} of {len(self.validate.rows)} rows ({others}); gain over the prior "
            f"{gain} nats per verdict, log loss {number(logs['eval_log_loss'])} against "
            f"{number(logs['eval_log_loss'] + logs['eval_gain'])}; entropy "
            f"{number(logs['eval_entropy'])}, of the prior {number(self.validate.prior.entropy)}"
        )

    def _beats_the_prior(self, numbers: Numbers) -> bool:
        """Return whether log loss or agreement is better than without reading a row."""
        constant = max(map(self._defined, {"majority", "mean"} & self.baselines.keys()))
        of_metric = numbers.get(f"eval_{self.metric}_low", -math.inf)
        return numbers.get("eval_gain_low", -math.inf) > 0 or of_metric > constant

    def _defined(self, baseline: str) -> float:
        value = self.baselines[baseline]
        return -math.inf if math.isnan(value) else value

    def _why_nothing(self, logs: Numbers) -> str:
        rows, lines = len(self.train), len(self.scale.lines())
        return (
            "after an epoch the judge knows nothing that the frequencies of the labels do not say "
            f"(a gain of {_estimate(logs, 'eval_gain')} nats per verdict over them). Most likely, "
            f"1. rows are too few: {rows:,} for {lines} verdicts; label more, or use a coarser "
            f"--grid; 2. scale, rubric or template are not what the labels mean: see judge data "
            f"preview; 3. --lr {self.lr:g} does not fit: --preset small_data has one for few rows; "
            "where the loss rises, try a tenth"
        )


def _estimate(logs: Numbers, name: str) -> str:
    """Write a number of a validation with its interval; a dash where it is undefined."""
    low, high = logs.get(f"{name}_low"), logs.get(f"{name}_high")
    shown = interval(Metric(value=logs.get(name), low=low, high=high, n=0))
    return f"{number(logs.get(name))} {shown}".rstrip()
