"""Paired tests of two judges: against brute force, statsmodels, and their own false alarms."""

import gc
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from statsmodels.stats.multitest import multipletests

from benchmarks.intervals import simulate
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.comparison import compare, detectable_difference, holm
from pt_app.evidence.intervals import Resampler

TEN = Scale.from_name("0-10")
PASS_FAIL = Scale.from_name("pass_fail")


def _noisy(labels: list[Verdict], noise: float, seed: int) -> list[Verdict]:
    rng = np.random.default_rng(seed)
    values = np.array(labels) + rng.normal(0, noise, len(labels))
    verdicts: list[Verdict] = np.clip(np.round(values), 0, 10).astype(int).tolist()
    return verdicts


def test_p_is_the_share_of_exchanges_of_whole_groups_that_part_as_far() -> None:
    labels: list[Verdict] = [1, 5, 7, 9, 3, 2, 8, 6, 0, 10]
    a, b = _noisy(labels, 0.6, 1), _noisy(labels, 2.0, 2)
    groups = [0, 0, 1, 1, 2, 2, 3, 4, 5, 6]

    def kappa(verdicts: list[Verdict]) -> float:
        return float(sk.cohen_kappa_score(labels, verdicts, weights="quadratic", labels=range(11)))

    apart = []
    for exchanged in product([False, True], repeat=7):
        swap = [exchanged[group] for group in groups]
        first = [y if s else x for x, y, s in zip(a, b, swap, strict=True)]
        second = [x if s else y for x, y, s in zip(a, b, swap, strict=True)]
        apart.append(abs(kappa(first) - kappa(second)))
    exact = np.mean(np.array(apart) >= apart[0] - 1e-12)
    found = compare(labels, a, b, Resampler(groups, 20_000), TEN)
    assert found.value == pytest.approx(kappa(a) - kappa(b))
    assert found.p == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("groups", [10, 60])
def test_two_judges_alike_are_told_apart_in_5_of_100_test_sets(groups: int) -> None:
    small = 0
    index = np.repeat(np.arange(groups), 3)
    for seed in range(200):
        label, rng = simulate(groups, seed)[0], np.random.default_rng(seed + 1000)
        a, b = (
            np.clip(
                np.round(label + rng.normal(0, 0.8, groups)[index] + rng.normal(0, 1, len(label))),
                0,
                10,
            )
            for _ in range(2)
        )
        sample = Resampler(index.tolist(), 200)
        found = compare(label.tolist(), a.astype(int).tolist(), b.astype(int).tolist(), sample, TEN)
        small += found.p <= 0.05
    assert 2 <= small <= 20  # 200 at 5 %: 10 +- 3.1


def test_a_difference_of_the_detectable_size_is_found_in_80_of_100() -> None:
    label, _ = simulate(60, 3)
    labels, index = label.tolist(), np.repeat(np.arange(60), 3).tolist()
    pairs = [(_noisy(labels, 1.5, i), _noisy(labels, 1.95, 1000 + i)) for i in range(150)]
    found = [compare(labels, a, b, Resampler(index, 200), TEN) for a, b in pairs]
    size = float(np.mean([one.value for one in found]))
    detectable = float(np.median([one.detectable for one in found]))
    seen = np.mean([one.low > 0 for one in found])
    # Power at the true size, from the size that is found in 80 of 100 (normal approximation).
    from scipy.stats import norm

    assert seen == pytest.approx(norm.cdf(2.802 * size / detectable - 1.96), abs=0.12)


def test_a_parse_failure_counts_as_wrong() -> None:
    labels: list[Verdict] = ["PASS", "FAIL"] * 15
    sample = Resampler(range(30), 200)
    found = compare(labels, labels, [None, *labels[1:]], sample, PASS_FAIL)
    assert found.value > 0
    assert found.n == 30


def test_a_judge_compared_with_itself_has_p_1() -> None:
    labels: list[Verdict] = [1, 5, 7, 9] * 10
    found = compare(labels, labels, labels, Resampler(range(40), 200), TEN)
    assert (found.value, found.p, found.detectable) == (0, 1, 0)


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Spare statsmodels' gc.collect() in each call the objects of all other tests: 0.2 s each."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(ps: list[float]) -> None:
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert holm([*ps, None]) == [*holm(ps), None]


@pytest.mark.parametrize("scale", [TEN, PASS_FAIL, Scale.from_name("pairwise")])
def test_more_test_rows_show_smaller_differences(scale: Scale) -> None:
    rng = np.random.default_rng(0)
    labels = [scale.values[i] for i in rng.integers(0, len(scale.values), 800)]
    few, many = (detectable_difference(labels[:n], range(n), scale) for n in (40, 800))
    assert few is not None
    assert many is not None
    assert many < few / 3  # about the square root of 20
    assert detectable_difference(labels[:1] * 40, range(40), scale) is None
