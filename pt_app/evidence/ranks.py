"""Agreement of labels with scores of any range, such as a learned metric's: correlations."""

import math

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Metric, Metrics
from pt_app.evidence.intervals import Resampler, jackknife_interval

BLOCKS = 100  # of groups, at most, that a jackknife leaves out one by one


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

    Rows whose score is NaN do not count. The interval of tau is a jackknife over groups, since a
    bootstrap would cost thousands of sorts. More groups than `BLOCKS` are left out in that many
    blocks.
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
    """Return tau-b (1945) of x and y [n], with its jackknife over blocks of `groups` [n]."""
    from scipy.stats import kendalltau

    if len(x) < 2:
        return Metric.of(math.nan, len(x))
    value = float(kendalltau(x, y).statistic)
    block = np.unique(groups, return_inverse=True)[1] % BLOCKS
    if (count := int(block.max()) + 1) < 2:
        return Metric.of(value, len(x))
    left_out = [
        float(kendalltau(x[kept], y[kept]).statistic) if kept.sum() > 1 else math.nan
        for kept in (block != b for b in range(count))
    ]
    return Metric.of(value, len(x), jackknife_interval(value, np.array(left_out), "kendall"))
