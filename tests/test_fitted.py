"""What validation rows teach about confidence: fitted in training, kept, used, and read again."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pt_app.core.choosing import choose
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale
from pt_app.eval_model.judge_train_mps import main as train
from pt_app.evidence.calibration import (
    FILE,
    Fitted,
    confidence_in,
    confidence_of,
    probabilities_of,
    rows_to_fit_on,
    with_temperature,
)
from pt_app.judge import Judge
from tests.question_rows import questions
from tests.rows import write_rows

FIVE = Scale.from_name("1-5")


def judged(n: int, temperature: float = 1.0, seed: int = 0) -> list[Prediction]:
    """Rows of a judge that is calibrated at temperature 1 and too sure below."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(5, 0.3), n)
    labels = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    said = with_temperature(truth, temperature)
    return [
        Prediction(
            label=int(label) + 1,
            verdict=choose(chances, FIVE, "mode"),
            group=i,
            probabilities=chances,
        )
        for i, (label, chances) in enumerate(zip(labels, said.tolist(), strict=True))
    ]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = Fitted.on(judged(300, 0.5), FIVE, 0.9)
    assert found is not None
    assert found.temperature == pytest.approx(2, rel=0.2)
    found.write(tmp_path)
    assert Fitted.read(tmp_path, "mode") == found
    assert Fitted.read(tmp_path / "none", "mode") is None
    # What was fitted on verdicts that were chosen otherwise says nothing about these.
    assert Fitted.read(tmp_path, "mean") is None
    assert Fitted.read(tmp_path, "mode", "both") is None
    for broken in (b'{"schema": 1}', b"\xff"):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(UserError, match=r"evaluate .*again"):
            Fitted.read(tmp_path, "mode")


def test_few_rows_teach_nothing() -> None:
    assert Fitted.on(judged(29), FIVE, 0.9) is None
    assert Fitted.on([Prediction(label=1, group=1)] * 50, FIVE, 0.9) is None


def test_a_rare_question_is_calibrated_on_all_of_its_validation_rows() -> None:
    common, rare, *_ = questions()
    rows = []
    for i in range(1500):
        row = JudgeExample(id=str(i), where=f"row {i}")
        rows += [row.model_copy(update={"question": common})]
        if i % 38 == 0:
            rows += [row.model_copy(update={"question": rare})]
    drawn = rows_to_fit_on(rows)
    assert Counter(row.asks for row in drawn) == {common.name: 1000, rare.name: 40}
    assert [rows.index(row) for row in drawn] == sorted(rows.index(row) for row in drawn)
    # Rows that have both labels are drawn for both questions: they share the state.
    assert len({row.id for row in drawn}) < 1020
    alone = [row for row in rows if row.question is common]
    assert len(rows_to_fit_on(alone)) == 1000
    assert rows_to_fit_on(rows[:50]) == rows[:50]
    assert rows_to_fit_on([]) == []


def test_a_row_below_the_threshold_is_left_to_people() -> None:
    found = Fitted.on(judged(3000), FIVE, 0.9)
    assert found is not None
    assert found.threshold.threshold is not None
    sure, abstains = found.of_one(confidence_in(1, (0.99, 0.01, 0, 0, 0), FIVE))
    assert (abstains, sure > 0.9) == (False, True)
    unsure, abstains = found.of_one(confidence_in(1, (0.3, 0.3, 0.2, 0.1, 0.1), FIVE))
    assert (abstains, unsure < 0.6) == (True, True)
    careful = Fitted.on(judged(60), FIVE, 0.999)
    assert careful is not None
    assert careful.of_one(confidence_in(1, (0.9, 0.1, 0, 0, 0), FIVE))[1] is None


def test_a_row_at_the_threshold_is_kept_as_the_evaluation_keeps_it() -> None:
    ten, rng = Scale.from_name("0-10"), np.random.default_rng(0)
    rows = [
        Prediction(label=0, verdict=choose(chances, ten, "mean"), group=i, probabilities=chances)
        for i, chances in enumerate(rng.dirichlet(np.ones(11), 300).round(4).tolist())
    ]
    found = Fitted.on(rows, ten, 0.9)
    assert found is not None
    verdicts = np.array([row.verdict for row in rows], dtype=np.int64)
    parts = probabilities_of(rows, ten), verdicts, 0 * verdicts
    sure = confidence_of(*parts, ten, found.tolerance).sure
    for row, least in zip(rows, sure.tolist(), strict=True):
        found.threshold.threshold = least
        assert row.probabilities is not None
        assert row.verdict is not None
        assert found.of_one(confidence_in(row.verdict, row.probabilities, ten))[1] is False


def test_the_schema_is_the_files_own(tmp_path: Path) -> None:
    found = Fitted.on(judged(60), FIVE, 0.9)
    assert found is not None
    found.schema_version = 2
    found.write(tmp_path)
    assert Fitted.read(tmp_path, "mode") == found


def test_training_fits_on_validation_rows_and_judging_uses_it(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", val=40)
    flags = {"model": base, "data_dir": rows, "output_dir": tmp_path, "tracking": "off"}
    train([f"--{name}={value}" for name, value in (flags | {"epochs": 1}).items()])
    (adapter,) = tmp_path.glob("*_final")
    fitted = Fitted.read(adapter, "mean")
    assert fitted is not None
    assert fitted.rows == 40
    results = json.loads((adapter / "evaluation" / "results.json").read_text())
    judge, bare = results["models"]
    assert judge["mended"]["temperature"] == fitted.temperature
    assert judge["selective"]["chosen_on"] == "validation"
    assert "mended" not in bare
    assert "chosen_on" not in bare["selective"]
    (one,) = Judge.load(adapter, base=str(base)).score([{"source": "a", "candidate": "b"}])
    assert one.probabilities is not None
    assert one.confidence is not None
    assert (one.calibrated, one.abstain) == fitted.of_one(one.confidence)
    report = (adapter / "evaluation" / "report.md").read_text()
    assert "ECE after temperature" in report
    assert "from validation rows" in report
