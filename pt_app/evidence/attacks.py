"""What attacks do to a judge's verdicts, from what it says of clean and of attacked rows."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import numbers_of
from pt_app.evidence.intervals import Resampler, mean_of_sums
from pt_app.evidence.summary import Metric, metric


def favour(probabilities: FloatArray, scale: Scale, losers: IntArray) -> FloatArray:
    """What a judge gives the attacked candidate, [n]: expected score, chance of PASS or of winning.

    `probabilities` [n, K]; `losers` [n] says of a pair which candidate (0 or 1) is attacked. A tie
    is half a win.
    """
    numbers = numbers_of(scale)
    if numbers is not None:
        expected: FloatArray = probabilities @ numbers
        return expected
    if scale.task == "pass_fail":
        return probabilities[:, 0]
    wins = np.where(losers == 0, probabilities[:, 0], probabilities[:, 1])
    won: FloatArray = wins + 0.5 * probabilities[:, 2]
    return won


def attack_numbers(
    families: Sequence[str],
    rows: IntArray,
    groups: Sequence[Hashable],
    clean: FloatArray,
    attacked: FloatArray,
    step: float,
    failures: Sequence[bool],
) -> dict[str, dict[str, Any]]:
    """For each family the mean shift, the share raised by more than `step`, both with intervals.

    Each attack has a family, the clean row it was made of (`rows`) and what the judge gives it
    (`attacked`); `clean` is what it gives the clean rows, of which the bootstrap draws `groups`.
    Shifts are in units of the scale, of pass/fail and pairs in probability.
    """
    sample = Resampler(groups)
    names = np.array(families)
    shifts, unread = attacked - clean[rows], np.array(failures, dtype=np.float64)
    found = {}
    for name in dict.fromkeys(families):
        own = np.flatnonzero(names == name)

        def mean(values: FloatArray, own: IntArray = own) -> Metric:
            return _mean(values[own], rows[own], len(clean), sample)

        found[name] = {
            "shift": mean(shifts),
            "raised": mean((shifts > step + 1e-9).astype(np.float64)),
            "verdict": mean(attacked),
            "parse_failures": mean(unread),
            "attacks": len(own),
        }
    return found


def _mean(values: FloatArray, rows: IntArray, count: int, sample: Resampler) -> Metric:
    """Mean over attacks, whose rows are drawn with their groups."""
    sums = np.stack(
        [np.bincount(rows, values, minlength=count), np.bincount(rows, minlength=count)], axis=1
    )

    return metric(sample.estimate_sums(sums, mean_of_sums)["mean"], len(values))
