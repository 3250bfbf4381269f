"""Intervals of numbers over rows that come in groups: rows of one source depend on each other.

With 20 groups or more they come from the cluster bootstrap, which draws whole groups; with fewer
from the delete-one-group jackknife and Student's t. docs/EVIDENCE.md says how often they cover.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pt_app.core.formatting import BOUNDS
from pt_app.core.metrics import FloatArray
from pt_app.core.results import Metric, Metrics, Spread

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RESAMPLES = 2000
CONFIDENCE = 0.95
Z = 1.96  # of a 95 % interval
FEW_GROUPS = 20
# How many numbers one array of a chunk of resamples holds: 16 MiB of float64.
CHUNK_NUMBERS = 1 << 21
# The number must be defined in this share of the resamples, or it has no interval.
DEFINED_SHARE = 0.95

Columns: TypeAlias = "FloatArray | csr_array"
_Columns = TypeVar("_Columns", bound=Columns)
# Takes weights [r, n], how often each row or group was drawn; returns the number in each draw [r],
# by name. The name decides on which scale `jackknife_interval` works. Divisions by 0 are silent.
Statistic = Callable[[FloatArray], dict[str, FloatArray]]
_Map = Callable[[FloatArray], FloatArray]
# For each bound of a number a scale on which it is nearer to normal, and the way back: Fisher's z,
# the arcsine of the root, the logarithm. Rounding can take a mean of probabilities past 1.
_SCALES: dict[str, tuple[_Map, _Map]] = {
    # The z of 1 is infinite.
    "correlation": (lambda x: np.arctanh(np.clip(x, -1 + 1e-9, 1 - 1e-9)), np.tanh),
    "share": (
        lambda x: np.arcsin(np.sqrt(np.clip(x, 0, 1))),
        lambda z: np.sin(np.clip(z, 0, math.pi / 2)) ** 2,
    ),
    "error": (lambda x: np.log(np.maximum(x, 1e-9)), np.exp),
    "none": (lambda x: x, lambda x: x),
}


class Resampler:
    """Draw groups with replacement, with the same draws for every statistic of one seed.

    Equal draws make the intervals of two judges on the same rows comparable, and their difference
    a paired one. In all methods `n` is how many rows count, for the result; None: all.
    """

    def __init__(
        self, groups: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        """Number the groups.

        Args:
            groups: the group of each row [n].
            resamples: how many draws, at least 1.
            seed: of the draws.
        """
        positions: dict[Hashable, int] = {}
        index = [positions.setdefault(group, len(positions)) for group in groups]
        self.index = np.array(index, dtype=np.int64)
        self.groups = len(positions)
        self.resamples = resamples
        self.seed = seed

    @property
    def few_groups(self) -> bool:
        """Whether there are too few groups (under 20) for a bootstrap."""
        return self.groups < FEW_GROUPS

    def among(self, rows: npt.NDArray[np.bool_]) -> "Resampler":
        """Return one of the groups that these rows [n] are in, with equal settings."""
        return Resampler(self.index[rows].tolist(), self.resamples, self.seed)

    def estimate(self, statistic: Statistic, n: int | None = None, size: int = 1) -> Metrics:
        """Return each number of `statistic` on all rows, with its interval.

        Args:
            statistic: a function of the weights of the rows.
            n: how many rows count.
            size: how many numbers the statistic holds per resample, which bounds the chunks.
        """
        size = max(size, len(self.index))
        return self._estimate(lambda counts: statistic(counts[:, self.index]), size, n)

    def estimate_sums(
        self, columns: Columns, statistic: Statistic, n: int | None = None
    ) -> Metrics:
        """Return the same for a statistic of sums over rows, which takes sums [r, m].

        Groups are summed once, so that a resample costs groups x m.

        Args:
            columns: what is summed over the rows [n, m], dense or sparse.
            statistic: a function of the sums.
            n: how many rows count.
        """
        return self.estimate_group_sums(self.sums(columns), statistic, n)

    def estimate_group_sums(
        self, sums: Columns, statistic: Statistic, n: int | None = None
    ) -> Metrics:
        """Return the same from the sums [groups, m] that `Resampler.sums` returned."""
        return self._estimate(lambda counts: statistic(counts @ sums), sums.shape[1], n)

    def sums(self, columns: _Columns) -> _Columns:
        """Sum `columns` [n, m], dense or sparse, over the rows of each group: [groups, m]."""
        from scipy.sparse import csr_array

        rows = len(self.index)
        members = csr_array(
            (np.ones(rows), (self.index, np.arange(rows))), shape=(self.groups, rows)
        )
        sums: _Columns = members @ columns
        return sums

    def mean(self, values: Sequence[float | None] | FloatArray, name: str = "mean") -> Metric:
        """Return the mean of `values` [n] with its interval; None and NaN do not count."""
        columns = with_counts(np.array(values, dtype=np.float64))
        return self.estimate_sums(columns, ratio(name), int(columns[:, 1].sum()))[name]

    def share(self, values: Sequence[float | None] | FloatArray) -> Metric:
        """Return the mean of `values` between 0 and 1, whose interval stays there."""
        return self.mean(values, "share")

    def _estimate(self, statistic: Statistic, size: int, n: int | None) -> Metrics:
        """Return value and interval of each number of a function of the groups' weights."""
        n = len(self.index) if n is None else n
        with np.errstate(invalid="ignore", divide="ignore"):
            values = statistic(np.ones((1, self.groups)))
            if self.groups < 2:
                return {name: Metric.of(float(value[0]), n) for name, value in values.items()}
            counts = 1 - np.eye(self.groups, dtype=np.int8) if self.few_groups else self._counts
            chunk = max(1, CHUNK_NUMBERS // max(size, self.groups))
            starts = range(0, len(counts), chunk)
            parts = [statistic(counts[i : i + chunk].astype(np.float64)) for i in starts]
        metrics = {}
        for name, (value,) in values.items():
            drawn = np.concatenate([part[name] for part in parts])
            jackknifed = jackknife_interval(float(value), drawn, name) if self.few_groups else None
            spread = jackknifed or percentile_interval(drawn, self.groups)
            metrics[name] = Metric.of(float(value), n, spread)
        return metrics

    @cached_property
    def _counts(self) -> npt.NDArray[np.uint8]:
        """How often each resample holds each group, [resamples, groups]."""
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK_NUMBERS // self.groups)
        parts = []
        for start in range(0, self.resamples, chunk):
            count = min(chunk, self.resamples - start)
            draws = rng.integers(0, self.groups, size=(count, self.groups))
            draws += np.arange(count)[:, None] * self.groups
            counts = np.bincount(draws.ravel(), minlength=count * self.groups)
            parts.append(counts.reshape(count, self.groups).astype(np.uint8))
        return np.concatenate(parts)


def with_counts(values: FloatArray) -> FloatArray:
    """Return columns [n, 2] for `ratio`: `values` with 0 for NaN, and 1 where there is a value."""
    defined = ~np.isnan(values)
    return np.stack([np.where(defined, values, 0.0), defined], axis=1)


def ratio(name: str) -> Statistic:
    """Return the statistic `name` of sums [r, 2]: the first sum divided by the second."""

    return lambda sums: {name: sums[:, 0] / sums[:, 1]}


def percentile_interval(drawn: FloatArray, groups: int) -> Spread:
    """Return the 95 % interval of resampled values and their standard deviation.

    The plain percentile interval is too narrow by about sqrt((G - 1) / G), and because it ignores
    Student's t; the expanded one takes the percentiles that a t interval would reach
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    """
    from scipy.special import ndtr, stdtrit

    defined = drawn[np.isfinite(drawn)]
    if len(defined) < max(1.0, DEFINED_SHARE * len(drawn)):
        return None, None, None
    tail = (1 - CONFIDENCE) / 2
    tail = float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, tail)))
    low, high = np.quantile(defined, [tail, 1 - tail]).tolist()
    return low, high, float(defined.std())


def jackknife_interval(value: float, left_out: FloatArray, name: str) -> Spread:
    """Return the 95 % interval and the standard error; None if they are undefined.

    Efron and Stein 1981, with Student's t, on the scale on which the number `name` is nearest to
    normal: Fisher's z for correlations, the arcsine for shares, the logarithm for errors.

    Args:
        value: the number on all rows.
        left_out: the number without each group in turn [groups].
        name: of the number.
    """
    from scipy.special import stdtrit

    groups = len(left_out)
    if not math.isfinite(value) or not np.isfinite(left_out).all():
        return None, None, None
    error = _jackknife_error(left_out)
    if error == 0:
        return value, value, error
    there, back = _SCALES[BOUNDS.get(name, "none")]
    middle = float(there(np.array(value)))
    reach = -stdtrit(groups - 1, (1 - CONFIDENCE) / 2) * _jackknife_error(there(left_out))
    low, high = back(np.array([middle - reach, middle + reach])).tolist()
    return low, high, error


def _jackknife_error(left_out: FloatArray) -> float:
    groups = len(left_out)
    return math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of `n` independent rows (Wilson 1927).

    Unlike a bootstrap it has a width where no row or every row counts. Without rows it is [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # Of no row and of every row the bound is exact, which rounding would miss.
    return centre - half if share > 0 else 0.0, centre + half if share < 1 else 1.0
