"""Whether one judge agrees better than another on the same rows, and what could be told at all."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import (
    agreement_of_sums,
    count_failures_as_wrong,
    headline,
    numbers_of,
    positions,
)
from pt_app.evidence.intervals import CHUNK_NUMBERS, Resampler, Statistic
from pt_app.evidence.summary import check_lengths, metric

# A difference of so many standard errors is found at 5 % (two-sided) in 80 of 100 test sets.
FOUND_AT = 1.960 + 0.842


def compare(
    labels: Sequence[Verdict],
    a: Sequence[Verdict | None],
    b: Sequence[Verdict | None],
    sample: Resampler,
    scale: Scale,
    names: tuple[str, str] = ("adapter", "base"),
    reading: str = "constrained",
) -> dict[str, Any]:
    """Difference a - b of the scale's headline number on the same rows, with its paired interval.

    None among the verdicts counts as wrong; `reading` is written into the result: what the verdicts
    of both are. "p" is that of a permutation test which changes the two judges' places in whole
    groups; "detectable" the smallest difference that this test set shows in 80 of 100 cases.
    """
    check_lengths(labels, a, b, sample.index)
    name, label = headline(scale), positions(labels, scale, "label")
    judges = [count_failures_as_wrong(label, positions(v, scale, "verdict"), scale) for v in (a, b)]
    columns, statistic = agreement_of_sums(label, scale, *judges)
    sums = np.stack([sample.sums(one).toarray() for one in columns])  # [2, groups, cells]
    cells = sums.shape[2]

    def difference(both: FloatArray) -> dict[str, FloatArray]:
        first, second = (statistic(part)[name] for part in (both[:, :cells], both[:, cells:]))
        return {"difference": first - second}

    found = sample.estimate_group_sums(np.concatenate(list(sums), axis=1), difference)
    estimate = found["difference"]
    return {
        "a": names[0],
        "b": names[1],
        "metric": name,
        "reading": reading,
        **metric(estimate, len(label)),
        "p": _permutation_p(sums, statistic, name, sample),
        "detectable": None if estimate.error is None else FOUND_AT * estimate.error,
    }


def _permutation_p(
    sums: FloatArray, statistic: Statistic, name: str, sample: Resampler
) -> float | None:
    """Share of random exchanges of the judges, group by group, that part them as far (two-sided).

    The observed exchange counts as one of them (Phipson and Smyth 2010), so that p is never 0.
    """
    total = sums.sum(axis=1)  # [2, cells]

    def apart(first: FloatArray) -> FloatArray:
        return np.abs(statistic(first)[name] - statistic(total.sum(axis=0) - first)[name])

    observed = float(apart(total[:1])[0])
    if not np.isfinite(observed):
        return None
    rng = np.random.default_rng([sample.seed, 1])  # not the bootstrap's numbers
    chunk = max(1, CHUNK_NUMBERS // max(sums.shape[1:]))
    as_far = 0
    for start in range(0, sample.resamples, chunk):
        count = min(chunk, sample.resamples - start)
        exchanged = rng.integers(0, 2, size=(count, sums.shape[1])).astype(np.float64)
        first = total[0] + exchanged @ (sums[1] - sums[0])
        as_far += int((apart(first) >= observed - 1e-12).sum())
    return (1 + as_far) / (1 + sample.resamples)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number (Holm 1979); None stays None and does not count."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        adjusted[i] = highest
    return adjusted


def detectable_difference(
    labels: Sequence[Verdict], groups: Sequence[Hashable], scale: Scale, seed: int = 0
) -> float | None:
    """The smallest difference in the headline number that these test rows are likely to show.

    Before there is a verdict two judges are assumed whose errors are independent and whose kappa
    is near 0.7; judges with errors in common are told apart at less. None where it is undefined.
    """
    label, rng = positions(labels, scale, "label"), np.random.default_rng(seed)
    a, b = ([scale.values[i] for i in _imagined(label, scale, rng)] for _ in range(2))
    found = compare(labels, a, b, Resampler(groups, resamples=500, seed=seed), scale)["detectable"]
    return None if found is None else float(found)


def _imagined(labels: IntArray, scale: Scale, rng: np.random.Generator) -> IntArray:
    """Verdicts of a judge with a kappa near 0.7."""
    numbers = numbers_of(scale)
    if numbers is None:
        other = rng.choice(labels, len(labels))  # chance agreement; kappa is the rest's share
        return np.where(rng.random(len(labels)) < 0.7, labels, other)
    noisy = numbers[labels] + rng.normal(0, 0.7 * (numbers[labels].std() or 1.0), len(labels))
    nearest: IntArray = np.abs(noisy[:, None] - numbers).argmin(axis=1)
    return nearest
