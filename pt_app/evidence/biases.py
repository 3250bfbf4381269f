"""What moves a judge beside the label: leniency, position, length, copied source; and slices.

Each check is a number that is 0 for a judge without that bias, with interval, p, and p corrected
for the number of checks (Holm): a judge without any bias is accused of one in 5 of 100 test sets.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.orders import flipped
from pt_app.core.verdicts import Scale
from pt_app.core.words import words
from pt_app.evidence.coding import worth_of
from pt_app.evidence.comparison import holm
from pt_app.evidence.intervals import Estimate, Resampler
from pt_app.evidence.summary import Metric, mean_metric, metric, share_metric

ALARM = 0.05  # of the corrected p
MIN_SLICE = 10  # rows; a smaller slice is not tested
Row = Mapping[str, Any]


def check(estimate: Estimate, n: int, sample: Resampler) -> Metric:
    """Return a number that should be 0, with its p by Student's t over groups (None: undefined)."""
    from scipy.special import stdtr

    p = None
    if estimate.value is not None and estimate.error:
        p = 2 * float(stdtr(sample.groups - 1, -abs(estimate.value) / estimate.error))
    return metric(estimate, n) | {"p": p}


def corrected(checks: Mapping[str, Metric]) -> dict[str, Metric]:
    """Add "p_holm" and "alarm" to each check."""
    adjusted = holm([check["p"] for check in checks.values()])
    return {
        name: check | {"p_holm": p, "alarm": p is not None and p <= ALARM}
        for (name, check), p in zip(checks.items(), adjusted, strict=True)
    }


def errors_of(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Return how much too lenient each verdict is [n], NaN for a parse failure.

    It is verdict less label in units of the scale; 1, 0 or -1 for pass and fail; for a pair how
    much too good the verdict is for the first candidate, a tie being a half.
    """
    worth = worth_of(scale)
    return np.where(verdicts < 0, np.nan, worth[verdicts] - worth[labels])


def mean_check(values: FloatArray, sample: Resampler) -> Metric:
    """Check whether the mean of `values` (NaN does not count) is 0."""
    return check(*sample.mean(values), sample)


def partial_correlation(
    errors: FloatArray, feature: FloatArray, labels: IntArray, sample: Resampler
) -> Metric:
    """Check the correlation of error and feature among rows of one label, pooled over the labels.

    Rows with NaN do not count. What a feature rightly says about the label has no effect here.
    """
    counted = ~(np.isnan(errors) | np.isnan(feature))
    e, f = np.where(counted, errors, 0.0), np.where(counted, feature, 0.0)
    f = f - f[counted].mean() if counted.any() else f  # against rounding only
    of_label = np.eye(int(labels.max()) + 1)[labels] * counted[:, None]
    moments = [np.ones_like(e), e, f, e * e, f * f, e * f]
    columns = np.concatenate([of_label * moment[:, None] for moment in moments], axis=1)

    def correlation(sums: FloatArray) -> dict[str, FloatArray]:
        n, e, f, ee, ff, ef = np.split(sums, 6, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            e_mean, f_mean = np.where(n > 0, e / n, 0), np.where(n > 0, f / n, 0)
            both = (ef - e * f_mean).sum(axis=1)
            spread = (ee - e * e_mean).sum(axis=1) * (ff - f * f_mean).sum(axis=1)
            return {"pearson": both / np.sqrt(np.where(spread > 1e-9, spread, np.nan))}

    estimate = sample.estimate_sums(columns, correlation)["pearson"]
    return check(estimate, int(counted.sum()), sample)


def length_of(rows: Sequence[Row], scale: Scale) -> FloatArray:
    """Return log(1 + characters) of each candidate; of a pair the first's less the second's."""
    return np.array([_of_candidates(row, scale, lambda text: np.log1p(len(text))) for row in rows])


def copied_of(rows: Sequence[Row], scale: Scale) -> FloatArray:
    """Return the share of each candidate's words that occur in the source; NaN without a source."""

    def share(row: Row) -> float:
        source = set(words(row.get("source") or ""))

        def copied(text: str) -> float:
            own = words(text)
            return sum(word in source for word in own) / len(own) if own else 0.0

        return _of_candidates(row, scale, copied) if source else np.nan

    return np.array([share(row) for row in rows])


def _of_candidates(row: Row, scale: Scale, feature: Callable[[str], float]) -> float:
    if scale.task == "pairwise":
        pair = row.get("candidates")
        return float(feature(pair[0]) - feature(pair[1])) if pair else float("nan")
    text = row.get("candidate")
    return float("nan") if text is None else float(feature(text))


def share_won_by_longer(pairs: Sequence[Sequence[str]], verdicts: Sequence[object]) -> float:
    """Return the share of pairs that the longer candidate wins, in characters.

    A tie, and a pair of equal lengths, counts as half, so that 0.5 means that length says nothing.

    Raises:
        ZeroDivisionError: without a pair.
    """
    won = 0.0
    for (first, second), verdict in zip(pairs, verdicts, strict=True):
        tied = verdict == "tie" or len(first) == len(second)
        won += 0.5 if tied else verdict == ("A" if len(first) > len(second) else "B")
    return won / len(pairs)


def slices(names: Sequence[Any], apart: FloatArray, sample: Resampler) -> dict[str, dict[str, Any]]:
    """Return the mean distance to the label for each value of a column, and compare it.

    The difference to all other rows is tested and corrected for the number of slices, except for
    slices of under `MIN_SLICE` rows.

    Args:
        names: the column's value of each row [n].
        apart: the distance of each verdict to its label [n].
        sample: the groups of the rows.
    """
    by_name, tests = {}, {}
    for name in sorted({str(name) for name in names}):
        inside = np.array([str(other) == name for other in names])
        by_name[name] = {"distance": mean_metric(np.where(inside, apart, np.nan), sample)}
        if inside.sum() >= MIN_SLICE and (~inside).sum() >= MIN_SLICE:
            tests[name] = _difference_of_means(apart, inside, sample)
    for name, test in corrected(tests).items():
        by_name[name]["difference"] = test
    return by_name


def _difference_of_means(values: FloatArray, inside: Any, sample: Resampler) -> Metric:
    defined = ~np.isnan(values)
    filled = np.where(defined, values, 0.0)
    columns = [filled * inside, defined & inside, filled * ~inside, defined & ~inside]

    def difference(sums: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"difference": sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]}

    estimates = sample.estimate_sums(np.stack(columns, axis=1).astype(np.float64), difference)
    return check(estimates["difference"], int((defined & inside).sum()), sample)


def columns_of_orders(rows: Sequence[Row]) -> tuple[str, str]:
    """Name the columns of the verdicts in both orders: the constrained ones where they exist."""
    if any(row.get("swapped_constrained") is not None for row in rows):
        return "constrained", "swapped_constrained"
    return "verdict", "swapped"


def orders(
    rows: Sequence[Row], labels: IntArray, verdicts: IntArray, sample: Resampler, scale: Scale
) -> dict[str, Any]:
    """Count which winner each order of a pair gave; and the accuracy by the better one's position.

    Returns:
        "flips" has entries of "first", "swapped" (both as the winner in the first order; null: a
        parse failure) and "n". "right_if_better_is" has the accuracy among the pairs whose label
        is A (shown first), and among those whose label is B.
    """
    first, swapped = columns_of_orders(rows)
    pairs = [(row[first], flipped(row.get(swapped))) for row in rows if swapped in row]
    right = (labels == verdicts).astype(np.float64)

    def accuracy(better: str) -> Metric:
        counted = (labels == scale.values.index(better)) & (verdicts >= 0)
        return share_metric(np.where(counted, right, np.nan), sample)

    return {
        "flips": [
            {"first": winner, "swapped": other, "n": n}
            for (winner, other), n in sorted(Counter(pairs).items(), key=str)
        ],
        "right_if_better_is": {better: accuracy(better) for better in ("A", "B")},
    }
