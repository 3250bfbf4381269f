"""Whether a judge's confidence means anything: calibration error, reliability, and its mending.

A row is right where its verdict lies within `tolerance` of the label, and the confidence is the
probability the judge gives to just that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import numbers_of
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import mean_metric, metric, share_metric

BINS = 10
SUM_TOLERANCE = 0.01  # of probabilities; files round them
SHARPEST, FLATTEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class Confidence:
    """Of each row: how sure the judge is that its verdict is right, and whether it is (1 or 0)."""

    sure: FloatArray
    right: FloatArray


def checked(probabilities: Sequence[Sequence[float] | None], scale: Scale, what: str) -> FloatArray:
    """Probabilities [n, K] of the scale's verdicts in its order, NaN for a row without.

    Raises UserError for a row of another length, with a number outside 0..1, or that does not sum
    to 1; `what` names the column.
    """
    rows = np.full((len(probabilities), len(scale.values)), np.nan)
    for i, row in enumerate(probabilities):
        if row is None:
            continue
        if problem := wrong_with(row, scale):
            raise UserError(
                f"{what} in row {i + 1}: {problem}: give the probability of each verdict of "
                f"{scale.name}, in its order"
            )
        rows[i] = row
    rows /= rows.sum(axis=1, keepdims=True)
    return rows


def wrong_with(row: Sequence[float], scale: Scale) -> str:
    """Say why these numbers are no probabilities of the scale's verdicts; "" where they are."""
    if len(row) != len(scale.values):
        return f"{len(row)} numbers, but the scale {scale.name} has {len(scale.values)} verdicts"
    if not all(number >= 0 for number in row):  # NaN neither
        return "a number is no probability"
    total = sum(row)
    return f"they sum to {total:.4g}, not 1" if abs(total - 1) > SUM_TOLERANCE else ""


def confidence_of(
    probabilities: FloatArray, labels: IntArray, scale: Scale, tolerance: float
) -> Confidence:
    """Confidence of the likeliest verdict of each row, and whether it is right."""
    near = _near(scale, tolerance)
    verdicts = np.nan_to_num(probabilities).argmax(axis=1)
    # Rounded, so that probabilities equal but for their sum's rounding are one confidence.
    sure = (probabilities * near[verdicts]).sum(axis=1).round(12)
    return Confidence(sure, near[verdicts, labels])


def _near(scale: Scale, tolerance: float) -> FloatArray:
    """Which verdicts count as one: [K, K], 1 within `tolerance` units of the scale."""
    numbers = numbers_of(scale)
    if numbers is None:
        return np.eye(len(scale.values))
    near = np.abs(numbers[:, None] - numbers) <= tolerance + 1e-9
    return near.astype(np.float64)


def usual_tolerance(scale: Scale) -> float:
    """What counts as right unless said: within one unit where a scale has over five verdicts."""
    return 1.0 if scale.task == "score" and len(scale.values) > 5 else 0.0


def calibration(
    probabilities: FloatArray,
    labels: IntArray,
    scale: Scale,
    sample: Resampler,
    tolerance: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibration of the rows that have probabilities; each number with interval and n.

    "ece": expected calibration error over 10 bins of equally many rows (Nguyen and O'Connor 2015).
    It is above 0 for a calibrated judge too, by so much as "ece_if_calibrated" says (the mean and
    the 95th percentile for these confidences and so many rows). "overconfidence": mean confidence
    less share right. "brier": of the whole distribution, 0 to 2 (Brier 1950). "reliability": for
    each bin its mean confidence, share right and n.
    """
    known = ~np.isnan(probabilities[:, 0])
    found = confidence_of(probabilities, labels, scale, tolerance)
    gap = np.where(known, found.sure - found.right, np.nan)
    truth = np.eye(len(scale.values))[labels]
    n, bins = int(known.sum()), _bins(found.sure, known)
    rng = np.random.default_rng(seed)
    chance = rng.random((500, n)) < found.sure[known]
    calibrated = _ece_of_bins(found.sure[known] - chance, bins[known])
    columns = np.zeros((len(gap), BINS))
    columns[known, bins[known]] = gap[known]

    def ece(sums: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"ece": np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]}

    columns = np.concatenate([columns, known[:, None]], axis=1)
    return {
        "tolerance": tolerance,
        "ece": metric(sample.estimate_sums(columns, ece)["ece"], n),
        "ece_if_calibrated": {
            "mean": float(calibrated.mean()),
            "high": float(np.quantile(calibrated, 0.95)),
        }
        if n
        else None,
        "overconfidence": mean_metric(gap, sample),
        "right": share_metric(np.where(known, found.right, np.nan), sample),
        "brier": mean_metric(((probabilities - truth) ** 2).sum(axis=1), sample),
        "reliability": [
            {
                "confidence": float(found.sure[inside].mean()),
                "right": share_metric(np.where(inside, found.right, np.nan), sample),
            }
            for b in range(BINS)
            if (inside := known & (bins == b)).any()
        ],
    }


def _bins(sure: FloatArray, known: Any) -> IntArray:
    """The bin of each row: equally many rows each, equal confidences together."""
    edges = np.quantile(sure[known], np.linspace(0, 1, BINS + 1)[1:-1]) if known.any() else []
    bins: IntArray = np.searchsorted(edges, np.nan_to_num(sure), side="right").astype(np.int64)
    return bins


def _ece_of_bins(gaps: FloatArray, bins: IntArray) -> FloatArray:
    """Expected calibration error of each row of `gaps` [r, n] (confidence less right)."""
    sums = np.stack([gaps[:, bins == b].sum(axis=1) for b in range(BINS)], axis=1)
    error: FloatArray = np.abs(sums).sum(axis=1) / max(1, len(bins))
    return error


def with_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Probabilities p^(1/T), normalised: above 1 less sure, the likeliest verdict the same."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    powers: FloatArray = np.exp(logits)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def fit_temperature(probabilities: FloatArray, labels: IntArray) -> float:
    """The temperature of least log loss on these rows (Guo et al. 2017, arXiv 1706.04599).

    A row whose label has no probability at all says nothing of it and is left out.
    """
    from scipy.optimize import minimize_scalar

    kept = np.nan_to_num(probabilities[np.arange(len(labels)), labels]) > 0
    rows, truth = probabilities[kept], labels[kept]

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(rows, float(np.exp(log_temperature)))
        chosen = np.maximum(scaled[np.arange(len(truth)), truth], 1e-300)
        return float(-np.log(chosen).mean())

    if not len(rows):
        return 1.0
    bounds = (float(np.log(SHARPEST)), float(np.log(FLATTEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


@dataclass(frozen=True)
class Isotonic:
    """A rising map of confidence to the share right: straight lines between `x` and `y` points."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @staticmethod
    def fit(found: Confidence) -> "Isotonic":
        """Fit on rows whose truth is known (Zadrozny and Elkan 2002)."""
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(out_of_bounds="clip").fit(found.sure, found.right)
        return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))

    def __call__(self, sure: FloatArray) -> FloatArray:
        """The share right that confidences stand for."""
        return np.interp(sure, self.x, self.y)
