"""Accept or escalate: a judge keeps the rows of which it is sure, and another one gets the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Escalation, EscalationPoint, JudgeResults, Prediction
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import confidence_of, probabilities_of
from pt_app.evidence.coding import (
    agreement_of_sums,
    count_failures_as_wrong,
    distances,
    headline,
    positions,
)
from pt_app.evidence.comparison import compare
from pt_app.evidence.intervals import Resampler

PARTS = 5  # points of the curve: at these quantiles of the confidence
ROUNDING = 1e-9  # of a distance in units of the scale


@dataclass(frozen=True)
class _Two:
    """Labels and verdicts of two judges as positions (-1: none), and the first one's confidence."""

    labels: IntArray
    first: IntArray
    second: IntArray
    sure: FloatArray
    scale: Scale
    sample: Resampler
    tolerance: float
    price: float

    def together(self, threshold: float | None) -> IntArray:
        """Return the first judge's verdicts where it is so confident, else the second's."""
        kept = self.sure >= (np.inf if threshold is None else threshold)
        return np.where(kept, self.first, self.second)

    def point(self, threshold: float | None) -> EscalationPoint:
        """Measure both together; a parse failure of the second judge counts as wrong."""
        verdicts, labels, scale = self.together(threshold), self.labels, self.scale
        wrong = count_failures_as_wrong(labels, verdicts, scale)
        (columns,), statistic = agreement_of_sums(labels, scale, wrong)
        agreed = self.sample.estimate_sums(columns, statistic)
        right = distances(labels, verdicts, scale) <= self.tolerance + ROUNDING
        kept = 0.0 if threshold is None else float((self.sure >= threshold).mean())
        return EscalationPoint(
            threshold=threshold,
            kept=kept,
            right=self.sample.share(right.astype(np.float64)),
            agreement=agreed[headline(scale)],
            per_verdict=(1 - kept) * self.price,
        )


def escalation(
    first: tuple[JudgeResults, Sequence[Prediction]],
    second: tuple[JudgeResults, Sequence[Prediction]],
    scale: Scale,
    sample: Resampler,
) -> Escalation | None:
    """Measure a judge that sends its least confident rows to another one, at a price per row.

    The thresholds of the curve are quantiles of the confidence on these rows. A row is sent by its
    confidence alone, so that a threshold applies to other rows, too.

    Args:
        first: a judge's numbers and rows.
        second: those of the judge that gets the rest, on the same rows.
        scale: the scale of labels and verdicts.
        sample: the groups of the rows.

    Returns:
        The curve, with its intervals; None if the first judge has no probabilities.
    """
    (numbers, rows), (others, theirs) = first, second
    if numbers.selective is None or numbers.calibration is None:
        return None
    labels = positions([row.label for row in rows], scale, "label")
    verdicts, second_verdicts = (
        positions([row.verdict for row in part], scale, "verdict") for part in (rows, theirs)
    )
    tolerance, price = numbers.calibration.tolerance, others.cost.per_verdict if others.cost else 0
    sure = confidence_of(probabilities_of(rows, scale), verdicts, labels, scale, tolerance).sure
    both = _Two(labels, verdicts, second_verdicts, sure, scale, sample, tolerance, price)
    known = sure[~np.isnan(sure)]
    levels = np.unique(np.quantile(known, np.arange(PARTS) / PARTS))[::-1].tolist()
    found = Escalation(
        a=numbers.name,
        b=others.name,
        metric=headline(scale),
        points=[both.point(level) for level in (None, *levels)],
    )
    if (chosen := numbers.selective.threshold) is not None:
        names = f"{numbers.name}, else {others.name}", others.name
        mixed = [scale.values[i] if i >= 0 else None for i in both.together(chosen)]
        alone = [row.verdict for row in theirs]
        found.chosen, found.chosen_on = both.point(chosen), numbers.selective.chosen_on
        found.difference = compare([r.label for r in rows], mixed, alone, sample, scale, names)
    return found
