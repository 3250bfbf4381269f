"""The whole evidence about simulated judges whose faults are known."""

from typing import Any

import numpy as np
import pytest

from pt_app.core.results import Check, JudgeResults, Prediction
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import Fitted, with_temperature
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.judge_numbers import EvidenceOptions, add_sources, judge_numbers

FIVE = Scale.from_name("1-5")
PAIR = Scale.from_name("pairwise")


def scored(seed: int, bias: float = 0.0, temperature: float = 1.0) -> list[Prediction]:
    """Rows of a judge that says what it believes, is right as often as it believes, or is not."""
    rng = np.random.default_rng(seed)
    belief = rng.dirichlet(np.full(5, 0.4), 300)
    labels = (belief.cumsum(axis=1) > rng.random((300, 1))).argmax(axis=1)
    said = with_temperature(belief, temperature)
    # A judge's likeliest verdict is biased by what labels are common; its draw is not.
    verdicts = (belief.cumsum(axis=1) > rng.random((300, 1))).argmax(axis=1)
    verdicts = verdicts if temperature == 1 else said.argmax(axis=1)
    verdicts = np.clip(verdicts + (rng.random(300) < bias), 0, 4)
    return [
        Prediction(
            label=int(labels[i]) + 1,
            verdict=int(verdicts[i]) + 1,
            probabilities=said[i].tolist(),
            candidate="word " * int(rng.integers(1, 20)),
            source="a source of words",
        )
        for i in range(300)
    ]


def compared(seed: int, liking: float = 0.0) -> list[Prediction]:
    """Pairs in both orders of a judge that goes by the place in a share of the cases."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(300):
        better = rng.choice(["A", "B"])
        first, second = (
            "A" if rng.random() < liking else right if rng.random() < 0.8 else other
            for right, other in ((better, "AB"[better == "A"]), ("AB"[better == "A"], better))
        )
        texts = ["x" * int(rng.integers(1, 90)) for _ in range(2)]
        rows.append(Prediction(label=better, verdict=first, swapped=second, candidates=texts))
    return rows


def checks(rows: list[Prediction], scale: Scale, seed: int) -> dict[str, Check]:
    sample = Resampler(range(len(rows)), 100, seed)
    return judge_numbers(rows, sample, scale, EvidenceOptions(), None).checks


def test_rows_that_name_no_system_are_of_none() -> None:
    labels, groups = np.array([1.0, 2, 3, 2, 3, 1]), [1, 1, 1, 2, 2, 2]
    numbers = JudgeResults()
    add_sources(numbers, labels, labels, ["x", "y", None, "x", "y", None], groups)
    assert numbers.within_source_pairs is not None
    assert numbers.within_source_pairs.pairs == 6
    assert numbers.systems is not None
    assert numbers.systems.between_systems is not None
    assert [one.system for one in numbers.systems.between_systems.systems] == ["x", "y"]


@pytest.mark.parametrize(("costs", "on"), [((1, 1), "validation"), ((5, 1), None)])
def test_a_threshold_that_fails_no_row_is_kept_at_the_costs_that_it_was_chosen_for(
    costs: tuple[float, float], on: str | None
) -> None:
    scale, evidence = Scale.from_name("pass_fail"), EvidenceOptions(0.9, None, *costs)
    rows = [
        Prediction(label=label, verdict="PASS", probabilities=[0.6, 0.4], group=i)
        for i, label in enumerate(["PASS"] * 30 + ["FAIL"] * 10)
    ]
    fitted = Fitted.on(rows, scale, 0.9)
    assert fitted is not None
    assert fitted.operating is None
    on_these = [row.model_copy(update={"label": "FAIL"}) for row in rows]
    best = judge_numbers(on_these, Resampler(range(40), 50), scale, evidence, fitted).operating
    assert best is not None
    assert best.chosen_on == on
    assert (best.threshold is None) is (on is not None)


def test_a_judge_without_faults_raises_at_most_10_alarms_in_100_seeds() -> None:
    alarms = []
    for seed in range(100):
        found = checks(scored(seed), FIVE, seed) if seed % 2 else checks(compared(seed), PAIR, seed)
        alarms += [name for name, one in found.items() if one.alarm]
    assert len(alarms) <= 10, alarms


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("generosity", lambda seed: scored(seed, bias=0.7)),
        ("overconfidence", lambda seed: scored(seed, temperature=0.4)),
        ("overconfidence", lambda seed: scored(seed, temperature=3)),
        ("order", lambda seed: compared(seed, liking=0.3)),
        ("order", lambda seed: compared(seed, liking=1)),
    ],
)
def test_a_known_fault_is_reported_as_such(name: str, rows: Any) -> None:
    for seed in range(10):
        scale = PAIR if name == "order" else FIVE
        assert checks(rows(seed), scale, seed)[name].alarm
