"""The typed content of an evaluation's files: what is read is written again, old or unknown."""

import json
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.core.results import Check, Metric, Prediction, Results, read_predictions, read_results

OLD = {
    "schema": 1,
    "task": "score",
    "data": {"path": "d", "n": 3, "groups": 3},
    "scale": "0-10",
    "models": [
        {
            "name": "base",
            "metrics": {"mae": {"value": 0.5, "low": None, "high": None, "n": 3, "unit": "points"}},
            "parse_failures": 1,
            "verdict_mass": 0.97,
        }
    ],
    "from_the_future": {"x": [1, None]},
}
ROW = {"model": "base", "label": 7, "verdict": 7.5, "greedy": "A", "status": "ok", "new": [1]}


def test_an_old_file_has_defaults_and_is_written_again_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(OLD))
    results = read_results(tmp_path)
    assert results.as_json() == OLD | {"schema": 2}
    assert results.schema_version == 2
    assert (results.baselines, results.comparisons, results.ceiling) == ([], [], None)
    assert results.judge is not None
    assert (results.judge.name, results.judge.checks) == ("base", {})
    assert results.judge.metrics["mae"].value == 0.5
    results.leaks.n = 2
    assert results.leak_line().startswith("LEAKS: 2 texts")


def test_a_row_keeps_the_types_of_verdicts_and_fields_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text(f"{json.dumps(ROW)}\n\n")
    (row,) = read_predictions(tmp_path)
    assert row.as_json() == ROW
    assert (row.label, row.verdict, row.answered) == (7, 7.5, "A")
    assert not row.in_both_orders
    assert Prediction.model_validate(ROW | {"swapped": None}).in_both_orders


def test_what_schema_1_called_constrained_is_the_verdict(tmp_path: Path) -> None:
    ours = {"verdict": None, "constrained": 7, "swapped": "B", "swapped_constrained": "A"}
    old = [ours, {"verdict": 3, "constrained": None}]
    lines = [json.dumps({"model": "m", "label": 7, "status": "ok"} | row) for row in old]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines))
    chosen, given = read_predictions(tmp_path)
    assert (chosen.verdict, chosen.answered) == (7, None)
    assert (chosen.in_one_order, chosen.swapped, chosen.swapped_greedy) == (7, "A", "B")
    assert (given.verdict, given.answered) == (3, 3)
    models = [
        {"metrics": {"exact": {"value": 0.5}}, "constrained": {"exact": {"value": 0.7}}},
        {"metrics": {"exact": {"value": 0.5}}},
    ]
    (tmp_path / "results.json").write_text(json.dumps(OLD | {"models": models}))
    results = read_results(tmp_path)
    chosen_by, written = results.models
    assert (chosen_by.metrics["exact"].value, chosen_by.answers["exact"].value) == (0.7, 0.5)
    assert (chosen_by.verdict_rule, chosen_by.far_from_greedy) == ("mode", None)
    assert written.answers == written.metrics
    (tmp_path / "results.json").write_text(json.dumps(results.as_json()))
    assert read_results(tmp_path) == results


def test_a_field_of_another_type_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(OLD | {"models": [{"name": "a", "parse_failures": "many"}]}))
    with pytest.raises(UserError, match=r"results\.json: field models\.0\.parse_failures"):
        read_results(tmp_path)
    file.write_text(json.dumps({name: OLD[name] for name in ("schema", "task", "data", "scale")}))
    with pytest.raises(UserError, match="field models is missing: evaluate again"):
        read_results(tmp_path)


def test_an_undefined_number_has_a_reason_and_the_error_is_not_written() -> None:
    number = Metric.of(0.5, 3, (0.4, 0.6, 0.1))
    assert number.as_json() == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    assert Metric.of(float("nan"), 0).reason == "no rows"
    check = number.extended(Check, p=0.2)
    assert check.as_json() == number.as_json() | {"p": 0.2}
    assert check.error == 0.1


def test_the_columns_of_a_table_are_those_that_were_measured() -> None:
    metrics = {"kappa": Metric(value=0.5), "order_consistency": Metric(value=0.9)}
    results = Results.model_validate({"task": "pairwise", "models": [{"metrics": metrics}]})
    assert "order_consistency" in results.columns()
    assert "first_preference" in results.columns()  # a column of its own, though it is empty
    assert "rouge_l" not in results.columns()
    assert Results(task="score").columns()[0] == "kappa_quadratic"
