"""What moves a judge beside the label: leniency, position, length, copied source; and slices.

Each check is a number that is 0 for a judge without that bias, with interval, p, and p corrected
for the number of checks (Holm): a judge without any bias is accused of one in 5 of 100 test sets.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

import numpy as np
import numpy.typing as npt

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.orders import flipped
from pt_app.core.results import Check, Flip, Metric, Orders, Prediction, Slice
from pt_app.core.verdicts import Scale, Verdict
from pt_app.core.words import words
from pt_app.evidence.coding import worth_of
from pt_app.evidence.comparison import holm
from pt_app.evidence.intervals import Resampler, with_counts

ALARM = 0.05  # of the corrected p
MIN_SLICE = 10  # rows; a smaller slice is not tested


def corrected(checks: dict[str, Check]) -> dict[str, Check]:
    """Set the corrected p and the alarm of each check, and return the checks."""
    adjusted = holm([check.p for check in checks.values()])
    for check, p in zip(checks.values(), adjusted, strict=True):
        check.p_holm, check.alarm = p, p is not None and p <= ALARM
    return checks


def _check(metric: Metric, sample: Resampler) -> Check:
    """Return a number that should be 0, with its p by Student's t over groups (None: undefined).

    Where every group gives the same number, as of a judge that always prefers the first position,
    t is infinite. The p is then that of the sign test: that all groups err to one side by chance.
    """
    from scipy.special import stdtr

    p = None
    if metric.value and metric.error is not None:
        size = abs(metric.value)
        if metric.error > 1e-12 * size:  # else the spread is that of rounding
            p = 2 * float(stdtr(sample.groups - 1, -size / metric.error))
        else:
            p = 0.5 ** (min(sample.groups, metric.n) - 1)
    return metric.extended(Check, p=p)


def errors_of(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Return how much too lenient each verdict is [n], NaN for a parse failure.

    It is verdict less label in units of the scale; 1, 0 or -1 for pass and fail; for a pair how
    much too good the verdict is for the first candidate, a tie being a half.
    """
    worth = worth_of(scale)
    return np.where(verdicts < 0, np.nan, worth[verdicts] - worth[labels])


def mean_check(values: FloatArray, sample: Resampler) -> Check:
    """Check whether the mean of `values` (NaN does not count) is 0."""
    return _check(sample.mean(values), sample)


def partial_correlation(
    errors: FloatArray, feature: FloatArray, labels: IntArray, sample: Resampler
) -> Check:
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
        e_mean, f_mean = np.where(n > 0, e / n, 0), np.where(n > 0, f / n, 0)
        both = (ef - e * f_mean).sum(axis=1)
        spread = (ee - e * e_mean).sum(axis=1) * (ff - f * f_mean).sum(axis=1)
        return {"pearson": both / np.sqrt(np.where(spread > 1e-9, spread, np.nan))}

    metrics = sample.estimate_sums(columns, correlation, int(counted.sum()))
    return _check(metrics["pearson"], sample)


def length_of(rows: Sequence[Prediction], scale: Scale) -> FloatArray:
    """Return log(1 + characters) of each candidate; of a pair the first's less the second's."""
    return np.array([_of_candidates(row, scale, lambda text: np.log1p(len(text))) for row in rows])


def copied_of(rows: Sequence[Prediction], scale: Scale) -> FloatArray:
    """Return the share of each candidate's words that occur in the source; NaN without a source."""

    def copied(source: set[str], text: str) -> float:
        own = words(text)
        return sum(word in source for word in own) / max(1, len(own))

    sources = [set(words(row.source or "")) for row in rows]
    shares = [
        _of_candidates(row, scale, partial(copied, source)) if source else np.nan
        for row, source in zip(rows, sources, strict=True)
    ]
    return np.array(shares)


def _of_candidates(row: Prediction, scale: Scale, feature: Callable[[str], float]) -> float:
    if scale.task == "pairwise":
        pair = row.candidates
        return float(feature(pair[0]) - feature(pair[1])) if pair else np.nan
    return np.nan if row.candidate is None else float(feature(row.candidate))


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


def slices(names: Sequence[str | None], apart: FloatArray, sample: Resampler) -> dict[str, Slice]:
    """Return the mean distance to the label for each value of a column, and compare it.

    The difference to all other rows is tested and corrected for the number of slices, except for
    slices of under `MIN_SLICE` rows.

    Args:
        names: the column's value of each row [n].
        apart: the distance of each verdict to its label [n].
        sample: the groups of the rows.
    """
    by_name, tests = {}, {}
    column = [str(name) for name in names]
    for name in sorted(set(column)):
        inside = np.array([other == name for other in column])  # numpy's own text loses a last \0
        by_name[name] = Slice(distance=sample.mean(np.where(inside, apart, np.nan)))
        if inside.sum() >= MIN_SLICE and (~inside).sum() >= MIN_SLICE:
            tests[name] = _difference_of_means(apart, inside, sample)
    for name, test in corrected(tests).items():
        by_name[name].difference = test
    return by_name


def _difference_of_means(
    values: FloatArray, inside: npt.NDArray[np.bool_], sample: Resampler
) -> Check:
    parts = [with_counts(np.where(rows, values, np.nan)) for rows in (inside, ~inside)]

    def difference(sums: FloatArray) -> dict[str, FloatArray]:
        return {"difference": sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]}

    n, columns = int(parts[0][:, 1].sum()), np.concatenate(parts, axis=1)
    return _check(sample.estimate_sums(columns, difference, n)["difference"], sample)


def verdicts_of_orders(
    rows: Sequence[Prediction],
) -> tuple[list[Verdict | None], list[Verdict | None]]:
    """Return the verdicts on pairs in each order alone, in that order's own letters."""
    return [row.in_one_order for row in rows], [row.swapped for row in rows]


def by_order(
    labels: Sequence[Verdict], first: Sequence[Verdict | None], swapped: Sequence[Verdict | None]
) -> dict[str, FloatArray]:
    """Compare the verdicts on pairs with those on the same pairs in their other order.

    Returns:
        Whether each pair is right in the other order, right in both, and has one winner in both: 1
        or 0, NaN where an order that counts gave no verdict; and its `first_preference`.
    """
    pairs = list(zip(first, map(flipped, swapped), labels, strict=True))
    both = [None not in (a, b) for a, b, _ in pairs]
    return {
        "accuracy_swapped": np.array([np.nan if b is None else b == y for _, b, y in pairs]),
        "accuracy_both_orders": np.where(both, [a == b == y for a, b, y in pairs], np.nan),
        "order_consistency": np.where(both, [a == b for a, b, _ in pairs], np.nan),
        "first_preference": first_preference(first, swapped),
    }


def first_preference(
    first: Sequence[Verdict | None], swapped: Sequence[Verdict | None]
) -> FloatArray:
    """Return the share of the two verdicts on each pair, without ties, for the first position [n].

    It is NaN for two ties and for a parse failure. A judge without position bias has a mean of 0.5.
    """
    shares: list[float] = []
    for pair in zip(first, swapped, strict=True):
        winners = [verdict for verdict in pair if verdict in ("A", "B")]
        usable = winners and None not in pair
        shares.append(winners.count("A") / len(winners) if usable else np.nan)
    return np.array(shares)


def orders(rows: Sequence[Prediction], labels: Sequence[Verdict], sample: Resampler) -> Orders:
    """Count which winner each order of a pair gave; and the accuracy by the better one's position.

    Returns:
        The flips have both winners as in the first order (None: a parse failure). The accuracy is
        that among the pairs whose label is A (shown first), and among those whose label is B.
    """
    first, swapped = verdicts_of_orders(rows)
    pairs = zip(first, map(flipped, swapped), strict=True)
    counts = Counter(compress(pairs, [row.in_both_orders for row in rows]))
    known = zip(labels, first, strict=True)
    right = np.array([np.nan if verdict is None else label == verdict for label, verdict in known])
    better = np.array(labels)
    ordered = sorted(counts.items(), key=str)
    return Orders(
        flips=[Flip(first=winner, swapped=other, n=n) for (winner, other), n in ordered],
        right_if_better_is={
            place: sample.share(np.where(better == place, right, np.nan)) for place in ("A", "B")
        },
    )
