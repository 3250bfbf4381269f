"""Agreement of labels with scores of any range, such as a learned metric's: correlations."""

import math

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Metric, Metrics
from pt_app.evidence.intervals import Resampler, jackknife_interval

BLOCK = 1 << 22  # pairs compared at once


class Levels:
    """Rows in the order of `values` [n], rows of equal values together as one level."""

    def __init__(self, values: FloatArray) -> None:
        self.of_row = np.unique(values, return_inverse=True)[1]
        self._order = np.argsort(self.of_row, kind="stable")
        self._starts = np.flatnonzero(np.diff(self.of_row[self._order], prepend=-1))

    def sums(self, weights: FloatArray) -> FloatArray:
        """Sum `weights` [r, n] over the rows of each level, the lowest first: [r, levels]."""
        sums: FloatArray = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return sums

    def midranks(self, weights: FloatArray) -> FloatArray:
        """Return the rank of each row among the drawn ones [r, n], ties sharing the middle one."""
        count = self.sums(weights)
        return np.asarray((count.cumsum(axis=1) - count / 2)[:, self.of_row], np.float64)


def rank_agreement(labels: FloatArray, scores: FloatArray, sample: Resampler) -> Metrics:
    """Return Pearson's r, Spearman's rho and Kendall's tau-b of labels and scores, with intervals.

    Rows whose score is NaN do not count. The interval of tau is a jackknife over groups, which
    costs one pass over all pairs of rows (a second or two for 10,000).
    """
    kept = ~np.isnan(scores)
    n, x, y = int(kept.sum()), labels[kept], scores[kept]
    of_x, of_y = Levels(x), Levels(y)

    def numbers(weights: FloatArray) -> dict[str, FloatArray]:
        weights = weights[:, kept]
        ranks = of_x.midranks(weights), of_y.midranks(weights)
        return {
            "pearson": weighted_pearson(x[None], y[None], weights),
            "spearman": weighted_pearson(*ranks, weights),
        }

    return sample.estimate(numbers, n, 4 * n) | {"kendall": _kendall(x, y, sample.index[kept])}


def weighted_pearson(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Return Pearson's r of x and y [1 or r, n] under each row of weights [r, n]: [r]."""
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x - (weights * x).sum(axis=1, keepdims=True) / total
        y = y - (weights * y).sum(axis=1, keepdims=True) / total
        spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
        spread = np.where(spread > 1e-18 * total[:, 0] ** 2, spread, np.nan)
        return np.asarray((weights * x * y).sum(axis=1) / np.sqrt(spread), np.float64)


def mean_of_defined(columns: FloatArray) -> FloatArray:
    """Return the mean over [k, r] along k of what is finite: [r]; NaN if nothing is."""
    defined = np.isfinite(columns)
    return np.asarray(np.where(defined, columns, 0).sum(axis=0) / defined.sum(axis=0), np.float64)


def _kendall(x: FloatArray, y: FloatArray, groups: IntArray) -> Metric:
    """Return tau-b (1945) of x and y [n], with its jackknife over `groups` [n]."""
    n = len(x)
    names, index = np.unique(groups, return_inverse=True)
    members = len(names)
    # For each group its pairs with all rows, and those within the group, [3, groups]: of each the
    # concordant less the discordant pairs, and those untied in x and in y.
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
            return np.asarray(sums[0] / np.sqrt(sums[1] * sums[2]), np.float64)

    total = with_all.sum(axis=1, keepdims=True)
    value = float(tau(total)[0]) if n else math.nan
    if members < 2:
        return Metric.of(value, n)
    # The sums run over ordered pairs: without a group its rows are gone on either side, and the
    # pairs within it, which that subtracts twice, are added once.
    left_out = tau(total - 2 * with_all + inside)
    return Metric.of(value, n, jackknife_interval(value, left_out, "kendall"))
