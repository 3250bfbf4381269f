"""Confidence: calibration error, its mending, and judging only where the judge is sure."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import accuracy_score, brier_score_loss, cohen_kappa_score, log_loss

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Calibration, Prediction
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import (
    Confidence,
    Isotonic,
    at_coverages,
    calibration,
    confidence_of,
    fit_temperature,
    guaranteed_threshold,
    probabilities_of,
    selective,
    with_temperature,
)
from pt_app.evidence.intervals import Resampler

FIVE = Scale.from_name("1-5")
TEN = Scale.from_name("0-10")
PASS_FAIL = Scale.from_name("pass_fail")


def judged(n: int, seed: int, temperature: float = 1.0, k: int = 5) -> tuple[FloatArray, IntArray]:
    """What a judge says and the labels: calibrated at temperature 1, too sure below."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(k, 0.5), n)
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return with_temperature(truth, temperature), labels


def likeliest(probabilities: FloatArray) -> IntArray:
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def of_likeliest(said: FloatArray, labels: IntArray, sample: Resampler) -> Calibration:
    return calibration(said, likeliest(said), labels, FIVE, sample, 0)


def test_calibration_is_that_of_its_definition() -> None:
    probabilities, labels = judged(400, 0)
    found = calibration(
        probabilities, likeliest(probabilities), labels, FIVE, Resampler(range(400), 50), 0
    )
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(sure)
    gaps = [abs((sure - right)[part].sum()) for part in np.split(order, 10)]
    assert found.ece.value == pytest.approx(sum(gaps) / 400)
    assert found.overconfidence.value == pytest.approx(np.mean(sure - right))
    assert found.right.value == pytest.approx(np.mean(right))
    assert [one.right.n for one in found.reliability] == [40] * 10
    halves, binary = judged(300, 1, k=2)
    two = calibration(halves, likeliest(halves), binary, PASS_FAIL, Resampler(range(300), 50), 0)
    assert two.brier.value == pytest.approx(2 * brier_score_loss(binary, halves[:, 1]))


def test_within_a_tolerance_the_confidence_is_of_that_event() -> None:
    probabilities = np.array([[0.0, 0.3, 0.5, 0.2, 0.0], [0.7, 0.1, 0.1, 0.1, 0.0]])
    found = confidence_of(probabilities, np.array([2, 0]), np.array([3, 2]), FIVE, tolerance=1)
    assert found.sure == pytest.approx([1.0, 0.8])
    assert found.right.tolist() == [1, 0]


def test_a_calibrated_judge_is_told_so_and_one_that_is_too_sure_is_told_so() -> None:
    alarms, seen = 0, 0
    for seed in range(100):
        sample = Resampler(range(300), 200, seed)
        fair = of_likeliest(*judged(300, seed), sample)
        alarms += not fair.overconfidence.low <= 0 <= fair.overconfidence.high
        sharp = of_likeliest(*judged(300, seed, 0.4), sample)
        seen += sharp.overconfidence.low > 0
        seen += sharp.ece.value > sharp.ece_if_calibrated.high
        assert fair.ece.value < fair.ece_if_calibrated.high * 2
    assert alarms <= 10
    assert seen == 200


def test_the_temperature_that_was_applied_is_found_again() -> None:
    probabilities, labels = judged(4000, 3, temperature=0.5)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(2.0, rel=0.1)
    grid = np.linspace(0.5, 4, 200)
    losses = [log_loss(labels, with_temperature(probabilities, t), labels=range(5)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], abs=0.02)
    mended = with_temperature(probabilities, found)
    assert (mended.argmax(axis=1) == probabilities.argmax(axis=1)).all()


def test_certain_probabilities_have_a_temperature_all_the_same() -> None:
    certain = np.eye(2)[[0, 1, 0, 1]]
    assert np.isfinite(fit_temperature(certain, np.array([0, 1, 0, 0])))
    assert fit_temperature(np.full((1, 2), np.nan), np.array([0])) == 1.0
    assert np.isfinite(with_temperature(certain, 3.0)).all()


def test_isotonic_is_that_of_sklearn() -> None:
    probabilities, labels = judged(300, 5, temperature=0.3)
    found = confidence_of(probabilities, likeliest(probabilities), labels, FIVE, 0)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(found.sure, found.right)
    at = np.linspace(0, 1, 50)
    assert Isotonic.fit(found)(at) == pytest.approx(theirs.predict(at))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0.5, 0.6], "they sum to 1.1, not 1"),
        ([0.5, 0.25, 0.25], "3 numbers, but the scale pass_fail has 2"),
        ([1.5, -0.5], "a number is not a probability"),
        ([float("nan"), 1.0], "a number is not a probability"),
    ],
)
def test_probabilities_that_are_none_are_refused(row: list[float], words: str) -> None:
    with pytest.raises(UserError, match=f"probabilities in row 2: {words}"):
        probabilities_of([Prediction(probabilities=p) for p in ([0.5, 0.5], row)], PASS_FAIL)


def test_rounded_probabilities_are_made_to_sum_to_one_and_an_absent_row_stays_absent() -> None:
    rows = [Prediction(probabilities=[0.333, 0.333, 0.333]), Prediction()]
    found = probabilities_of(rows, Scale.from_name("pairwise"))
    assert found[0] == pytest.approx(1 / 3)
    assert np.isnan(found[1]).all()


def test_selective_judging_reports_curve_area_and_what_the_threshold_keeps() -> None:
    sure = np.array([0.9, 0.8, 0.7, 0.6])
    found = selective(Confidence(sure, np.array([1.0, 1, 0, 0])), Resampler(range(4), 50), 0.9)
    assert [(p.coverage, p.risk) for p in found.curve] == [
        (0.25, 0),
        (0.5, 0),
        (0.75, pytest.approx(1 / 3)),
        (1, 0.5),
    ]
    assert found.aurc.value == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert found.aurc_random.value == 0.5
    assert found.threshold is None  # four rows guarantee nothing
    assert found.kept.value == 0


def test_rows_of_equal_confidence_share_their_risk() -> None:
    found = selective(
        Confidence(np.full(4, 0.5), np.array([1.0, 1, 0, 0])), Resampler(range(4), 50), 0.9
    )
    assert found.aurc.value == 0.5


@pytest.mark.parametrize(("scale", "k"), [(FIVE, 5), (PASS_FAIL, 2)])
def test_accuracy_and_kappa_of_the_surest_rows_are_sklearns(scale: Scale, k: int) -> None:
    probabilities, labels = judged(400, 3, k=k)
    verdicts, sample = probabilities.argmax(axis=1), Resampler([i // 2 for i in range(400)], 200)
    found = confidence_of(probabilities, likeliest(probabilities), labels, scale, tolerance=0)
    entries = at_coverages(found, verdicts, labels, scale, sample)
    assert [one.coverage for one in entries] == [0.25, 0.5, 0.75]
    for one in entries:
        surest = np.argsort(-found.sure)[: int(400 * one.coverage)]
        weights, head = ("quadratic", "kappa_quadratic") if k == 5 else (None, "kappa")
        kappa = cohen_kappa_score(labels[surest], verdicts[surest], weights=weights)
        accuracy = accuracy_score(labels[surest], verdicts[surest])
        assert one.accuracy.value == one.right.value == pytest.approx(accuracy)
        assert getattr(one, head).value == pytest.approx(kappa)
        for metric in (one.accuracy, one.right, getattr(one, head)):
            assert metric.low < metric.value < metric.high
            assert metric.n == len(surest)


def test_at_a_coverage_rows_of_equal_confidence_count_by_the_share_that_fits() -> None:
    # 4 sure rows, all right, and 16 of one confidence, of which a quarter is right: half of all is
    # the 4 and 6 of the 16, whichever come first in the file.
    sure, right = np.array([0.9] * 4 + [0.6] * 16), np.array([1.0] * 4 + [1, 0, 0, 0] * 4)
    labels = np.zeros(20, dtype=np.int64)
    for order in (np.arange(20), np.arange(20)[::-1]):
        found = Confidence(sure[order], right[order])
        said = (1 - right[order]).astype(np.int64)
        (_, half, _) = at_coverages(found, said, labels, PASS_FAIL, Resampler(range(20), 50))
        assert half.right.value == pytest.approx((4 + 6 / 4) / 10)
        assert half.kappa.value is None  # all labels are equal
        assert half.kappa.reason


def test_a_guaranteed_threshold_fails_on_further_rows_in_at_most_5_of_100_cases() -> None:
    failures, given = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        sure = rng.random(400)
        right = (rng.random(400) < 0.6 + 0.4 * sure).astype(float)  # true share of sure >= t
        chosen = guaranteed_threshold(Confidence(sure, right), Resampler(range(400)), 0.85)
        if chosen.threshold is not None:
            given += 1
            failures += 0.6 + 0.4 * (1 + chosen.threshold) / 2 < 0.85
    assert given > 200  # it is reached from a confidence of 0.25 on
    assert failures <= 0.05 * 300


def test_of_dependent_rows_one_a_group_counts() -> None:
    sure, right = np.full(300, 0.9), np.ones(300)
    alone = guaranteed_threshold(Confidence(sure, right), Resampler(range(300)), 0.95)
    together = guaranteed_threshold(
        Confidence(sure, right), Resampler([i // 10 for i in range(300)]), 0.95
    )
    assert (alone.rows, together.rows) == (300, 30)
    assert alone.threshold == pytest.approx(0.9)
    assert together.threshold is None
