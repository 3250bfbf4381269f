"""Agreement of labels with scores of any range, such as a learned metric's: by rank and by line."""

import math

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.evidence.intervals import Estimate, Resampler, jackknife_interval
from pt_app.evidence.summary import Metric, metric

BLOCK = 1 << 22  # pairs compared at once


def rank_agreement(labels: FloatArray, scores: FloatArray, sample: Resampler) -> dict[str, Metric]:
    """Pearson, Spearman and Kendall's tau-b of labels and scores, each with its interval.

    Rows whose score is NaN do not count. The interval of tau is a jackknife over groups, which
    costs one pass over all pairs of rows (a second or two for 10,000).
    """
    kept = ~np.isnan(scores)
    n = int(kept.sum())

    def numbers(weights: FloatArray) -> dict[str, FloatArray]:
        weights = weights[:, kept]
        x, y = labels[kept], scores[kept]
        ranks = _midranks(x, weights), _midranks(y, weights)
        return {
            "pearson": weighted_pearson(x[None], y[None], weights),
            "spearman": weighted_pearson(ranks[0], ranks[1], weights),
        }

    found = {name: metric(one, n) for name, one in sample.estimate(numbers, 4 * n).items()}
    tau = _kendall(labels[kept], scores[kept], sample.index[kept])
    return found | {"kendall": metric(tau, n)}


def weighted_pearson(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Pearson's correlation of x and y, [1 or r, n], under each row of weights [r, n]."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x - (weights * x).sum(axis=1, keepdims=True) / total
        y = y - (weights * y).sum(axis=1, keepdims=True) / total
        spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
        spread = np.where(spread > 1e-18 * total[:, 0] ** 2, spread, np.nan)
        result: FloatArray = (weights * x * y).sum(axis=1) / np.sqrt(spread)
    return result


def _midranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Rank of each row among the drawn ones, ties sharing the middle, [r, n]."""
    place = np.unique(values, return_inverse=True)[1]
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = count.cumsum(axis=1) - count / 2
    ranks: FloatArray = middle[:, place]
    return ranks


def _kendall(x: FloatArray, y: FloatArray, groups: IntArray) -> Estimate:
    n = len(x)
    names, index = np.unique(groups, return_inverse=True)
    members = len(names)
    # For each group: pairs with all rows, less once those inside itself, [3, groups].
    with_all, inside = np.zeros((3, members)), np.zeros((3, members))
    step = max(1, BLOCK // max(1, n))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        dx = np.sign(x[rows, None] - x)
        dy = np.sign(y[rows, None] - y)
        for i, pairs in enumerate((dx * dy, np.abs(dx), np.abs(dy))):
            with_all[i] += np.bincount(index[rows], pairs.sum(axis=1), minlength=members)
            own = (pairs * (index[rows, None] == index)).sum(axis=1)
            inside[i] += np.bincount(index[rows], own, minlength=members)

    def tau(sums: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: FloatArray = sums[0] / np.sqrt(sums[1] * sums[2])
        return found

    total = with_all.sum(axis=1, keepdims=True)
    value = float(tau(total)[0]) if n else math.nan
    if members < 2:
        return Estimate(value if math.isfinite(value) else None)
    return jackknife_interval(value, tau(total - 2 * with_all + inside), "kendall")
