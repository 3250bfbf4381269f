"""Selective judging: what is gained if the judge abstains below a threshold of its confidence.

A person or a larger judge then decides the rows below it.
"""

from functools import partial
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray, agreement, contingency
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import Confidence
from pt_app.evidence.coding import headline, numbers_of
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.ranks import Levels
from pt_app.evidence.summary import metric, share_metric

POINTS = 100  # of the curve in results.json
RISK_OF_ERROR = 0.05  # that a guaranteed threshold does not hold
COVERAGES = (0.25, 0.5, 0.75)  # at which accuracy and agreement are reported
STEPS = 10  # thresholds that are tried: each leaves another tenth of the rows to a person


def selective(
    confidence: Confidence,
    sample: Resampler,
    target: float,
    threshold: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the risk-coverage curve, its area, and the threshold that reaches `target` accuracy.

    "aurc" is the mean error rate over all coverages (Geifman et al. 2019, arXiv 1805.08206),
    "aurc_random" that of a judge whose confidence says nothing: its error rate. "kept" and "right"
    are the coverage and the accuracy of the threshold on these rows.

    Args:
        confidence: confidence and correctness of each row.
        sample: the groups of the rows.
        target: the accuracy to reach.
        threshold: what `guaranteed_threshold` chose on other rows; None: choose it on these.
    """
    order = np.argsort(-confidence.sure, kind="stable")
    wrong = 1 - confidence.right[order]
    risk = wrong.cumsum() / np.arange(1, len(order) + 1)
    chosen = threshold or guaranteed_threshold(confidence, sample, target)
    kept = confidence.sure >= (np.inf if chosen["threshold"] is None else chosen["threshold"])
    picked = np.unique(np.linspace(0, len(order) - 1, POINTS).round().astype(int))
    return {
        "curve": [{"coverage": (int(i) + 1) / len(order), "risk": float(risk[i])} for i in picked],
        "aurc": _area(confidence, sample),
        "aurc_random": share_metric(1 - confidence.right, sample),
        **chosen,
        "kept": share_metric(kept.astype(np.float64), sample),
        "right": share_metric(np.where(kept, confidence.right, np.nan), sample),
    }


def _area(confidence: Confidence, sample: Resampler) -> dict[str, Any]:
    """Return the area below the curve; rows of equal confidence share their mean risk."""
    levels, wrong = Levels(-confidence.sure), 1 - confidence.right

    def area(weights: FloatArray) -> dict[str, FloatArray]:
        rows, errors = levels.sums(weights), levels.sums(weights * wrong)
        covered = rows.cumsum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            risk = errors.cumsum(axis=1) / covered
        risk = np.where(covered > 0, risk, 0.0)
        return {"aurc": (risk * rows).sum(axis=1) / covered[:, -1]}

    return metric(sample.estimate(area)["aurc"], len(wrong))


def at_coverages(
    confidence: Confidence, verdicts: IntArray, labels: IntArray, scale: Scale, sample: Resampler
) -> list[dict[str, Any]]:
    """Return accuracy and agreement among the surest quarter, half and three quarters of the rows.

    Rows of equal confidence at the edge count by the share that still fits, so that the order of
    the rows in the file changes nothing; each resample has its own edge.

    Args:
        confidence: confidence and correctness of each row.
        verdicts: positions on the scale [n].
        labels: positions on the scale [n].
        scale: the scale.
        sample: the groups of the rows.

    Returns:
        For each "coverage" the accuracy within the tolerance ("right"), the share of verdicts that
        equal the label ("accuracy") and the scale's headline number.
    """
    used = np.unique(np.concatenate([labels, verdicts]))
    label, verdict = (
        np.searchsorted(used, column).astype(np.int64) for column in (labels, verdicts)
    )
    numbers, head = numbers_of(scale), headline(scale)
    values = None if numbers is None else numbers[used]
    shape, levels = (len(used), len(used)), Levels(-confidence.sure)

    def numbers_at(coverage: float, weights: FloatArray) -> dict[str, FloatArray]:
        kept = weights * _kept(levels, coverage, weights)
        tables = contingency(label, verdict, shape, kept)
        with np.errstate(invalid="ignore", divide="ignore"):
            right = (kept @ confidence.right) / kept.sum(axis=1)
        agreed = agreement(tables, values)
        exact = agreed["accuracy" if values is None else "exact"]
        return {"right": right, "accuracy": exact, head: agreed[head]}

    entries = []
    for coverage in COVERAGES:
        n = round(coverage * len(labels))
        estimates = sample.estimate(partial(numbers_at, coverage), 8 * shape[0] * shape[1])
        numbers_here = {name: metric(estimate, n) for name, estimate in estimates.items()}
        entries.append({"coverage": coverage, **numbers_here})
    return entries


def _kept(levels: Levels, coverage: float, weights: FloatArray) -> FloatArray:
    """Return the share of each row that is among the surest `coverage` of the drawn ones, [r, n].

    `levels` are those of the confidences, the highest first.
    """
    rows = levels.sums(weights)
    before = rows.cumsum(axis=1) - rows
    room = coverage * weights.sum(axis=1, keepdims=True) - before
    share = np.clip(room / np.maximum(rows, 1e-12), 0.0, 1.0)
    kept: FloatArray = share[:, levels.of_row]
    return kept


def guaranteed_threshold(
    confidence: Confidence, sample: Resampler, target: float
) -> dict[str, Any]:
    """Find the lowest confidence from which on the judge reaches an accuracy of `target`.

    Ten thresholds are tried, each by an exact binomial bound (Clopper and Pearson 1934) at a tenth
    of the risk, so that in 95 of 100 cases none that holds here fails on further rows
    (Angelopoulos et al. 2021, arXiv 2110.01052). The bound is for independent rows, so that one
    row of each group counts, drawn at random. "threshold" is None where none holds.
    """
    from scipy.stats import beta

    rng = np.random.default_rng([sample.seed, 2])
    shuffled = rng.permutation(len(sample.index))
    rows = shuffled[np.unique(sample.index[shuffled], return_index=True)[1]]
    sure, right = confidence.sure[rows], confidence.right[rows]
    chosen: dict[str, Any] = {"threshold": None, "bound": None}
    for level in np.unique(np.quantile(sure, np.arange(STEPS) / STEPS)):
        inside = sure >= level
        n, hits = int(inside.sum()), int(right[inside].sum())
        bound = float(beta.ppf(RISK_OF_ERROR / STEPS, hits, n - hits + 1)) if hits else 0.0
        if bound >= target:
            chosen = {"threshold": float(level), "bound": bound}
            break
    return {"target": target, **chosen, "rows": len(rows), "risk_of_error": RISK_OF_ERROR}
