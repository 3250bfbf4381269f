"""Pass or fail: classes, thresholds by cost, a population's rate; and what people reach."""

import numpy as np
import pytest
from sklearn import metrics as sk

from pt_app.core.choosing import choose
from pt_app.core.metrics import IntArray
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.pass_fail import areas, corrected_pass_rate, cost_at, operating_threshold
from pt_app.evidence.people import ceiling
from pt_app.evidence.summary import FAIL, PASS, by_class


def judged(n: int, seed: int = 0, fails: float = 0.3) -> tuple[IntArray, IntArray]:
    """Labels and verdicts of a judge that passes 90 % of PASS and fails 80 % of FAIL."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < fails).astype(int)
    right = rng.random(n) < np.where(labels == FAIL, 0.8, 0.9)
    return labels, np.where(right, labels, 1 - labels)


def rated(rows: list[list[Verdict]]) -> list[JudgeExample]:
    """Rows of annotators' verdicts, each a group of its own."""
    return [JudgeExample(group=str(i), annotators=row) for i, row in enumerate(rows)]


def test_class_numbers_are_sklearns_and_count_their_rows() -> None:
    labels, verdicts = judged(300)
    found = by_class(labels, verdicts, Resampler(range(300), 50))
    assert found["recall_fail"].value == pytest.approx(sk.recall_score(labels, verdicts))
    assert found["precision_fail"].value == pytest.approx(sk.precision_score(labels, verdicts))
    specificity = sk.recall_score(labels, verdicts, pos_label=PASS)
    assert found["recall_pass"].value == pytest.approx(specificity)
    assert found["recall_fail"].n == int((labels == FAIL).sum())
    assert found["precision_fail"].n == int((verdicts == FAIL).sum())
    verdicts[:5] = 2  # failures that count as wrong
    strict = by_class(labels, verdicts, Resampler(range(300), 50))
    assert strict["recall_fail"].value == pytest.approx(sk.recall_score(labels == 1, verdicts == 1))
    assert strict["recall_fail"].n + strict["recall_pass"].n == 300
    none = by_class(np.zeros(9, int), np.zeros(9, int), Resampler(range(9), 50))
    assert none["recall_fail"].value is None
    assert none["recall_fail"].reason == "no rows"


def test_pr_auc_is_sklearns_average_precision() -> None:
    labels, _ = judged(300)
    rng = np.random.default_rng(1)
    fail = np.round(np.clip(0.5 * labels + 0.6 * rng.random(300), 0, 1), 1)  # with ties
    found = areas(fail, labels, Resampler(range(300), 200))["pr_auc"]
    assert found.value == pytest.approx(sk.average_precision_score(labels, fail))
    assert found.low < found.value < found.high
    flat = areas(np.full(300, 0.5), labels, Resampler(range(300), 50))["pr_auc"]
    assert flat.value == pytest.approx(labels.mean())


@pytest.mark.parametrize("digits", [1, 6])
def test_roc_auc_is_sklearns_with_an_interval_that_is_the_bootstraps(digits: int) -> None:
    labels, _ = judged(300)
    rng = np.random.default_rng(1)
    fail = np.round(np.clip(0.5 * labels + 0.6 * rng.random(300), 0, 1), digits)  # ties with 1
    groups = np.arange(300) // 3
    found = areas(fail, labels, Resampler(groups.tolist(), 400))["roc_auc"]
    assert found.value == pytest.approx(sk.roc_auc_score(labels == FAIL, fail))
    draws = []
    for _ in range(400):
        rows = (rng.integers(0, 100, 100)[:, None] * 3 + np.arange(3)).ravel()
        draws.append(sk.roc_auc_score(labels[rows] == FAIL, fail[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)
    assert found.n == 300
    few = areas(fail[:30], labels[:30], Resampler((groups[:30]).tolist()))["roc_auc"]
    assert few.low < few.value < few.high <= 1
    none = areas(fail, labels * 0, Resampler(range(300), 50))["roc_auc"]
    assert none.value is None
    assert none.reason == "all labels or all verdicts are equal"


@pytest.mark.parametrize(("missed", "false_alarm"), [(1, 1), (10, 1), (1, 10)])
def test_the_threshold_is_the_cheapest_of_all(missed: float, false_alarm: float) -> None:
    labels, _ = judged(200)
    rng = np.random.default_rng(2)
    fail = np.round(np.clip(0.4 * labels + 0.6 * rng.random(200), 0, 1), 2)
    found = operating_threshold(fail, labels, missed, false_alarm)

    def cost(threshold: float) -> float:
        said = fail >= threshold
        wrong = missed * (~said & (labels == FAIL)) + false_alarm * (said & (labels == PASS))
        return float(wrong.mean())

    best = min(cost(threshold) for threshold in [*np.unique(fail), 2.0])
    assert found.cost == pytest.approx(best)
    assert cost(2.0 if found.threshold is None else found.threshold) == pytest.approx(best)
    assert found.cost_of_likeliest == pytest.approx(cost(np.nextafter(0.5, 1)))


def test_a_threshold_of_other_rows_has_its_cost_here() -> None:
    labels, _ = judged(200)
    fail = np.clip(0.4 * labels + 0.6 * np.random.default_rng(2).random(200), 0, 1)
    own = operating_threshold(fail, labels, 3, 1)
    assert cost_at(fail, labels, own.threshold, 3, 1) == own
    assert cost_at(fail, labels, 0.9, 3, 1).cost > own.cost


def test_a_judge_of_nothing_fails_no_row_where_alarms_are_dear() -> None:
    found = operating_threshold(np.full(10, 0.4), np.array([PASS] * 9 + [FAIL]), 1, 100)
    assert found.threshold is None


def test_a_probability_of_one_half_passes_as_the_verdict_does() -> None:
    assert choose((0.5, 0.5), Scale.from_name("pass_fail"), "mode") == "PASS"
    assert cost_at(np.array([0.5]), np.array([PASS]), None, 1, 1).cost_of_likeliest == 0
    assert cost_at(np.array([0.5]), np.array([FAIL]), None, 1, 1).cost_of_likeliest == 1


def test_the_corrected_rate_is_right_on_average_and_its_interval_covers() -> None:
    covered, values = 0, []
    for seed in range(400):
        known, said = judged(150, seed)
        population, verdicts = judged(2000, seed + 1000, fails=0.15)  # another share of FAIL
        passed = int((verdicts == PASS).sum())
        found = corrected_pass_rate(passed, 2000, known, said)
        covered += found.low <= 1 - population.mean() <= found.high
        values.append(found.value)
        assert found.raw == passed / 2000
    assert np.mean(values) == pytest.approx(0.85, abs=0.015)
    assert 0.92 <= covered / 400 <= 0.99


def test_no_rate_is_given_where_the_judge_knows_nothing() -> None:
    labels = np.array([PASS, FAIL] * 20)
    found = corrected_pass_rate(50, 100, labels, np.array([PASS, PASS] * 20))
    assert found.value is None
    assert "chance" in found.reason
    assert corrected_pass_rate(50, 100, labels * 0, labels).reason == "no rows"


def test_people_are_measured_against_the_others_word_in_the_judges_units() -> None:
    scale = Scale.from_name("0-10")
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 10, 200)
    said = np.clip(truth[:, None] + rng.integers(-1, 2, (200, 3)), 0, 10)
    found = ceiling(rated(said.tolist()), scale)
    assert found is not None
    pairs = [
        (round(float(np.delete(row, i).mean()) - 0.01), int(row[i]))  # of two equally near: lower
        for row in said
        for i in range(3)
    ]
    expected = sk.cohen_kappa_score(*zip(*pairs, strict=True), weights="quadratic")
    assert found.metrics["kappa_quadratic"].value == pytest.approx(expected)
    assert (found.n, found.rows, found.groups) == (600, 200, 200)


def test_of_two_equally_common_words_each_counts_half() -> None:
    scale = Scale.from_name("pairwise")
    rows: list[list[Verdict]] = [["A", "B", "A"], ["A"], []]
    found = ceiling(rated(rows), scale)
    assert found is not None
    # A against {A, B}: half right; B against {A, A}: wrong; A against {A, B}: half right
    assert found.metrics["accuracy"].value == pytest.approx(1 / 3)
    assert (found.n, found.rows) == (3, 1)
    assert ceiling(rated([["A"]]), scale) is None
