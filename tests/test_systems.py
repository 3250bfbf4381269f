"""Translation systems and learned metrics: against scipy and loops over pairs."""

import numpy as np
import pytest
from scipy import stats

from pt_app.core.metrics import FloatArray
from pt_app.core.results import Metrics
from pt_app.evidence.intervals import Resampler, jackknife_interval
from pt_app.evidence.ranks import rank_agreement
from pt_app.evidence.systems import groupings, pairwise_accuracy, soft_pairwise_accuracy


def scored(
    groups: int, systems: int, seed: int = 0, noise: float = 1.0
) -> tuple[FloatArray, FloatArray, list[str], list[int]]:
    """Labels, scores of another range, systems and groups; system 0 is the worst."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1, (groups, 1)) + np.arange(systems) * 0.4
    labels = np.round(quality + rng.normal(0, 1, quality.shape))
    scores = 0.1 * (labels + rng.normal(0, noise, quality.shape)) - 3
    names = [f"system {i}" for _ in range(groups) for i in range(systems)]
    return labels.ravel(), scores.ravel(), names, np.repeat(np.arange(groups), systems).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_rank_numbers_are_scipys(seed: int) -> None:
    labels, scores, _, groups = scored(40, 3, seed)
    scores[seed::7] = scores[0]  # ties
    found = rank_agreement(labels, scores, Resampler(groups, 50))
    assert found["pearson"].value == pytest.approx(stats.pearsonr(labels, scores)[0])
    assert found["spearman"].value == pytest.approx(stats.spearmanr(labels, scores)[0])
    assert found["kendall"].value == pytest.approx(stats.kendalltau(labels, scores)[0])
    for one in found.values():
        assert one.low < one.value < one.high
        assert one.n == 120


def test_the_interval_of_tau_leaves_out_each_group_however_many_there_are() -> None:
    labels, scores, _, groups = scored(130, 2)
    kept = [np.array(groups) != group for group in range(130)]
    taus = np.array([stats.kendalltau(labels[rows], scores[rows])[0] for rows in kept])
    found = rank_agreement(labels, scores, Resampler(groups, 50))["kendall"]
    error = np.sqrt(129 / 130 * ((taus - taus.mean()) ** 2).sum())
    assert found.error == pytest.approx(error)
    spread = jackknife_interval(stats.kendalltau(labels, scores)[0], taus, "kendall")
    assert (found.low, found.high) == pytest.approx(spread[:2])


def test_rank_intervals_cover_the_truth() -> None:
    truth = {n: m.value for n, m in _numbers(3000, 99).items()}
    covered = dict.fromkeys(truth, 0)
    for seed in range(200):
        for name, one in _numbers(40, seed).items():
            covered[name] += one.low <= truth[name] <= one.high
    assert all(180 <= count <= 198 for count in covered.values()), covered


def _numbers(groups: int, seed: int) -> Metrics:
    labels, scores, _, of_groups = scored(groups, 3, seed)
    return rank_agreement(labels, scores, Resampler(of_groups, 300 if groups < 100 else 2, seed))


def test_rows_without_a_score_do_not_count_and_constant_scores_have_no_rank() -> None:
    labels, scores, _, groups = scored(30, 3)
    scores[:10] = np.nan
    found = rank_agreement(labels, scores, Resampler(groups, 50))
    assert found["kendall"].n == 80
    assert found["spearman"].value == pytest.approx(stats.spearmanr(labels[10:], scores[10:])[0])
    same = rank_agreement(labels, np.full(90, 0.7), Resampler(groups, 50))
    assert [one.value for one in same.values()] == [None, None, None]


def test_pairs_of_one_source_are_counted_as_in_the_wmt_metrics_task() -> None:
    labels, scores, _, groups = scored(25, 5, noise=0.3)
    found = pairwise_accuracy(labels, scores, Resampler(groups, 50))
    table = {"label": labels.reshape(25, 5), "score": scores.reshape(25, 5)}

    def accuracy(tie: float) -> float:
        """Mean over sources of the share of pairs that are right, an equal one within `tie`."""
        shares = []
        for label, score in zip(table["label"], table["score"], strict=True):
            right = [
                (0 if abs(score[i] - score[j]) <= tie else np.sign(score[i] - score[j]))
                == np.sign(label[i] - label[j])
                for i in range(5)
                for j in range(i)
            ]
            shares.append(np.mean(right))
        return float(np.mean(shares))

    sizes = np.abs(table["score"][:, :, None] - table["score"][:, None, :]).ravel()
    best = max(accuracy(tie) for tie in [0.0, *np.unique(sizes)])
    assert found.accuracy.value == pytest.approx(best)
    assert found.accuracy_as_is.value == pytest.approx(accuracy(0.0))
    assert accuracy(found.tie_threshold) == pytest.approx(best)
    assert (found.pairs, found.groups) == (250, 25)


def test_rows_without_a_fellow_have_no_pairs() -> None:
    found = pairwise_accuracy(np.arange(5.0), np.arange(5.0), Resampler(range(5), 50))
    assert found.pairs == 0
    assert found.accuracy.reason == "no rows"


def test_groupings_are_means_of_correlations() -> None:
    labels, scores, systems, groups = scored(30, 4)
    within_source, within_system = groupings(labels, scores, systems, Resampler(groups, 50))
    label, score = labels.reshape(30, 4), scores.reshape(30, 4)
    spread = [i for i in range(30) if len(set(label[i])) > 1]
    within = [stats.pearsonr(label[i], score[i])[0] for i in spread]
    assert within_source.value == pytest.approx(np.mean(within))
    assert within_source.n == len(spread)
    by_system = [stats.pearsonr(label[:, i], score[:, i])[0] for i in range(4)]
    assert within_system.value == pytest.approx(np.mean(by_system))


def test_rows_are_drawn_of_a_group_with_too_many_pairs() -> None:
    labels = np.arange(2100.0)
    found = pairwise_accuracy(labels, labels, Resampler([0] * 2099 + [1], 50))
    assert found.accuracy_as_is.value == pytest.approx(1)
    assert found.pairs == 1_999_000


def test_soft_pairwise_accuracy_compares_how_surely_systems_differ() -> None:
    labels, scores, systems, groups = scored(60, 3, noise=0.1)
    found = soft_pairwise_accuracy(labels, scores, systems, groups)
    assert found is not None
    assert found.soft_pairwise_accuracy > 0.95
    against = soft_pairwise_accuracy(labels, -scores, systems, groups)
    assert against is not None
    assert against.soft_pairwise_accuracy < 0.3
    same = soft_pairwise_accuracy(labels, labels, systems, groups)
    assert same is not None
    assert same.soft_pairwise_accuracy == 1
    # The p of two systems is that of the paired permutation test.
    table = labels.reshape(60, 3)
    from pt_app.evidence.systems import _p_values

    theirs = stats.permutation_test(
        (table[:, 1], table[:, 0]),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        alternative="greater",
        n_resamples=5000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert _p_values(table)[1, 0] == pytest.approx(theirs, abs=0.03)


def test_one_system_or_no_common_source_says_nothing_of_systems() -> None:
    labels, scores, systems, _ = scored(10, 2)
    assert soft_pairwise_accuracy(labels, scores, ["one"] * 20, range(20)) is None
    assert soft_pairwise_accuracy(labels, scores, systems, range(20)) is None
