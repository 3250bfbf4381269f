"""Intervals of numbers over rows that come in groups: rows of one source depend on each other.

From 20 groups on by the cluster bootstrap, in which whole groups are drawn; with fewer by the
delete-one-group jackknife and Student's t. docs/RESULTS_JSON.md says how often they cover.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pt_app.core.metrics import CORRELATIONS, ERRORS, SHARES, FloatArray

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_GROUPS = 20
# Numbers held at once in one array of a chunk of resamples: 16 MiB of float64.
CHUNK_NUMBERS = 1 << 21
# An interval needs this share of resamples in which the number is defined.
DEFINED_SHARE = 0.95

# Weights [r, n] (how often each row, or group, was drawn) -> name -> the number in each draw [r].
Statistic = Callable[[FloatArray], dict[str, FloatArray]]
_Map = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval and standard error; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    error: float | None = None


class Resampler:
    """Draws groups with replacement, the same draws for every statistic of one seed.

    Equal draws make the intervals of two judges on the same rows comparable, and a difference
    paired.
    """

    def __init__(
        self, groups: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        """`groups` [n]: the group of each row; `resamples` at least 1."""
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

    def estimate(self, statistic: Statistic, size: int = 1) -> dict[str, Estimate]:
        """Value of each number of `statistic` on all rows, with its interval.

        `statistic` takes weights of rows. `size` is how many numbers it makes of one resample: it
        bounds the chunks.
        """
        return self._estimate(
            lambda counts: statistic(counts[:, self.index]), max(size, len(self.index))
        )

    def estimate_sums(self, columns: Any, statistic: Statistic) -> dict[str, Estimate]:
        """The same for a statistic of sums over rows: it takes [r, m] sums of `columns` [n, m].

        Groups are summed once, so that a resample costs groups x m. `columns` may be sparse.
        """
        return self.estimate_group_sums(self.sums(columns), statistic)

    def estimate_group_sums(self, sums: Any, statistic: Statistic) -> dict[str, Estimate]:
        """The same from the `sums` [groups, m] of `Resampler.sums`."""
        return self._estimate(lambda counts: statistic(counts @ sums), sums.shape[1])

    def sums(self, columns: Any) -> Any:
        """Sums of `columns` [n, m], dense or sparse, over the rows of each group, [groups, m]."""
        from scipy.sparse import csr_array

        rows = len(self.index)
        members = csr_array(
            (np.ones(rows), (self.index, np.arange(rows))), shape=(self.groups, rows)
        )
        return members @ columns

    def _estimate(self, statistic: Statistic, size: int) -> dict[str, Estimate]:
        """Value and interval of each number of `statistic`, which takes weights of groups."""
        values = statistic(np.ones((1, self.groups)))
        if self.groups < 2:
            return {name: Estimate(_number(value[0])) for name, value in values.items()}
        counts = 1 - np.eye(self.groups, dtype=np.int8) if self.few_groups else self._counts
        chunk = max(1, CHUNK_NUMBERS // max(size, self.groups))
        parts = [
            statistic(counts[start : start + chunk].astype(np.float64))
            for start in range(0, len(counts), chunk)
        ]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self.few_groups:
            return {n: jackknife_interval(float(v[0]), found[n], n) for n, v in values.items()}
        return {
            name: Estimate(
                _number(value[0]),
                *percentile_interval(found[name], self.groups),
                _spread(found[name]),
            )
            for name, value in values.items()
        }

    @cached_property
    def _counts(self) -> npt.NDArray[np.integer[Any]]:
        """How often each group is in each resample, [resamples, groups]."""
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK_NUMBERS // self.groups)
        parts = []
        for start in range(0, self.resamples, chunk):
            count = min(chunk, self.resamples - start)
            draws = rng.integers(0, self.groups, size=(count, self.groups))
            draws += np.arange(count)[:, None] * self.groups
            found = np.bincount(draws.ravel(), minlength=count * self.groups)
            parts.append(found.reshape(count, self.groups).astype(np.uint8))
        return np.concatenate(parts)


def mean_of_sums(sums: FloatArray) -> dict[str, FloatArray]:
    """The statistic "mean" of sums [r, 2]: of values, and of how many rows have one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"mean": sums[:, 0] / sums[:, 1]}


def share_of_sums(sums: FloatArray) -> dict[str, FloatArray]:
    """The same of values between 0 and 1, whose interval stays there: "share"."""
    return {"share": mean_of_sums(sums)["mean"]}


def percentile_interval(drawn: FloatArray, groups: int) -> tuple[float | None, float | None]:
    """95 % interval of resampled values: percentiles widened for the number of groups.

    The plain percentile interval is too narrow by about sqrt((G - 1) / G) and for want of
    Student's t; the expanded one takes the percentiles that a t interval would reach
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    """
    from scipy.special import ndtr, stdtrit

    defined = drawn[np.isfinite(drawn)]
    if len(defined) < max(1.0, DEFINED_SHARE * len(drawn)):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    tail = float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, tail)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def jackknife_interval(value: float, left_out: FloatArray, name: str) -> Estimate:
    """95 % interval from the number without each group in turn, `left_out` [groups].

    Efron and Stein 1981, with Student's t, on the scale on which the number `name` is nearest to
    normal: Fisher's z for correlations, the arcsine for shares, the logarithm for errors.
    """
    from scipy.special import stdtrit

    groups = len(left_out)
    if not math.isfinite(value) or not np.isfinite(left_out).all():
        return Estimate(_number(value))
    error = _jackknife_error(left_out)
    if error == 0:
        return Estimate(value, value, value, error)
    there, back = _scale_of(name)
    middle = float(there(np.array(value)))
    reach = -stdtrit(groups - 1, (1 - CONFIDENCE) / 2) * _jackknife_error(there(left_out))
    low, high = back(np.array([middle - reach, middle + reach])).tolist()
    return Estimate(value, low, high, error)


def _scale_of(name: str) -> tuple[_Map, _Map]:
    """The map of a number to a scale on which it is nearer to normal, and the way back."""
    if name in CORRELATIONS:
        inside = 1 - 1e-9  # the z of 1 is infinite
        return (lambda x: np.arctanh(np.clip(x, -inside, inside))), np.tanh
    if name in SHARES:
        quarter = math.pi / 2
        return (lambda x: np.arcsin(np.sqrt(x))), (lambda z: np.sin(np.clip(z, 0, quarter)) ** 2)
    if name in ERRORS:
        return (lambda x: np.log(np.maximum(x, 1e-9))), np.exp
    return (lambda x: x), (lambda z: z)


def _jackknife_error(left_out: FloatArray) -> float:
    groups = len(left_out)
    return math.sqrt((groups - 1) / groups * float(((left_out - left_out.mean()) ** 2).sum()))


def _spread(drawn: FloatArray) -> float | None:
    defined = drawn[np.isfinite(drawn)]
    return float(defined.std()) if len(defined) >= DEFINED_SHARE * len(drawn) else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
