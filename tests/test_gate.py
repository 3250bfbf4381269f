"""`judge gate`: its decision is that of the interval, and no rows are never a pass."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale
from pt_app.evidence.gate import EXIT_CODES
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation

TEN = Scale.from_name("0-10")


def evaluated(
    folder: Path, noise: float, seed: int = 0, count: int = 300, failures: int = 0, **change: Any
) -> Path:
    """An evaluation folder of a judge that errs by `noise`."""
    labels = np.random.default_rng(0).integers(0, 11, count)
    errors = np.random.default_rng(seed).normal(0, noise, count)
    verdicts = np.clip(np.round(labels + errors), 0, 10).astype(int).tolist()
    rows = [
        {
            "model": "adapter",
            "id": f"r{i}",
            "group": f"s{i // 2}",
            "label": int(label),
            "verdict": None if i < failures else verdict,
            "status": "parse_failure" if i < failures else "ok",
        }
        | change
        for i, (label, verdict) in enumerate(zip(labels, verdicts, strict=True))
    ]
    judges = [JudgeRows("adapter", folder.name, list(map(Prediction.model_validate, rows)))]
    write_evaluation(folder, judges, results_of(judges, TEN, {"path": "d"}, (), (), {}))
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["gate", *map(str, words)], standalone_mode=False)


@pytest.mark.parametrize(
    ("noise", "flags", "decision"),
    [
        (0.8, [], "pass"),
        (4.0, [], "fail"),
        (0.9, ["--margin=0"], "undecided"),
        (0.8, ["--floor=0.99"], "fail"),
        (0.8, ["--floor=0.5"], "pass"),
        (0.8, ["--rows=301"], "undecided"),
    ],
)
def test_the_interval_decides(
    tmp_path: Path, noise: float, flags: list[str], decision: str
) -> None:
    before = evaluated(tmp_path / "before", 1.0, seed=1)
    done = run(before, evaluated(tmp_path / "new", noise, seed=2), *flags)
    assert done.return_value == EXIT_CODES[decision], done.output  # type: ignore[index]
    assert f"gate: {decision}" in done.output


def test_a_floor_needs_no_second_judge(tmp_path: Path) -> None:
    new = evaluated(tmp_path / "new", 1.0)
    assert run(new, "--floor=0.6").return_value == 0
    assert isinstance(run(new).exception, UserError)


def test_parse_failures_and_unscored_rows_have_limits(tmp_path: Path) -> None:
    before, new = evaluated(tmp_path / "before", 1.0), evaluated(tmp_path / "new", 0.5, failures=9)
    done = run(before, new)
    assert done.return_value == 3
    assert "parse failures: 9 of 300, at most 2.0% are allowed" in done.output
    assert run(before, new, "--parse_failures=0.03", "--margin=0.2").return_value == 0


def test_a_judge_that_must_leave_too_much_to_people_is_refused(tmp_path: Path) -> None:
    chances = [0.1] * 11
    chances[0] = 0.0
    new = evaluated(tmp_path / "new", 1.0, probabilities=chances)
    assert run(new, "--floor=0.5").return_value == 0
    done = run(new, "--floor=0.5", "--abstentions=0.5")
    assert done.return_value == 3
    assert "abstentions: 300 of 300, at most 50.0% are allowed" in done.output


def test_no_rows_are_never_a_pass(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "none", 1.0)
    (folder / "predictions.jsonl").write_text("")
    done = run(folder, "--floor=0.1", "--rows=1")
    assert done.return_value == 4
    assert "no row was scored" in done.output


def test_equal_labels_decide_nothing(tmp_path: Path) -> None:
    done = run(evaluated(tmp_path / "new", 1.0, label=5), "--floor=0.1")
    assert done.return_value == 4
    assert "undefined" in done.output


@pytest.mark.parametrize(
    ("change", "words"), [({"count": 299}, "judged different rows"), ({"label": 3}, "one label")]
)
def test_judges_of_different_rows_are_not_compared(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    before = evaluated(tmp_path / "before", 1.0)
    done = run(before, evaluated(tmp_path / "new", 1.0, **change))
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_ci_gets_junit_and_markdown(tmp_path: Path) -> None:
    before, new = evaluated(tmp_path / "before", 1.0), evaluated(tmp_path / "new", 4.0, failures=1)
    xml, page = tmp_path / "gate.xml", tmp_path / "gate.md"
    assert run(before, new, f"--junit={xml}", f"--markdown={page}", "--rows=500").return_value == 3
    suite = ElementTree.fromstring(xml.read_text())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == [
        "kappa_quadratic not worse by 0.02"
    ]
    assert next(iter(suite.keys())) == "name"
    assert page.read_text().split("\n")[1:4] == ["", "| check | decision | |", "|---|---|---|"]
    assert "| rows | undecided | 300 rows" in page.read_text()
    assert json.loads((new / "results.json").read_text())["models"][0]["parse_failures"] == 1
