"""How good a judge is while it is trained: verdict quality and loss on the validation split."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from accelerate.utils import gather_object

from pt_app.core import console
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.results import Metric
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import coded, count_failures_as_wrong, headline
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.prior import Prior, entropy, surprise
from pt_app.evidence.summary import agreement_metrics
from pt_app.models.memory import free_memory, is_out_of_memory
from pt_app.models.packing import Example, StepCollator
from pt_app.scoring.scorer import JudgeScorer, Scored
from pt_app.training.loop import Model
from pt_app.training.loss import AnswerLoss

log = logging.getLogger(__name__)
AGREEMENT = "agreement"  # the mean of the questions' quality metrics


def quality_metric(scale: Scale, rows: Sequence[JudgeExample]) -> str:
    """Return the metric that chooses the best checkpoint: the first number of every report.

    Kappa is undefined if all labels are equal; then it is the fraction of exact verdicts.
    """
    if len({row.label.verdict for row in rows if row.label}) > 1:
        return headline(scale)
    return "exact" if scale.task == "score" else "accuracy"


class Judged(NamedTuple):
    """A validation row; `log_loss`, `gain` and `entropy` are in nats.

    `gain` is how much less surprising the label is than to the prior.
    """

    label: Verdict
    verdict: Verdict | None
    greedy: Verdict | None
    group: str
    log_loss: float | None = None
    gain: float | None = None
    entropy: float | None = None
    asks: str = ""


@dataclass(frozen=True)
class Validation:
    """Score the validation rows with the current weights; each rank takes its shard of the rows.

    Attributes:
        rows: the rows of the split.
        encoded: the same rows as token ids, pairs in both orders.
        encoder: encodes prompts and verdicts.
        collate: lays rows out as packs.
        objective: the loss in training, which knows whether prefix trees may be used.
        priors: the frequencies of the labels that are trained on, by question; "": without one.
        sharded: the model is sharded; every rank then scores all rows, in step with the others.
    """

    rows: Sequence[JudgeExample]
    encoded: Sequence[Example]
    encoder: PromptEncoder
    collate: StepCollator
    objective: AnswerLoss
    priors: Mapping[str, Prior]
    sharded: bool = False

    def __call__(self, model: Model) -> dict[str, float]:
        """Return the quality metric, parse failures, the loss per token, and what was learned.

        `log_loss` is the mean of -log p of the label, and `entropy` that of the distribution over
        verdicts, both in nats. `gain` is by how much that log loss is below the prior's. It and
        the quality metric have `_low` and `_high`, the ends of their intervals. Numbers that are
        undefined are left out, as is the loss without `encoded`. Of several questions they are the
        means, `agreement` that of the quality metrics, which are there for each, too.

        If memory runs out, smaller batches are tried; if the smallest do not fit either, the result
        is empty with a warning: a validation never ends a training.
        """
        # Every rank has scored all rows of a sharded model: rank 0 counts, so that all agree.
        shards = gather_object([self._my_shard(model)])[: 1 if self.sharded else None]
        if any(shard is None for shard in shards):
            log.warning("this validation ran out of memory and is skipped; training continues")
            return {}
        judged = [row for rows, _, _ in shards for row in rows]
        tokens = sum(count for _, _, count in shards)
        numbers = self._numbers(judged)
        return numbers | ({"loss": sum(total for _, total, _ in shards) / tokens} if tokens else {})

    @property
    def prior(self) -> Prior:
        """The prior of the one scale."""
        return self.priors[""]

    def _numbers(self, judged: Sequence[Judged]) -> dict[str, float]:
        if not self.encoder.questions:
            return self._of_scale(judged, self.encoder.scale, self.rows)
        numbers, means = {}, defaultdict(list)
        for question in self.encoder.questions:
            own = [row for row in judged if row.asks == question.name]
            rows = [row for row in self.rows if row.asks == question.name]
            if not own:
                continue
            name = quality_metric(question.scale, rows)
            of_one = self._of_scale(own, question.scale, rows)
            if name in of_one:
                numbers[f"{question.name}_{name}"] = of_one[name]
                means[AGREEMENT].append(of_one[name])
            for part in ("parse_failures", "gain", "log_loss", "entropy"):
                means[part] += [of_one[part]] if part in of_one else []
        return numbers | {name: sum(of) / len(of) for name, of in means.items() if of}

    def _of_scale(
        self, judged: Sequence[Judged], scale: Scale, rows: Sequence[JudgeExample]
    ) -> dict[str, float]:
        sample = Resampler([row.group for row in judged])
        verdicts_of = [row.verdict for row in judged]
        labels, verdicts = coded([row.label for row in judged], verdicts_of, scale)
        strict = count_failures_as_wrong(labels, verdicts, scale)
        name = quality_metric(scale, rows)
        agreement = agreement_metrics(sample, labels, strict, scale)[name]
        means = {
            part: sample.mean([getattr(row, part) for row in judged])
            for part in ("log_loss", "gain", "entropy")
        }
        numbers = {
            **_with_ends(name, agreement),
            "parse_failures": sum(row.greedy is None for row in judged) / len(judged),
            **_with_ends("gain", means["gain"]),
            "log_loss": means["log_loss"].value,
            "entropy": means["entropy"].value,
        }
        return {name: value for name, value in numbers.items() if value is not None}

    def _judged(self, row: JudgeExample, scored: Scored) -> Judged:
        assert row.label is not None, "a validation row without a label passed read_dataset"
        label, scale = row.label.verdict, self.encoder.scale_of(row)
        found = label, scored.verdict, scored.greedy, row.group
        if not scored.probabilities:
            return Judged(*found, asks=row.asks)
        chances = scale.gathered(scored.probabilities)
        own = surprise(chances, label, scale)
        gain = self.priors[row.asks].surprise(label) - own
        return Judged(*found, own, gain, entropy(chances), row.asks)

    def _my_shard(self, model: Model) -> tuple[list[Judged], float, float] | None:
        """Judge this rank's rows; return them, summed loss and tokens; None: no memory."""
        rank, ranks = (0, 1) if self.sharded else (console.rank(), console.ranks())
        mine, encoded = list(self.rows[rank::ranks]), list(self.encoded)[rank::ranks]
        budget, objective = self.collate.budget, self.objective
        while True:
            shapes, trees = objective.shapes, objective.trees
            scorer = JudgeScorer(
                model, self.encoder, batch_tokens=budget, progress=False, shapes=shapes, trees=trees
            )
            try:
                judged = list(map(self._judged, mine, scorer.score(mine)))
                return (judged, *self._loss(model, encoded, replace(self.collate, budget=budget)))
            except (RuntimeError, MemoryError) as error:
                # The other ranks of a sharded model wait within a layer.
                if not is_out_of_memory(error) or self.sharded:
                    raise
            free_memory()
            if budget <= max((len(row["input_ids"]) for row in encoded), default=0):
                return None
            budget //= 2
            log.warning("validation ran out of memory: batches of %d tokens are tried", budget)

    def _loss(
        self, model: Model, encoded: Sequence[Example], collate: StepCollator
    ) -> tuple[float, float]:
        """Return the summed cross-entropy and the number of supervised tokens, or their weights."""
        if not encoded:
            return 0.0, 0.0
        step, total, training = collate(encoded), 0.0, model.training
        model.eval()
        with torch.no_grad():
            # As they are: `batches` would lay them out by the budget that a training step was left.
            for packed in step["packs"]:
                for batch in [packed] if self.objective.trees else self.objective.plain(packed):
                    on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
                    total += float(self.objective.loss(model, on_device))
        model.train(training)
        return total, float(step["count"])


def _with_ends(name: str, metric: Metric) -> dict[str, float | None]:
    return {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
