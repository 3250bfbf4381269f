"""Accept or escalate, and the distance of distributions to the annotators'."""

import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from pt_app.core.results import Cost, Prediction, Results
from pt_app.core.verdicts import Scale
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.people import distance_to_shares
from pt_app.evidence.results import JudgeRows, results_of

SCALE = Scale.from_name("1-5")


def rows(model: str, sure: bool, wrong: float, seed: int = 0, n: int = 200) -> list[Prediction]:
    """Verdicts of a judge that errs on the rows of which it is not sure, if it says how sure."""
    rng, labels, made = random.Random(f"{model}{seed}"), random.Random(seed), []
    for i in range(n):
        label, peak = labels.choice(SCALE.values), rng.uniform(0.3, 1)
        errs = rng.random() < (1.3 * (1 - peak) if sure else wrong)
        verdict = rng.choice([v for v in SCALE.values if v != label]) if errs else label
        chances = [peak if v == verdict else (1 - peak) / 4 for v in SCALE.values]
        own: dict[str, Any] = {"probabilities": chances} if sure else {}
        row = {"model": model, "id": str(i), "group": str(i), "label": label, "verdict": verdict}
        made.append(Prediction.model_validate(row | own))
    return made


def evaluated(*judges: JudgeRows) -> Results:
    return results_of(judges, SCALE, {}, [], [], {}, EvidenceOptions(target_accuracy=0.7))


def test_the_ends_of_the_curve_are_both_judges_alone() -> None:
    theirs = rows("big", sure=False, wrong=0.4)
    theirs[3].verdict = None  # refused
    cost = Cost(dollars=2.0, per_verdict=0.01, n=200)
    found = evaluated(
        JudgeRows("own", "", rows("own", sure=True, wrong=0), rule="mode"),
        JudgeRows("big", "", theirs, cost=cost),
    )
    curve = found.escalation
    assert curve is not None
    first, last = curve.points[0], curve.points[-1]
    own, big = found.models
    assert (curve.a, curve.b, first.kept, last.kept) == ("own", "big", 0, 1)
    head = curve.metric
    assert first.agreement.value == pytest.approx(big.answers[f"{head}_strict"].value)
    assert last.agreement.value == pytest.approx(own.metrics[head].value)
    assert own.calibration
    assert last.right.value == pytest.approx(own.calibration.right.value)
    assert (first.per_verdict, last.per_verdict) == (0.01, 0)
    kept = [point.kept for point in curve.points]
    assert kept == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=0.01)
    # The judge errs where it is unsure: keeping the surest rows is better than either end.
    rights = [point.right.value or 0 for point in curve.points]
    assert max(rights[1:-1]) > max(rights[0], rights[-1])
    assert all(point.right.low is not None for point in curve.points)


def test_the_threshold_of_the_judge_is_on_the_curve_with_its_difference() -> None:
    own = rows("own", sure=True, wrong=0, n=600)
    big = rows("big", sure=False, wrong=0.4, n=600)
    cost = Cost(dollars=0, per_verdict=0, n=600)
    found = evaluated(JudgeRows("own", "", own, rule="mode"), JudgeRows("big", "", big, cost=cost))
    assert found.escalation
    assert found.escalation.chosen
    assert found.models[0].selective
    chosen, difference = found.escalation.chosen, found.escalation.difference
    assert chosen.threshold == found.models[0].selective.threshold
    assert chosen.kept == pytest.approx(found.models[0].selective.kept.value)
    assert difference
    assert (difference.a, difference.b) == ("own, else big", "big")
    alone = found.escalation.points[0].agreement.value
    assert difference.value == pytest.approx((chosen.agreement.value or 0) - (alone or 0))


def test_without_confidence_or_endpoint_there_is_no_curve() -> None:
    cost = Cost(dollars=0, per_verdict=0, n=200)
    sure, given = rows("own", sure=True, wrong=0), rows("big", sure=False, wrong=0.1)
    assert evaluated(JudgeRows("own", "", sure), JudgeRows("big", "", given)).escalation is None
    paid = JudgeRows("big", "", given, cost=cost)
    assert evaluated(JudgeRows("own", "", given), paid).escalation is None
    assert evaluated(paid, JudgeRows("own", "", sure)).escalation is None


def rated(*verdicts: Any, shares: list[float] | None = None) -> Prediction:
    people = [{"rater": str(i), "verdict": verdict} for i, verdict in enumerate(verdicts)]
    return Prediction.model_validate({"annotators": people, "shares": shares})


def test_the_distance_to_the_annotators_is_the_earth_movers() -> None:
    rng = np.random.default_rng(0)
    given = [rated(*rng.integers(1, 6, 3).tolist()) for _ in range(30)]
    chances = rng.dirichlet(np.ones(5), 30)
    found = distance_to_shares(given, chances, SCALE, Resampler(range(30)))
    expected = [
        wasserstein_distance(SCALE.values, [a.verdict for a in row.annotators or []], u_weights=own)
        for row, own in zip(given, chances, strict=True)
    ]
    assert found
    assert found.judge.value == pytest.approx(np.mean(expected))
    assert found.constant.value
    assert found.constant.value > 0


def test_rows_with_one_label_have_no_distance_and_votes_have_one() -> None:
    scale, sample = Scale.from_name("pass_fail"), Resampler(range(3))
    given = [rated("PASS", shares=[1.0, 0.0]), rated("PASS", "FAIL"), rated(shares=[0.2, 0.8])]
    chances = np.array([[0.0, 1.0], [0.9, 0.1], [0.2, 0.8]])
    found = distance_to_shares(given, chances, scale, sample)
    assert found
    assert (found.judge.value, found.judge.n) == (pytest.approx(0.2), 2)
    assert distance_to_shares(given[:1], chances[:1], scale, Resampler([0])) is None
    unread = np.full((3, 2), np.nan)
    assert distance_to_shares(given, unread, scale, sample) is None
