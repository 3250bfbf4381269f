"""How a verdict is chosen from its probabilities, and that the evidence is of that verdict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from pt_app.core.choosing import apart, choose, is_tied, mean_of, resolved_rule
from pt_app.core.errors import UserError
from pt_app.core.orders import flipped, mean_of_orders
from pt_app.core.results import Prediction
from pt_app.core.settings import VerdictRule
from pt_app.core.verdicts import Scale
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation

TEN = Scale.from_name("0-10")
BINNED = Scale.from_name("0-100").with_grid("0-9")
PAIR = Scale.from_name("pairwise")


def distribution(draw: Any, scale: Scale) -> list[float]:
    # Whole numbers of chances make ties likely.
    size = len(scale.lines())
    weights = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any))
    return list(scale.spread([weight / sum(weights) for weight in weights]))


scales = st.sampled_from([TEN, BINNED, *map(Scale.from_name, ("1-5", "0-10:0.5", "0-100:25"))])


@given(st.data(), scales)
def test_each_rule_has_the_least_expected_loss_of_all_verdicts(data: Any, scale: Scale) -> None:
    chances = distribution(data.draw, scale)
    values = [float(value) for value in scale.values]

    def expected(loss: Any, verdict: float) -> float:
        return sum(p * loss(verdict, value) for p, value in zip(chances, values, strict=True))

    losses = {"mean": lambda a, b: (a - b) ** 2, "median": lambda a, b: abs(a - b)}
    for rule, loss in losses.items():
        chosen = expected(loss, float(choose(chances, scale, rule)))
        assert chosen <= min(expected(loss, value) for value in values) + 1e-9
    mean = mean_of(chances, scale)
    assert abs(float(choose(chances, scale, "mean")) - mean) <= (values[1] - values[0]) / 2 + 1e-9
    most = dict(zip(scale.line_values, scale.gathered(chances), strict=True))
    assert most[choose(chances, scale, "mode")] == pytest.approx(max(most.values()))


@pytest.mark.parametrize("squared", [True, False])
def test_unit_of_a_scale_changes_neither_verdict_nor_tie(squared: bool) -> None:
    units = [Scale.from_name(name) for name in ("0-100", "0-1:0.01", "0-10:0.1")]
    rows, between = np.random.default_rng(1).dirichlet(np.full(101, 0.3), 200), np.zeros(101)
    between[[20, 21]] = 0.5  # one is as good as the other
    for chances in [*rows, between]:
        rule: VerdictRule = "mean" if squared else "median"
        chosen = {scale.values.index(choose(chances, scale, rule)) for scale in units}
        tied = {is_tied(chances, scale, rule) for scale in units}
        assert (len(chosen), tied) == (1, {chances is between})


@given(st.data())
def test_candidates_that_change_places_change_the_verdict_exactly(data: Any) -> None:
    given_order, other = distribution(data.draw, PAIR), distribution(data.draw, PAIR)
    mean = mean_of_orders(given_order, other)
    again = mean_of_orders(other, given_order)
    assert again == (mean[1], mean[0], mean[2])
    assert choose(again, PAIR, "mode") == flipped(choose(mean, PAIR, "mode"))


def test_judge_that_goes_by_the_place_alone_calls_a_tie() -> None:
    both = mean_of_orders((0.9, 0.1, 0.0), (0.9, 0.1, 0.0))
    assert choose(both, PAIR, "mode") == "tie"
    assert is_tied(both, PAIR, "mode")
    assert not is_tied((0.9, 0.1, 0.0), PAIR, "mode")


def test_rule_follows_from_what_a_scale_is_measured_with() -> None:
    pass_fail = Scale.from_name("pass_fail")
    assert [resolved_rule("auto", scale) for scale in (TEN, PAIR, pass_fail)] == [
        "mean",
        "mode",
        "mode",
    ]
    assert resolved_rule("median", TEN) == "median"
    for rule in ("mean", "median"):
        with pytest.raises(UserError, match=f"--verdict_rule {rule}: pairwise has no numbers"):
            resolved_rule(rule, PAIR)
    with pytest.raises(UserError, match="--verdict_rule best: choose of auto, mean"):
        resolved_rule("best", TEN)


def test_answers_over_a_tenth_of_the_scale_away_are_apart() -> None:
    assert [apart(5, other, TEN) for other in (5, 4, 6, 3, 7, None)] == [
        *(False, False, False),
        *(True, True, False),
    ]
    assert apart("A", "tie", PAIR)
    assert not apart("A", None, PAIR)


def judged(count: int = 120) -> list[Prediction]:
    """Rows of a hesitant judge, whose mode is far from its mean and whose answers often fail."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, count)
    rows = []
    for i, label in enumerate(labels):
        weights = rng.random(11) ** 3 + np.exp(-0.05 * (np.arange(11) - label) ** 2)
        chances = (weights / weights.sum()).tolist()
        greedy = choose(chances, TEN, "mode") if i % 3 else None
        more = {"verdict": choose(chances, TEN, "mean"), "expected": mean_of(chances, TEN)}
        about = {"model": "adapter", "id": str(i), "group": i // 2, "label": int(label)}
        status = "ok" if i % 3 else "parse_failure"
        row = about | more | {"greedy": greedy, "probabilities": chances, "status": status}
        rows.append(Prediction.model_validate(row))
    return rows


def test_numbers_of_the_results_are_those_of_the_rows(tmp_path: Path) -> None:
    judges = [JudgeRows("adapter", "adapter", judged(), rule="mean")]
    write_evaluation(tmp_path, judges, results_of(judges, TEN, {}, (), (), {}))
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (model,) = json.loads((tmp_path / "results.json").read_text())["models"]
    labels, verdicts, expected = (
        [row[name] for row in rows] for name in ("label", "verdict", "expected")
    )
    found = {name: metric["value"] for name, metric in model["metrics"].items()}
    kappa = sk.cohen_kappa_score(labels, verdicts, weights="quadratic")
    assert found["kappa_quadratic"] == pytest.approx(kappa)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(labels, verdicts))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(labels, expected))
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        assert found[name] == pytest.approx(of(labels, expected)[0])
        assert model["metrics"][name]["low"] < found[name] < model["metrics"][name]["high"]
    assert found["kendall"] == pytest.approx(stats.kendalltau(labels, expected)[0])
    read = [(row["label"], row["greedy"]) for row in rows if row["greedy"] is not None]
    of_answers = sk.cohen_kappa_score(*zip(*read, strict=True), weights="quadratic")
    assert model["greedy"]["kappa_quadratic"]["value"] == pytest.approx(of_answers)
    assert model["greedy"]["kappa_quadratic"]["n"] == len(read) == 80
    assert model["parse_failures"] == 40
    far = [row for row in rows if apart(row["verdict"], row["greedy"], TEN)]
    assert model["far_from_greedy"] == len(far) > 10
    near = [abs(label - verdict) <= 1 for label, verdict in zip(labels, verdicts, strict=True)]
    assert model["calibration"]["right"]["value"] == pytest.approx(np.mean(near))
    assert found["kappa_quadratic"] > model["greedy"]["kappa_quadratic_strict"]["value"]
