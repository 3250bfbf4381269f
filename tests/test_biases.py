"""Biases of simulated judges are found, and a judge without any is rarely accused of one."""

import numpy as np
import pytest

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Check, Prediction
from pt_app.core.verdicts import Scale
from pt_app.evidence.biases import (
    copied_of,
    corrected,
    errors_of,
    length_of,
    mean_check,
    partial_correlation,
    slices,
)
from pt_app.evidence.intervals import Resampler

TEN = Scale.from_name("0-10")
PAIR = Scale.from_name("pairwise")
PASS_FAIL = Scale.from_name("pass_fail")


def judged(
    seed: int, bias: float = 0.0, by_length: float = 0.0, groups: int = 80
) -> tuple[IntArray, IntArray, FloatArray, Resampler]:
    """Labels that rise with the length, noisy verdicts on them, lengths, groups of three."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(groups), 3)
    length = rng.normal(0, 1, groups * 3)
    labels = np.clip(np.round(5 + length + rng.normal(0, 1.5, len(index))), 2, 8).astype(int)
    error = rng.normal(0, 0.5, groups)[index] + rng.normal(0, 0.8, len(index))
    verdicts = labels + np.round(error + bias + by_length * length).astype(int)
    return labels, np.clip(verdicts, 0, 10), length, Resampler(index.tolist(), 200, seed)


def checked(judge: tuple[IntArray, IntArray, FloatArray, Resampler]) -> dict[str, Check]:
    labels, verdicts, length, sample = judge
    errors = errors_of(labels, verdicts, TEN)
    checks = {
        "generosity": mean_check(errors, sample),
        "length": partial_correlation(errors, length, labels, sample),
    }
    return corrected(checks)


def test_an_unbiased_judge_raises_at_most_10_alarms_in_100_test_sets() -> None:
    alarms = sum(one.alarm for seed in range(100) for one in checked(judged(seed)).values())
    assert alarms <= 10


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("generosity", {"bias": 0.5}),
        ("generosity", {"bias": -0.5}),
        ("length", {"by_length": 0.5}),
        ("length", {"by_length": -0.5}),
    ],
)
def test_a_known_bias_is_reported_as_such(name: str, judge: dict[str, float]) -> None:
    found = [checked(judged(seed, **judge))[name] for seed in range(20)]
    assert sum(one.alarm for one in found) >= 19
    sign = np.sign(next(iter(judge.values())))
    assert all(np.sign(one.value) == sign for one in found)
    if name == "generosity":
        assert np.mean([one.value for one in found]) == pytest.approx(judge["bias"], abs=0.05)


def test_partial_correlation_is_that_of_the_residuals() -> None:
    labels, verdicts, length, sample = judged(3, by_length=0.3)
    errors = errors_of(labels, verdicts, TEN)
    residuals = []
    for column in (errors, length):
        means = {label: column[labels == label].mean() for label in set(labels.tolist())}
        residuals.append(column - np.array([means[label] for label in labels.tolist()]))
    found = partial_correlation(errors, length, labels, sample)
    assert found.value == pytest.approx(np.corrcoef(*residuals)[0, 1])


def test_a_constant_feature_or_error_has_no_correlation() -> None:
    labels, verdicts, _, sample = judged(1)
    errors = errors_of(labels, verdicts, TEN)
    assert partial_correlation(errors, np.ones(240), labels, sample).value is None
    assert partial_correlation(errors * 0, np.arange(240.0), labels, sample).value is None
    nothing = partial_correlation(errors, np.full(240, np.nan), labels, sample)
    assert (nothing.value, nothing.n, nothing.p) == (None, 0, None)


def test_of_pairs_an_error_is_a_liking_for_the_first() -> None:
    a, b, tie = (PAIR.values.index(value) for value in ("A", "B", "tie"))
    errors = errors_of(np.array([b, b, tie, a]), np.array([a, tie, b, -1]), PAIR)
    assert errors[:3].tolist() == [1.0, 0.5, -0.5]
    assert np.isnan(errors[3])
    assert errors_of(np.array([0, 1]), np.array([1, 0]), PASS_FAIL).tolist() == [-1, 1]


def test_length_and_copied_words_are_read_from_the_rows() -> None:
    rows = [
        Prediction(candidate="o gato dorme", source="the cat sleeps"),
        Prediction(candidate="The cat dorme", source="the cat sleeps"),
        Prediction(candidate="", source="the cat"),
        Prediction(candidate="a"),
    ]
    assert copied_of(rows, TEN)[:3].tolist() == [0, pytest.approx(2 / 3), 0]
    assert np.isnan(copied_of(rows, TEN)[3])
    assert length_of(rows, TEN)[2] == 0
    pair = [Prediction(candidates=["long text", "text"]), Prediction(candidates=None)]
    assert length_of(pair, PAIR)[0] > 0
    assert np.isnan(length_of(pair, PAIR)[1])


def test_a_slice_that_is_judged_worse_is_told_and_even_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    names = ["legal" if i % 5 == 0 else f"other {i % 4}" for i in range(300)]
    apart = np.abs(rng.normal(0, 1, 300)) + [1.0 if name == "legal" else 0.0 for name in names]
    found = slices(names, apart, Resampler(range(300), 200))
    assert found["legal"].difference.alarm
    assert found["legal"].difference.value == pytest.approx(1, abs=0.35)
    alarms = 0
    for seed in range(100):
        even = np.abs(np.random.default_rng(seed).normal(0, 1, 300))
        found = slices(names, even, Resampler(range(300), 50, seed))
        alarms += any(one.difference.alarm for one in found.values())
    assert alarms <= 10


@pytest.mark.parametrize(("groups", "alarm"), [(5, False), (40, True)])
@pytest.mark.parametrize("error", [0.5, -0.3])  # the mean of which is exact, and is rounded
def test_an_error_that_is_the_same_in_all_groups_is_a_bias_if_these_are_many(
    error: float, groups: int, alarm: bool
) -> None:
    check = mean_check(np.full(groups, error), Resampler(range(groups), 50))
    assert corrected({"order": check})["order"].alarm is alarm
    assert check.p == 0.5 ** (groups - 1)


def test_slices_are_told_apart_by_every_character() -> None:
    found = slices(["a"] * 20 + ["a\0"] * 30, np.zeros(50), Resampler(range(50), 50))
    assert {name: one.distance.n for name, one in found.items()} == {"a": 20, "a\0": 30}


def test_a_slice_of_few_rows_is_told_without_a_test() -> None:
    found = slices(["rare"] * 3 + ["common"] * 60, np.ones(63), Resampler(range(63), 50))
    assert found["rare"].distance.n == 3
    assert "difference" not in found["rare"].as_json()
    assert mean_check(np.zeros(63), Resampler(range(63), 50)).p is None
