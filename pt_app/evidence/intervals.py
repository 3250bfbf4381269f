"""Intervals by the cluster bootstrap: whole groups are drawn, since rows of one source depend."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pt_app.eval_model.metrics import FloatArray

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_GROUPS = 20
# Numbers held at once in one array of a chunk of resamples: 16 MiB of float64.
CHUNK_NUMBERS = 1 << 21
# An interval needs this share of resamples in which the number is defined.
DEFINED_SHARE = 0.95

# Weights of rows [r, n] (how often each row was drawn) -> name -> the number in each resample [r].
Statistic = Callable[[FloatArray], dict[str, FloatArray]]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


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
        """Whether there are too few groups (under 20) for the interval to be trusted."""
        return self.groups < FEW_GROUPS

    def estimate(self, statistic: Statistic, size: int = 1) -> dict[str, Estimate]:
        """Value of each number of `statistic` on all rows, with its interval.

        `size` is how many numbers the statistic makes of one resample: it bounds the chunks.
        """
        values = statistic(np.ones((1, len(self.index))))
        drawn = self._resampled(statistic, size) if self.groups > 1 else {}
        return {
            name: Estimate(_number(value[0]), *percentile_interval(drawn.get(name), self.groups))
            for name, value in values.items()
        }

    def _resampled(self, statistic: Statistic, size: int) -> dict[str, FloatArray]:
        rng = np.random.default_rng(self.seed)
        chunk = max(1, CHUNK_NUMBERS // max(size, len(self.index), self.groups))
        parts: list[dict[str, FloatArray]] = []
        for start in range(0, self.resamples, chunk):
            count = min(chunk, self.resamples - start)
            parts.append(statistic(self._weights(rng, count)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _weights(self, rng: np.random.Generator, count: int) -> FloatArray:
        """How often each row occurs in each of `count` resamples, [count, n]."""
        draws = rng.integers(0, self.groups, size=(count, self.groups))
        draws += np.arange(count)[:, None] * self.groups
        counts = np.bincount(draws.ravel(), minlength=count * self.groups)
        return counts.reshape(count, self.groups)[:, self.index].astype(np.float64)


def percentile_interval(drawn: FloatArray | None, groups: int) -> tuple[float | None, float | None]:
    """95 % interval of resampled values: percentiles widened for the number of groups.

    The plain percentile interval is too narrow by about sqrt((G - 1) / G) and for want of
    Student's t; the expanded one takes the percentiles that a t interval would reach
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    """
    from scipy.special import ndtr, stdtrit

    if drawn is None:
        return None, None
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < max(1.0, DEFINED_SHARE * len(drawn)):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    tail = float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, tail)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
