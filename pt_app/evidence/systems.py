"""Judges of translation systems, by the statistics of the WMT metrics tasks.

Rows name their system; those of one group are translations of one source. Scores may be verdicts
or those of a learned metric, of any range. The definitions are those of mt-metrics-eval.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import BetweenSystems, Metric, SourcePairs, SystemMeans
from pt_app.evidence.intervals import Resampler, ratio, with_counts
from pt_app.evidence.ranks import mean_of_defined, weighted_pearson

Flags = npt.NDArray[np.bool_]
PERMUTATIONS, SEED = 1000, 0
MAX_PAIRS = 2_000_000  # of rows of one source


def pairwise_accuracy(labels: FloatArray, scores: FloatArray, sample: Resampler) -> SourcePairs:
    """Return the share of pairs of one group that the scores order as the labels do, with ties.

    A pair with equal labels is right if its scores are equal too, within `tie_threshold`. That
    threshold is the one of best accuracy on these rows (Deutsch et al. 2023, arXiv 2305.14324: tie
    calibration), so `accuracy` flatters by a little; `accuracy_as_is` takes equal scores alone as
    ties. Both are averaged over groups.
    """
    first, second = _pairs(sample)
    n = len(first)
    apart = scores[first] - scores[second]
    truth = np.sign(labels[first] - labels[second])
    groups = sample.index[first]
    pairs = np.bincount(groups, minlength=sample.groups)
    share = 1 / pairs[groups]  # of each pair in its group
    right = np.sign(apart) == truth
    threshold = _best_threshold(np.abs(apart), right, truth == 0, share) if n else None

    def accuracy(tie: float) -> Metric:
        order = np.where(np.abs(apart) <= tie, 0, np.sign(apart))
        right = np.bincount(groups, (order == truth) * share, minlength=sample.groups)
        return _mean_of_groups(np.where(pairs > 0, right, np.nan), sample, n, "share")

    return SourcePairs(
        accuracy=accuracy(threshold or 0.0),
        accuracy_as_is=accuracy(0.0),
        tie_threshold=threshold,
        pairs=n,
        groups=len(np.unique(groups)),
    )


def _mean_of_groups(values: FloatArray, sample: Resampler, n: int, name: str) -> Metric:
    """Return the mean over the groups [groups] whose value is not NaN; `name` has its bounds."""
    return sample.estimate_group_sums(with_counts(values), ratio(name), n)[name]


def _pairs(sample: Resampler) -> tuple[IntArray, IntArray]:
    """Return the indices of both rows of each pair of rows of one group.

    Above `MAX_PAIRS` whole groups are drawn, and of a group that has more by itself some rows.
    """
    rng, most = np.random.default_rng(sample.seed), math.isqrt(2 * MAX_PAIRS)
    order = np.argsort(sample.index, kind="stable")
    of_groups = np.split(order, np.flatnonzero(np.diff(sample.index[order])) + 1)
    of_groups = [rows if len(rows) <= most else rng.choice(rows, most, False) for rows in of_groups]
    sizes = np.array([len(rows) * (len(rows) - 1) // 2 for rows in of_groups])
    drawn = rng.permutation(len(of_groups))
    chosen = drawn[sizes[drawn].cumsum() <= MAX_PAIRS] if sizes.sum() > MAX_PAIRS else drawn
    members = [of_groups[place] for place in np.sort(chosen)]
    both = [np.stack([rows[i] for i in np.triu_indices(len(rows), 1)]) for rows in members]
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *both], axis=1)
    return first, second


def _best_threshold(size: FloatArray, right: Flags, tied: Flags, share: FloatArray) -> float:
    """Return the difference up to which scores are best called equal; 0 if none is better."""
    order = np.argsort(size, kind="stable")
    # Calling a pair a tie wins it if its labels are equal, and loses it if it was right before.
    gain = (share * (tied.astype(np.float64) - right))[order].cumsum()
    ends = np.flatnonzero(np.append(np.diff(size[order]) > 0, True))
    best = ends[gain[ends].argmax()]
    return float(size[order[best]]) if gain[best] > 0 else 0.0


def groupings(
    labels: FloatArray, scores: FloatArray, systems: Sequence[str], sample: Resampler
) -> tuple[Metric, Metric]:
    """Return Pearson's r within each source and within each system, averaged, with intervals.

    `n` counts the sources whose correlation is defined, and the systems. Over all rows at once see
    `rank_agreement`.
    """
    by_source = np.full(sample.groups, np.nan)
    for place in range(sample.groups):
        rows = sample.index == place
        if rows.sum() > 1:
            alone = np.ones((1, int(rows.sum())))
            by_source[place] = weighted_pearson(labels[rows][None], scores[rows][None], alone)[0]
    names = np.array(systems)
    members = [names == name for name in sorted(set(systems))]

    def by_system(weights: FloatArray) -> dict[str, FloatArray]:
        parts = (weighted_pearson(labels[m][None], scores[m][None], weights[:, m]) for m in members)
        return {"pearson": mean_of_defined(np.stack(list(parts)))}

    return (
        _mean_of_groups(by_source, sample, int(np.isfinite(by_source).sum()), "pearson"),
        sample.estimate(by_system, len(members))["pearson"],
    )


def soft_pairwise_accuracy(
    labels: FloatArray, scores: FloatArray, systems: Sequence[str], groups: Sequence[Hashable]
) -> BetweenSystems | None:
    """Compare labels and scores in which of two systems is better, and how surely.

    Returns:
        1 less the mean difference of two p values of each pair of systems, one by the labels and
        one by the scores (Thompson et al. 2024, arXiv 2409.09598), each from a one-sided paired
        permutation test on the groups that all systems have; and the systems' means. None with
        fewer than two systems or two such groups.
    """
    names = sorted(set(systems))
    columns = {name: i for i, name in enumerate(names)}
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    tables = np.full((2, len(places), len(names)), np.nan)
    for row, (system, group) in enumerate(zip(systems, groups, strict=True)):
        tables[:, places[group], columns[system]] = labels[row], scores[row]
    complete = tables[:, ~np.isnan(tables).any(axis=(0, 2))]
    if len(names) < 2 or complete.shape[1] < 2:
        return None
    by_labels, by_scores = (_p_values(table) for table in complete)
    upper = np.triu_indices(len(names), 1)
    apart = np.abs(by_labels - by_scores)[upper]
    means = np.nanmean(tables, axis=1)
    return BetweenSystems(
        soft_pairwise_accuracy=float(1 - apart.mean()),
        systems=[
            SystemMeans(system=name, label=label, verdict=verdict)
            for name, (label, verdict) in zip(names, means.T.tolist(), strict=True)
        ],
        pairs=len(apart),
        groups=complete.shape[1],
    )


def _p_values(table: FloatArray) -> FloatArray:
    """Return the p that each system is no better than each other one, [systems, systems].

    The signs of the differences are drawn once for all pairs and with one seed for labels and
    scores, so that both meet the same chance.
    """
    rng = np.random.default_rng(SEED)
    signs = rng.integers(0, 2, size=(PERMUTATIONS, len(table))) * 2.0 - 1
    means = signs @ table / len(table)  # the mean of differences is the difference of these means
    drawn = means[:, :, None] - means[:, None, :]
    mean = table.mean(axis=0)
    return np.asarray((drawn >= (mean[:, None] - mean[None, :]) - 1e-12).mean(axis=0), np.float64)
