"""Whether one judge agrees better than another on the same rows, and which difference shows."""

from collections.abc import Hashable, Sequence

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Comparison
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import coding
from pt_app.evidence.intervals import CHUNK_NUMBERS, Resampler, Statistic
from pt_app.evidence.summary import check_lengths

# A difference of so many standard errors is significant at 5 % (two-sided) in 80 of 100 test sets.
DETECTABLE_ERRORS = 1.960 + 0.842


def compare(
    labels: Sequence[Verdict],
    a: Sequence[Verdict | None],
    b: Sequence[Verdict | None],
    sample: Resampler,
    scale: Scale,
    names: tuple[str, str] = ("adapter", "base"),
) -> Comparison:
    """Return the difference a - b of the scale's headline number, with its paired interval.

    Args:
        labels: the label of each row [n].
        a: the first judge's verdicts [n]; None counts as wrong.
        b: the second judge's verdicts on the same rows [n].
        sample: the groups of the rows.
        scale: the scale.
        names: of both judges, for the result.

    Returns:
        The difference; `p` is that of a permutation test that exchanges the two judges in whole
        groups, `detectable` the smallest difference that this test set shows in 80 of 100 cases.
    """
    check_lengths(labels, a, b, sample.index)
    name, label = coding.headline(scale), coding.positions(labels, scale, "label")
    verdicts = [coding.positions(v, scale, "verdict") for v in (a, b)]
    judges = [coding.count_failures_as_wrong(label, verdict, scale) for verdict in verdicts]
    columns, statistic = coding.agreement_of_sums(label, scale, *judges)
    sums = np.stack([sample.sums(cells).toarray() for cells in columns])  # [2, groups, cells]
    cells = sums.shape[2]

    def difference(both: FloatArray) -> dict[str, FloatArray]:
        first, second = (statistic(part)[name] for part in (both[:, :cells], both[:, cells:]))
        return {"difference": first - second}

    both = np.concatenate(list(sums), axis=1)
    metric = sample.estimate_group_sums(both, difference)["difference"]
    about = {"a": names[0], "b": names[1], "metric": name}
    p = _permutation_p(sums, statistic, name, sample)
    detectable = None if metric.error is None else DETECTABLE_ERRORS * metric.error
    return metric.extended(Comparison, **about, p=p, detectable=detectable)


def _permutation_p(
    sums: FloatArray, statistic: Statistic, name: str, sample: Resampler
) -> float | None:
    """Return the share of random exchanges of the judges that separate them as far (two-sided).

    Whole groups are exchanged. The observed assignment counts as one of the exchanges (Phipson and
    Smyth 2010), so that p is never 0.
    """
    total = sums.sum(axis=1)  # [2, cells]

    def apart(first: FloatArray) -> FloatArray:
        return np.abs(statistic(first)[name] - statistic(total.sum(axis=0) - first)[name])

    observed = float(apart(total[:1])[0])
    if not np.isfinite(observed):
        return None
    rng = np.random.default_rng([sample.seed, 1])  # other numbers than the bootstrap's
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
    ordered = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for place, (p, i) in enumerate(ordered):
        highest = max(highest, min(1.0, p * (len(ordered) - place)))
        adjusted[i] = highest
    return adjusted


def detectable_difference(
    labels: Sequence[Verdict], groups: Sequence[Hashable], scale: Scale, seed: int = 0
) -> float | None:
    """Return the smallest difference in the headline number that these test rows can show.

    It assumes two judges whose errors are independent and whose kappa is near 0.7; for judges with
    common errors it is smaller. None if it is undefined.
    """
    label, rng = coding.positions(labels, scale, "label"), np.random.default_rng(seed)
    a, b = ([scale.values[i] for i in _simulated(label, scale, rng)] for _ in range(2))
    sample = Resampler(groups, resamples=500, seed=seed)
    return compare(labels, a, b, sample, scale).detectable


def _simulated(labels: IntArray, scale: Scale, rng: np.random.Generator) -> IntArray:
    """Draw the verdicts of a judge with a kappa near 0.7."""
    numbers = coding.numbers_of(scale)
    if numbers is None:
        other = rng.choice(labels, len(labels))  # agrees by chance; kappa is the rest's share
        return np.where(rng.random(len(labels)) < 0.7, labels, other)
    noisy = numbers[labels] + rng.normal(0, 0.7 * (numbers[labels].std() or 1.0), len(labels))
    return np.asarray(np.abs(noisy[:, None] - numbers).argmin(axis=1), np.int64)
