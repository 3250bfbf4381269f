"""Judges of translation systems, by the statistics of the WMT metrics tasks.

Rows name their system; those of one group are translations of one source. Scores may be verdicts
or those of a learned metric, of any range.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray
from pt_app.evidence.intervals import Resampler, mean_of_sums
from pt_app.evidence.ranks import weighted_pearson
from pt_app.evidence.summary import Metric, metric

PERMUTATIONS = 1000
MOST_PAIRS = 2_000_000  # of rows of one source


def pairwise_accuracy(labels: FloatArray, scores: FloatArray, sample: Resampler) -> dict[str, Any]:
    """Share of pairs of one group that the scores order as the labels do, ties included.

    Pairs with equal labels are right where the scores are equal too, within "tie_threshold". That
    threshold is the one of best accuracy on these rows (Deutsch et al. 2023, arXiv 2305.14324: tie
    calibration), so "accuracy" flatters by a little; "accuracy_as_is" takes equal scores alone as
    ties. Averaged over groups, as mt-metrics-eval does.
    """
    first, second = _pairs(sample)
    n = len(first)
    if not n:
        none: Metric = {"value": None, "low": None, "high": None, "n": 0, "reason": "no rows"}
        return {
            "accuracy": none,
            "accuracy_as_is": none,
            "tie_threshold": None,
            "pairs": 0,
            "groups": 0,
        }
    apart = scores[first] - scores[second]
    truth = np.sign(labels[first] - labels[second])
    groups = sample.index[first]
    share = 1 / np.bincount(groups, minlength=sample.groups)[groups]  # of each pair in its group
    threshold = _best_threshold(np.abs(apart), np.sign(apart) == truth, truth == 0, share)

    def accuracy(tie: float) -> Metric:
        said = np.where(np.abs(apart) <= tie, 0, np.sign(apart))
        right = np.bincount(groups, (said == truth) * share, minlength=sample.groups)
        return _mean_of_groups(
            np.where(np.bincount(groups, minlength=sample.groups) > 0, right, np.nan), sample, n
        )

    return {
        "accuracy": accuracy(threshold),
        "accuracy_as_is": accuracy(0.0),
        "tie_threshold": threshold,
        "pairs": n,
        "groups": len(np.unique(groups)),
    }


def _mean_of_groups(values: FloatArray, sample: Resampler, n: int) -> Metric:
    """Mean over the groups [groups] whose value is not NaN."""
    known = ~np.isnan(values)
    sums = np.stack([np.where(known, values, 0.0), known], axis=1)

    return metric(sample.estimate_group_sums(sums, mean_of_sums)["mean"], n)


def _pairs(sample: Resampler) -> tuple[Any, Any]:
    """Indices of both rows of each pair of rows of one group."""
    order = np.argsort(sample.index, kind="stable")
    of_groups = np.split(order, np.flatnonzero(np.diff(sample.index[order])) + 1)
    sizes = np.array([len(rows) * (len(rows) - 1) // 2 for rows in of_groups])
    drawn = np.random.default_rng(sample.seed).permutation(len(of_groups))
    chosen = drawn[sizes[drawn].cumsum() <= MOST_PAIRS] if sizes.sum() > MOST_PAIRS else drawn
    both = [
        np.stack([rows[i] for i in np.triu_indices(len(rows), 1)])
        for rows in (of_groups[place] for place in np.sort(chosen))
    ]
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *both], axis=1)
    return first, second


def _best_threshold(size: FloatArray, right: Any, tied: Any, share: FloatArray) -> float:
    """The difference up to which scores are best called equal; 0 where none is better."""
    order = np.argsort(size, kind="stable")
    # Calling a pair a tie wins it where its labels are equal, and loses what was right.
    gain = (share * (tied.astype(np.float64) - right))[order].cumsum()
    ends = np.flatnonzero(np.append(np.diff(size[order]) > 0, True))
    best = ends[gain[ends].argmax()]
    exact = gain[ends[0]] if size[order[0]] == 0 else 0.0
    return float(size[order[best]]) if gain[best] > exact else 0.0


def groupings(
    labels: FloatArray, scores: FloatArray, systems: Sequence[str], sample: Resampler
) -> dict[str, Metric]:
    """Pearson's correlation within each source and within each system, averaged, with intervals.

    The groupings of mt-metrics-eval; over all rows at once it is `rank_agreement`'s. "n" counts
    sources or systems whose correlation is defined.
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
        columns = np.stack(list(parts))
        known = np.isfinite(columns)
        with np.errstate(invalid="ignore"):
            return {"mean": np.where(known, columns, 0).sum(axis=0) / known.sum(axis=0)}

    return {
        "within_source": _mean_of_groups(by_source, sample, int(np.isfinite(by_source).sum())),
        "within_system": metric(sample.estimate(by_system)["mean"], len(members)),
    }


def soft_pairwise_accuracy(
    labels: FloatArray,
    scores: FloatArray,
    systems: Sequence[str],
    groups: Sequence[Hashable],
    seed: int = 0,
) -> dict[str, Any] | None:
    """How like the labels the scores are in which system is better, and how surely.

    For each two systems the p of a one-sided paired permutation test on their common groups, by
    labels and by scores; 1 less the mean difference of the two p (Thompson et al. 2024, arXiv
    2409.09598). With the systems' means. None with fewer than two systems on common groups.
    """
    names = sorted(set(systems))
    columns = {name: i for i, name in enumerate(names)}
    places = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    tables = np.full((2, len(places), len(names)), np.nan)
    for row, (system, group) in enumerate(zip(systems, groups, strict=True)):
        tables[:, places[group], columns[system]] = labels[row], scores[row]
    complete = tables[:, ~np.isnan(tables).any(axis=(0, 2))]  # groups that all systems have
    if len(names) < 2 or complete.shape[1] < 2:
        return None
    by_labels, by_scores = (_p_values(one, seed) for one in complete)
    upper = np.triu_indices(len(names), 1)
    apart = np.abs(by_labels - by_scores)[upper]
    means = np.nanmean(tables, axis=1)
    return {
        "soft_pairwise_accuracy": float(1 - apart.mean()),
        "systems": [
            {"system": name, "label": float(means[0, i]), "verdict": float(means[1, i])}
            for i, name in enumerate(names)
        ],
        "pairs": len(apart),
        "groups": complete.shape[1],
    }


def _p_values(table: FloatArray, seed: int) -> FloatArray:
    """The p that each system is no better than each other one, [systems, systems].

    Signs of the differences are drawn once for all pairs (the same permutations for labels and
    scores), so that both sides meet the same chance.
    """
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(PERMUTATIONS, len(table))) * 2.0 - 1
    means = signs @ table / len(table)  # of differences the mean is the difference of the means
    drawn = means[:, :, None] - means[:, None, :]
    mean = table.mean(axis=0)
    share: FloatArray = (drawn >= (mean[:, None] - mean[None, :]) - 1e-12).mean(axis=0)
    return share
