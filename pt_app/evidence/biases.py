"""What moves a judge beside the label: generosity, place, length, copied source; and slices.

Each check is a number that is 0 for a judge without that bias, with interval, p, and p corrected
for the number of checks (Holm): a judge without any bias is accused of one in 5 of 100 test sets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale
from pt_app.core.words import words
from pt_app.evidence.coding import numbers_of
from pt_app.evidence.comparison import holm
from pt_app.evidence.intervals import Estimate, Resampler, mean_of_sums
from pt_app.evidence.lengths import length
from pt_app.evidence.summary import Metric, metric

ALARM = 0.05  # of the corrected p
Row = Mapping[str, Any]


def check(estimate: Estimate, n: int, sample: Resampler) -> Metric:
    """A number that should be 0, with the p of Student's t over the groups (None: undefined)."""
    from scipy.special import stdtr

    p = None
    if estimate.value is not None and estimate.error:
        p = 2 * float(stdtr(sample.groups - 1, -abs(estimate.value) / estimate.error))
    return metric(estimate, n) | {"p": p}


def corrected(checks: Mapping[str, Metric]) -> dict[str, Metric]:
    """Add to each check "p_holm" and "alarm"."""
    adjusted = holm([one["p"] for one in checks.values()])
    return {
        name: one | {"p_holm": p, "alarm": p is not None and p <= ALARM}
        for (name, one), p in zip(checks.items(), adjusted, strict=True)
    }


def errors_of(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """How much too generous each verdict is: [n], NaN for a parse failure.

    Verdict less label in units of the scale; of pass and fail 1, 0 or -1; of a pair how much too
    good for the first candidate, a tie being a half.
    """
    numbers = numbers_of(scale)
    if numbers is None:
        worth = {"A": 1.0, "tie": 0.5, "B": 0.0, "PASS": 1.0, "FAIL": 0.0}
        numbers = np.array([worth[str(value)] for value in scale.values])
    error: FloatArray = numbers[verdicts] - numbers[labels]
    return np.where(verdicts < 0, np.nan, error)


def mean_check(values: FloatArray, sample: Resampler) -> Metric:
    """Whether the mean of `values` (NaN: not counted) is 0."""
    known = ~np.isnan(values)
    columns = np.stack([np.where(known, values, 0.0), known], axis=1)

    return check(sample.estimate_sums(columns, mean_of_sums)["mean"], int(known.sum()), sample)


def partial_correlation(
    errors: FloatArray, feature: FloatArray, labels: IntArray, sample: Resampler
) -> Metric:
    """Correlation of error and feature among rows of one label, all labels together.

    NaN rows do not count. What a feature rightly tells of the label moves nothing here.
    """
    known = ~(np.isnan(errors) | np.isnan(feature))
    e, f = np.where(known, errors, 0.0), np.where(known, feature, 0.0)
    f = f - f[known].mean() if known.any() else f  # against rounding alone
    of_label = np.eye(int(labels.max()) + 1)[labels] * known[:, None]
    moments = [np.ones_like(e), e, f, e * e, f * f, e * f]
    columns = np.concatenate([of_label * one[:, None] for one in moments], axis=1)

    def correlation(sums: FloatArray) -> dict[str, FloatArray]:
        n, e, f, ee, ff, ef = np.split(sums, 6, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            e_mean, f_mean = np.where(n > 0, e / n, 0), np.where(n > 0, f / n, 0)
            both = (ef - e * f_mean).sum(axis=1)
            spread = (ee - e * e_mean).sum(axis=1) * (ff - f * f_mean).sum(axis=1)
            return {"pearson": both / np.sqrt(np.where(spread > 1e-9, spread, np.nan))}

    found = sample.estimate_sums(columns, correlation)["pearson"]
    return check(found, int(known.sum()), sample)


def length_of(rows: Sequence[Row], scale: Scale) -> FloatArray:
    """Logarithm of the candidate's characters; of a pair the first's less the second's."""
    return np.array(
        [_of_candidates(row, scale, lambda text: np.log1p(length(text))) for row in rows]
    )


def copied_of(rows: Sequence[Row], scale: Scale) -> FloatArray:
    """Share of the candidate's words that stand in the source; NaN without a source."""

    def share(row: Row) -> float:
        known = set(words(row.get("source") or ""))
        if not known:
            return np.nan
        return _of_candidates(row, scale, lambda text: _share(words(text), known))

    return np.array([share(row) for row in rows])


def _share(found: Sequence[str], known: set[str]) -> float:
    return sum(word in known for word in found) / len(found) if found else 0.0


def _of_candidates(row: Row, scale: Scale, number: Any) -> float:
    if scale.task == "pairwise":
        pair = row.get("candidates")
        return float(number(pair[0]) - number(pair[1])) if pair else float("nan")
    text = row.get("candidate")
    return float("nan") if text is None else float(number(text))


def slices(
    names: Sequence[Any], apart: FloatArray, sample: Resampler, fewest: int = 10
) -> dict[str, dict[str, Any]]:
    """For each value of a column the mean distance to the label, and whether it is another than
    in all other rows, corrected for the number of slices. Slices of under `fewest` rows are told
    without a test."""
    from pt_app.evidence.summary import mean_metric

    found, tests = {}, {}
    for name in sorted({str(name) for name in names}):
        inside = np.array([str(one) == name for one in names])
        found[name] = {"distance": mean_metric(np.where(inside, apart, np.nan), sample)}
        if inside.sum() >= fewest and (~inside).sum() >= fewest:
            tests[name] = _difference_of_means(apart, inside, sample)
    for name, one in corrected(tests).items():
        found[name]["difference"] = one
    return found


def _difference_of_means(values: FloatArray, inside: Any, sample: Resampler) -> Metric:
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    parts = [filled * inside, known & inside, filled * ~inside, known & ~inside]

    def difference(sums: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"difference": sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]}

    found = sample.estimate_sums(np.stack(parts, axis=1).astype(np.float64), difference)
    return check(found["difference"], int((known & inside).sum()), sample)
