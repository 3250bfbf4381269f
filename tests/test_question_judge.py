"""A judge of several questions, from its dataset to its answers."""

import csv
import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from benchmarks.serve import measure as measure_served
from pt_app.attack.run import attack
from pt_app.cli import app
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.questions import Declared, Question
from pt_app.core.results import Results, read_attacks, read_predictions, read_results
from pt_app.eval_model import score_file as score_command
from pt_app.eval_model.combining import combine_questions
from pt_app.eval_model.compare import NOT_SHARED, evaluate_judges
from pt_app.eval_model.evaluation import Scoring
from pt_app.eval_model.options import EvalOptions, ScoreOptions
from pt_app.eval_model.score_file import score_file
from pt_app.judge import Judge, status_of
from pt_app.models import adapters, bases
from pt_app.models.adapters import verify_adapter
from pt_app.serving.exporting import export
from pt_app.serving.options import ExportOptions, ParityOptions
from pt_app.serving.parity import Reference, check
from tests.contract import assert_adapter_contract
from tests.question_rows import QUESTIONS, make_row, write_questions
from tests.test_report_browser import CHROMIUM

STATE = {"ticket": "One cup is broken.", "reply": "Sorry! A new cup leaves today."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "tickets", val=44, test=48)


@pytest.fixture(scope="module")
def adapter(base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of four questions, trained for a few steps and evaluated."""
    from pt_app.eval_model.judge_train_mps import main as train

    out = tmp_path_factory.mktemp("judge")
    flags = {"model": base, "data_dir": folder, "output_dir": out, "epochs": 1, "tracking": "off"}
    train([f"--{name}={value}" for name, value in flags.items()])
    (made,) = out.glob("*_final")
    return made


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> Judge:
    return Judge.load(adapter, base=str(base))


def test_an_adapter_keeps_its_questions_as_they_were_declared(adapter: Path) -> None:
    kept = json.loads((adapter / "judge.json").read_text())
    assert kept["task"] == "questions"
    assert kept["state"] == ["ticket", "reply"]
    assert list(kept["questions"]) == list(QUESTIONS)
    assert "scale" not in kept
    assert [q.type for q in verify_adapter(adapter).questions] == [
        "bool",
        "choice",
        "score",
        "score",
    ]
    card = (adapter / "README.md").read_text()
    assert "| offer | choice | What does the reply offer? |" in card


def test_stock_peft_loads_an_adapter_of_questions_and_computes_the_judges_logits(
    adapter: Path, base: Path, judge: Judge
) -> None:
    assert_adapter_contract(adapter)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(30, 60)[None]
    with torch.no_grad():
        plain, own = model(ids).logits, judge.model(ids).logits
        stock = PeftModel.from_pretrained(model, adapter, torch_device="cpu").eval()
        torch.testing.assert_close(stock(ids).logits, own, rtol=0, atol=1e-4)
    assert not torch.allclose(own, plain, atol=1e-3), "the adapter does nothing"


def test_each_question_has_an_evaluation_of_its_own_below_an_overview(
    adapter: Path, folder: Path
) -> None:
    overview = read_results(adapter / "evaluation")
    assert list(overview.questions) == list(QUESTIONS)
    for name, summary in overview.questions.items():
        results = read_results(adapter / "evaluation" / name)
        assert results.task == ("score" if QUESTIONS[name]["type"] == "score" else "choice")
        assert summary.n == results.data.n == 36
        assert [model.name for model in results.models] == ["adapter", "base"]
        assert summary.agreement == results.models[0].metrics[summary.metric]
        assert (summary.option_order is not None) == (summary.type == "choice")
        assert {row.question for row in read_predictions(adapter / "evaluation" / name)} == {name}
        assert (adapter / f"calibration.{name}.json").exists()
        assert (adapter / "evaluation" / name / "report.html").exists()
    page = (adapter / "evaluation" / "report.html").read_text()
    assert 'href="offer/report.html"' in page


def test_answers_have_the_types_of_their_questions(judge: Judge) -> None:
    answers = judge.ask(STATE)
    assert list(answers) == list(QUESTIONS)
    assert isinstance(answers["apologises"].value, bool)
    assert set(answers["apologises"].probabilities or ()) == {"true", "false"}
    assert answers["offer"].value in QUESTIONS["offer"]["options"]
    assert answers["quality"].value in (0, 1, 2)
    assert answers["overall"].expected is not None
    for answer in answers.values():
        assert sum((answer.probabilities or {}).values()) == pytest.approx(1, abs=1e-6)
        assert answer.trained
        assert answer.calibrated is not None
        assert 0 < (answer.verdict_mass or 0) <= 1


def test_an_answer_does_not_depend_on_what_else_is_asked(judge: Judge) -> None:
    whole = judge.ask(STATE)
    for names in (["overall"], ["quality", "offer"]):
        for name, answer in judge.ask(STATE, names).items():
            assert answer.probabilities == pytest.approx(whole[name].probabilities, abs=1e-5)


def test_a_trained_question_is_known_by_its_words_and_not_by_its_name(judge: Judge) -> None:
    options = dict(reversed(QUESTIONS["offer"]["options"].items()))
    asked = {"what": {**QUESTIONS["offer"], "options": options}}
    answer = judge.ask(STATE, asked, strict=True)["what"]
    trained = judge.ask(STATE)["offer"]
    assert answer.trained
    assert answer.probabilities == pytest.approx(trained.probabilities, abs=1e-5)
    assert answer.abstain == trained.abstain


def test_another_question_is_answered_but_not_relied_on(judge: Judge) -> None:
    asked: dict[str, Any] = {"polite": {"type": "bool", "instructions": "Is the reply polite?"}}
    answer = judge.ask(STATE, asked)["polite"]
    assert (answer.trained, answer.calibrated, answer.abstain) == (False, None, True)
    assert isinstance(answer.value, bool)
    with pytest.raises(
        UserError, match=r"questions.polite: it is not one that .* apologises, offer"
    ):
        judge.ask(STATE, asked, strict=True)


@pytest.mark.parametrize(
    ("state", "questions", "problem"),
    [
        ({"ticket": "x"}, None, "field reply: the row has none"),
        ("a text", None, "give a text for each of ticket, reply"),
        (STATE, ["tone"], 'there is no question "tone": use apologises, offer'),
        (STATE, {"a": {"type": "choice", "instructions": "?", "options": ["x"]}}, "1 options"),
        (STATE, {"a": {"type": "box"}}, "questions.a, field type"),
        (STATE, {"a": {"type": "bool", "instructions": "\ud800?"}}, "a: it holds half of a surr"),
        (STATE, {1: {"type": "bool", "instructions": "?"}}, '"1" is no name of a question'),
        (STATE, "tone", 'there is no question "tone"'),
        (STATE, [], "questions: there is none: name some, or leave it out for all"),
        (STATE, {}, "there is no question: declare one or more"),
        (None, None, "a state maps fields to texts, and this is a NoneType: give ticket, reply"),
        ([STATE], None, "a state maps fields to texts, and this is a list"),
        ({**STATE, "reply": math.nan}, None, "field reply: the row has none"),
        ({**STATE, "reply": np.float32("nan")}, None, "field reply: the row has none"),
        ({**STATE, "reply": math.inf}, None, "field reply: it is no text"),
        ({**STATE, "reply": {"lines": [math.nan]}}, None, "field reply: it is no text"),
        (STATE, 5, "questions: a value of type int names none: give names"),
        (STATE, True, "questions: a value of type bool names none: give"),
        ({**STATE, "reply": "cup " * 2000}, None, "question apologises: state and question take"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    judge: Judge, state: Any, questions: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        judge.ask(state, questions)


@pytest.mark.parametrize("states", [5, None, "a text", STATE])
def test_what_is_no_list_of_states_is_refused(judge: Judge, states: Any) -> None:
    with pytest.raises(UserError, match="states: give a list of them, not a "):
        judge.ask_all(states)


def test_a_judge_of_one_question_scores_rows_and_is_compared_on_it(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    from pt_app.eval_model.judge_train_mps import main as train

    flags = {"model": base, "data_dir": folder, "output_dir": tmp_path, "epochs": 1}
    flags |= {"tracking": "off", "questions": "quality", "max_samples": 8}
    train([*(f"--{name}={value}" for name, value in flags.items()), "--skip_eval"])
    (single,) = tmp_path.glob("*_final")
    one = Judge.load(single, base=str(base))
    (score,), answer = one.score([STATE]), one.ask(STATE)["quality"]
    assert score.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
    assert (score.verdict, score.abstain) == (answer.verdict, answer.abstain)
    (bad,) = one.score([{**STATE, "reply": math.nan}])
    assert (bad.status, "field reply: the row has none" in (bad.problem or "")) == ("bad_row", True)
    found = attack(single, folder, base=str(base), rows=2, names=["empty", "asked alone"])
    assert list(found) == ["quality"]
    options = EvalOptions(base=str(base), probe_rows=0)
    evaluate_judges(folder, tmp_path / "out", [adapter, single], options)
    written = read_results(tmp_path / "out").questions
    left = {name: own.few for name, own in written.items() if own.few}
    assert left.keys() == QUESTIONS.keys() - {"quality"}
    assert set(left.values()) == {NOT_SHARED}
    assert "left out" in (tmp_path / "out" / "report.md").read_text()
    found: Results = read_results(tmp_path / "out" / "quality")
    assert len(found.models) == 2
    again = found.models[0].metrics["kappa_quadratic"].value
    own = read_results(adapter / "evaluation" / "quality").models[0]
    assert again == pytest.approx(own.metrics["kappa_quadratic"].value)
    (tmp_path / "scores").mkdir()
    for split in ("train", "val", "test"):
        row = {"source": f"{split} cup", "candidate": f"{split} xícara", "label": {"verdict": 1}}
        (tmp_path / "scores" / f"judge_{split}.json").write_text(json.dumps([row]))
    card = {"task": "score", "scale": verify_adapter(single).scale.name}
    (tmp_path / "scores" / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="scores declares none: name the data of its"):
        evaluate_judges(tmp_path / "scores", tmp_path / "never", [single], options)


def test_a_question_without_a_test_row_is_left_out_and_the_others_are_measured(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    rows = [json.loads(line) for line in (data / "judge_test.json").read_text().splitlines()]
    for row in rows:
        row["labels"].pop("offer", None)
    (data / "judge_test.json").write_text("\n".join(map(json.dumps, rows)))
    evaluate_judges(data, tmp_path / "out", [adapter], EvalOptions(base=str(base), probe_rows=0))
    found = read_results(tmp_path / "out").questions
    assert {name: own.n for name, own in found.items()} == {
        name: 0 if name == "offer" else 36 for name in QUESTIONS
    }
    assert found["offer"].few == "not enough labels (0; 30 are needed)"
    assert not (tmp_path / "out" / "offer").exists()
    # A draw may leave a question without a row, too: each row lacks one of the four labels.
    drawn = EvalOptions(rows=1, base=str(base), probe_rows=0)
    evaluate_judges(folder, tmp_path / "one", [adapter], drawn)
    assert sorted(own.n for own in read_results(tmp_path / "one").questions.values()) == [
        0,
        1,
        1,
        1,
    ]


def test_a_question_with_too_few_validation_rows_is_named(
    adapter: Path, base: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info, data = verify_adapter(adapter), read_dataset(folder)
    encoder = adapters.encoder_of(info, bases.load_tokenizer(adapter))
    validation = [row for row in data.val if row.asks != "offer"][: 3 * 40]
    scoring = Scoring(encoder, data.test[:1], False, "float32")
    found = scoring.each(
        "adapter", "a", adapters.load_merged(adapter, adapters.base_of(info, str(base))), validation
    )
    assert [name for name, rows in found.items() if rows.fitted is None] == ["offer"]
    said = "adapter, offer: no calibration and no threshold: 0 validation rows have a label and fit"
    assert f"{said}, and 30 are needed: label more" in caplog.text


def test_commands_of_one_scale_refuse_several_questions_in_a_line(
    judge: Judge, folder: Path
) -> None:
    with pytest.raises(UserError, match="takes one question, and there are 4"):
        judge.score([make_row("test", 0)])


@pytest.mark.parametrize("line", ["", json.dumps(STATE)])
def test_trying_a_judge_of_several_questions_is_refused_before_a_row_is_read(
    line: str, adapter: Path, base: Path
) -> None:
    words = ["try", str(adapter), f"--base={base}"]
    done = CliRunner().invoke(app, words, input=line)
    assert done.exit_code
    assert "this takes one question, and there are 4" in f"{done.output} {done.exception}"


def test_a_judge_is_attacked_question_by_question(adapter: Path, base: Path, folder: Path) -> None:
    words = ["attack", f"--adapter={adapter}", f"--data={folder}", f"--base={base}", "--rows=4"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    for name, declared in QUESTIONS.items():
        found = read_attacks(adapter / "evaluation" / name)
        assert found is not None
        n = found.data.rows or 0
        assert (found.question, 0 < n <= 4) == (name, True)
        assert found.families["steering"].attacks == n * 6 * len(STATE)
        assert ("option order" in found.families) == (declared["type"] == "choice")
        alone = found.families["asked alone"]
        assert alone.changed is not None
        assert alone.changed.value == 0
        assert alone.shift.value == pytest.approx(0, abs=1e-4)
        control = found.control_tokens
        assert control is not None
        assert (control.control_ids, control.other_ids) == (0, 0)
        assert control.twins == control.attacks == n * 8
        page = (adapter / "evaluation" / name / "report.md").read_text()
        assert "| steering |" in page
        assert "Changed: share with another verdict" in page
        assert f"{name}: {n} test rows attacked" in done.output


def test_questions_that_are_not_attacked_are_named(
    adapter: Path, base: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    card = json.loads((data / "dataset.json").read_text())
    card["questions"]["offer"]["options"] = dict(reversed(QUESTIONS["offer"]["options"].items()))
    card["questions"]["overall"]["instructions"] = "How good?"
    (data / "dataset.json").write_text(json.dumps(card))
    how = {"base": str(base), "rows": 2, "names": ["empty"]}
    found = attack(adapter, data, tmp_path / "out", **how)
    assert list(found) == ["apologises", "quality"]
    for name in ("offer", "overall"):
        assert (
            f"{name}: the judge was not trained on it by this name, in these words" in caplog.text
        )


def test_a_question_that_is_written_in_another_way_is_the_same(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    card = json.loads((data / "dataset.json").read_text())
    card["questions"]["apologises"]["instructions"] += " \n"
    card["questions"]["offer"]["options"]["nothing"] = ""
    card["questions"]["quality"]["instructions"] = f" {QUESTIONS['quality']['instructions']}"
    card["questions"]["overall"]["scale"] = "0.0-10:1"
    (data / "dataset.json").write_text(json.dumps(card))
    options = EvalOptions(rows=4, base=str(base), probe_rows=0, with_base=True)
    for name, rows in (("own", folder), ("other", data)):
        evaluate_judges(rows, tmp_path / name, [adapter], options)
    for name in QUESTIONS:
        own, other = (read_predictions(tmp_path / out / name) for out in ("own", "other"))
        assert [row.probabilities for row in own] == [row.probabilities for row in other]
    found = attack(adapter, data, tmp_path / "out", base=str(base), rows=4, names=["empty"])
    assert list(found) == list(QUESTIONS)


def test_other_data_than_the_judges_questions_is_refused(
    adapter: Path, base: Path, folder: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="asks none of the questions of"):
        attack(adapter, rows, base=str(base))
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    card = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(card | {"state": ["ticket"]}))
    with pytest.raises(UserError, match="about ticket, reply: name data of the judge's"):
        attack(adapter, data, base=str(base))
    with pytest.raises(UserError, match="about the same fields: name data and adapters"):
        evaluate_judges(data, tmp_path / "never", [adapter], EvalOptions(base=str(base)))
    with pytest.raises(UserError, match="does not ask apologises about ticket, reply"):
        Reference.of(verify_adapter(adapter), data, ParityOptions(base=str(base)))


def test_a_file_of_rows_that_cannot_be_read_is_answered_row_by_row(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"ticket": 1}\n{"reply": 2}\n')
    options = ScoreOptions(base=str(base))
    out = tmp_path / "out.jsonl"
    assert score_file(adapter, str(tmp_path / "rows.jsonl"), out, options) == {"bad_row": 2}
    with pytest.raises(UserError, match="--feedback: a judge of questions writes none"):
        score_file(
            adapter,
            str(tmp_path / "rows.jsonl"),
            tmp_path / "other.jsonl",
            ScoreOptions(base=str(base), feedback=True),
        )


def test_a_question_of_other_words_is_not_combined(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    card = json.loads((data / "dataset.json").read_text())
    card["questions"]["quality"]["instructions"] = "How long is the reply?"
    (data / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="quality is another question"):
        combine_questions(adapter, data, "quality", tmp_path, base=str(base))


def test_a_file_gets_a_set_of_columns_for_each_question(
    adapter: Path, base: Path, judge: Judge, tmp_path: Path
) -> None:
    rows = [
        {"id": "a", "text": STATE["ticket"], "reply": STATE["reply"]},
        {"id": "b", "text": "One cup is broken."},
        {"id": "c", "text": "x", "reply": "cup " * 2000},
    ]
    # Of several statuses the worst is the row's: a judge of few steps may leave the verdicts.
    own = [answer.status for answer in judge.ask(STATE).values()]
    worst = "parse_failure" if "parse_failure" in own else "ok"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ScoreOptions(base=str(base), map=("ticket=text",))
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"out.{ending}"
        counts = score_file(adapter, str(tmp_path / "rows.jsonl"), out, options)
        assert counts == {worst: 1, "bad_row": 1, "too_long": 1}
    judged = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name, answer in judge.ask(STATE).items():
        assert judged[0][f"{name}.value"] == answer.value
        assert judged[0][f"{name}.probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
        assert judged[0][f"{name}.abstain"] == answer.abstain
    assert "field reply: the row has none" in judged[1]["problem"]
    assert judged[2]["offer.status"] == "too_long"
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["offer.value"] == judged[0]["offer.value"]
    assert first["apologises.value"] == str(judged[0]["apologises.value"]).lower()
    assert first["apologises.value"] in json.loads(first["apologises.probabilities"])
    assert first["offer.abstain"] in ("true", "false", "")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    for line, row in zip(judged, table.to_pylist(), strict=True):
        for name in QUESTIONS:
            assert row[f"{name}.value"] == line.get(f"{name}.value")
            assert type(row[f"{name}.value"]) is type(line.get(f"{name}.value"))
    assert str(table.schema.field("overall.value").type) == "int64"


def test_scores_of_decimals_are_numbers_in_a_table(tmp_path: Path) -> None:
    declared: Any = {"type": "score", "instructions": "How good?", "scale": "0-1:0.5"}
    asked = (Question.of("a.value", Declared.model_validate(declared), "here"),)
    rows = [{"id": "1", "a.value.value": 0.5}, {"id": "2", "a.value.value": None}]
    score_command._write(tmp_path / "out.parquet", rows, ["id", "a.value.value"], asked)
    column = pyarrow.parquet.read_table(tmp_path / "out.parquet").column("a.value.value")
    assert (str(column.type), column.to_pylist()) == ("double", [0.5, None])


def test_a_row_that_is_too_long_for_one_of_its_questions_is_counted_so(
    adapter: Path, base: Path, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter(["parse_failure", "too_long", "ok", "ok"])
    answers = {n: replace(a, status=next(statuses)) for n, a in judge.ask(STATE).items()}
    monkeypatch.setattr(Judge, "answer", lambda *_, **__: [answers])
    (tmp_path / "rows.jsonl").write_text(json.dumps(STATE))
    words = ["score", f"--adapter={adapter}", f"--base={base}"]
    words += [f"--input={tmp_path}/rows.jsonl", f"--output={tmp_path}/out.jsonl"]
    done = CliRunner().invoke(app, words)
    assert "out.jsonl: 1 rows: 1 too_long" in done.output
    assert "the status of a row is the worst of its answers'" in done.output


def test_a_question_is_combined_of_the_others_and_compared_with_asking_it(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    found = combine_questions(adapter, folder, "overall", tmp_path, base=str(base))
    assert found.rows == 33
    assert found.difference.n == 36
    assert set(found.weights) == {"apologises", "offer", "quality"}
    assert (tmp_path / "combined.json").exists()
    with pytest.raises(UserError, match='declares no question "tone": it declares apologises'):
        combine_questions(adapter, folder, "tone", tmp_path, base=str(base))


@pytest.fixture(scope="module")
def running(judge: Judge) -> Iterator[Any]:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from tests.serving import Running

    with Running(judge) as server:
        yield server


# The questions of the judge by other names, as System One has them.
OWN: dict[str, Any] = {
    "a": {"type": "noul", "criteria": QUESTIONS["apologises"]["criteria"]},
    "b": {
        "type": "choice",
        "criteria": dict(reversed(QUESTIONS["offer"]["options"].items())),
    },
    "c": {"type": "score", "criteria": QUESTIONS["quality"]["levels"]},
    "d": {"type": "score", "criteria": [str(value) for value in range(11)]},
}
for asked, declared in zip(OWN.values(), QUESTIONS.values(), strict=True):
    asked["instructions"] = f" {declared['instructions']}\n"


def served(running: Any, questions: Any, state: Any = STATE) -> dict[str, Any]:
    answer = running.post("/v1/systemone", {"state": state, "questions": questions})
    answers: dict[str, Any] = answer["answers"]
    return answers


def test_served_questions_are_answered_as_the_judge_answers_its_own(
    judge: Judge, running: Any
) -> None:
    answers = served(running, OWN)
    for found, own in zip(answers.values(), judge.ask(STATE).values(), strict=True):
        chances = own.probabilities or {}
        if own.type == "bool":
            assert found["noul"] == pytest.approx(chances["true"], abs=1e-5)
        else:
            assert found["probabilities"] == pytest.approx(chances, abs=1e-5)
        extra = found["x_judge"]
        assert (extra["trained_question"], extra["calibrated"]) == (True, True)
        assert (extra["verdict"], extra["abstain"]) == (own.verdict, own.abstain)
        assert extra["accuracy"] == pytest.approx(own.calibrated, abs=1e-5)
    assert served(running, OWN, json.dumps(STATE)) == answers


def test_levels_that_are_asked_as_a_choice_are_the_trained_question(running: Any) -> None:
    levels = OWN["c"]["criteria"]
    choice = {**OWN["c"], "type": "choice", "criteria": dict.fromkeys(levels)}
    both = served(running, {"score": OWN["c"], "choice": choice})
    assert both["choice"]["x_judge"]["trained_question"]
    chances = dict(zip(levels, both["score"]["probabilities"].values(), strict=True))
    assert both["choice"]["probabilities"] == pytest.approx(chances)


def test_a_served_question_in_other_words_is_not_the_trained_one(running: Any) -> None:
    other = {
        **OWN,
        "a": {"type": "noul", "instructions": QUESTIONS["apologises"]["instructions"]},
        "c": {**OWN["c"], "criteria": [*QUESTIONS["quality"]["levels"], "more"]},
    }
    answers = served(running, other)
    for name, trained in zip("abcd", (False, True, False, True), strict=True):
        extra = answers[name]["x_judge"]
        assert (extra["trained_question"], extra["calibrated"]) == (trained, trained)
    assert answers["a"]["x_judge"]["abstain"]
    assert len(answers["c"]["probabilities"]) == 4


def test_a_strict_server_answers_its_own_questions_alone(judge: Judge, running: Any) -> None:
    with type(running)(judge, strict=True) as strict:
        assert served(strict, OWN)
        asked = {"q": {"type": "noul", "instructions": "Is it polite?"}}
        status, content, _ = strict.ask(
            "POST", "/v1/systemone", {"state": STATE, "questions": asked}
        )
    assert (status, b"questions.q: this judge answers its own questions alone" in content) == (
        422,
        True,
    )
    assert json.loads(content)["detail"][0]["loc"] == ["body", "questions", "q"]


# A question that is known, and one without words.
TEXT = json.dumps(STATE)
BLANK = {**OWN, "z": {"type": "noul", "instructions": " "}}
LIST = [{"type": "predicate", "name": name, "instructions": name.strip()} for name in ("p", " ")]
WHERE = "questions.1.instructions: they are empty"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("[1]", "[1]"),
        ('{"reply": "inner", "a": 1}', '{"reply": "inner", "a": 1}'),
        ('{"reply": "inner"}', "inner"),  # as wires without objects write a row
        ('inputs: {"reply": "inner"}', "inner"),
        (json.dumps({"reply": '{"reply": "inner"}'}), '{"reply": "inner"}'),
        ({"reply": '{"reply": "inner"}'}, '{"reply": "inner"}'),
    ],
)
def test_a_text_of_a_judge_with_one_field_is_read_as_it_is_though_it_be_json(
    state: Any, text: str, judge: Judge, running: Any
) -> None:
    info = replace(judge.info, state=("reply",))
    one = Judge(judge.model, info, judge.encoder)
    own = one.ask(text, ["quality"])["quality"]
    body = {"model": "jev-latest", "questions": {"q": OWN["c"]}}
    with type(running)(one) as server:
        for path, field in (("systemone", "state"), ("decisions", "input")):
            answer = server.post(f"/v1/{path}", {**body, field: state})["answers"]["q"]
            assert answer["probabilities"] == pytest.approx(own.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("systemone", {"state": {"ticket": "x"}, "questions": OWN}, 422, "field reply"),
        ("systemone", {"state": "x", "questions": OWN}, 422, "field ticket"),
        ("systemone", {"state": STATE, "questions": BLANK}, 422, "questions.z.instructions: they"),
        ("decisions", {"input": TEXT, "questions": BLANK}, 422, "questions.z.instructions: they"),
        ("decisions", {"model": "jev-latest", "input": TEXT, "questions": LIST}, 422, WHERE),
        (
            "systemone",
            {"state": {**STATE, "reply": "cup " * 2000}, "questions": OWN},
            413,
            "questions.a: state and question take more",
        ),
    ],
)
def test_what_a_server_of_questions_cannot_answer_is_a_typed_error(
    path: str, body: Any, status: int, said: str, running: Any
) -> None:
    found, content, _ = running.ask("POST", f"/v1/{path}", body)
    answer = json.loads(content)
    assert (found, said in answer["error"]["message"]) == (status, True), content
    if said.startswith("questions.") and status == 422:
        (detail,) = answer["detail"]
        assert detail["loc"] == ["body", "questions", 1 if said == WHERE else "z"]


def test_rows_are_judged_by_all_questions_of_a_served_judge(judge: Judge, running: Any) -> None:
    rows = [STATE | {"id": "a"}, {"ticket": "x"}, {**STATE, "reply": "cup " * 2000}]
    answer = running.post("/v1/judgements", {"rows": rows})
    whole, bad, long = answer["judgements"]
    assert (whole["id"], bad["status"]) == ("a", "bad_row")
    assert "field reply: the row has none" in bad["problem"]
    assert long["status"] == "too_long"
    own = judge.ask(STATE)
    assert whole["status"] == status_of(own)
    assert whole["answers"].keys() == own.keys()
    for name, one in whole["answers"].items():
        assert (one["value"], one["type"]) == (own[name].value, own[name].type)
        assert one["probabilities"] == pytest.approx(own[name].probabilities, abs=1e-5)
    assert answer["usage"]["input_tokens"] == sum(one["tokens"] for one in (whole, bad, long))
    many = running.ask("POST", "/v1/judgements", {"rows": [STATE] * 251})
    assert (many[0], b"send at most 250" in many[1]) == (422, True)
    only_bad = running.post("/v1/judgements", {"rows": rows[1:2]})["judgements"]
    assert only_bad == [bad | {"id": only_bad[0]["id"], "problem": only_bad[0]["problem"]}]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_the_page_shows_the_answer_to_each_question(judge: Judge, running: Any) -> None:
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    from pt_app.serving.server import PAGE, Server
    from tests.serving import Loopback

    filled = f"""<script>
      const wait = setInterval(() => {{
        const fields = [...document.querySelectorAll("textarea")];
        if (!fields.length) return;
        clearInterval(wait);
        for (const field of fields) field.value = {json.dumps(STATE)}[field.name];
        document.querySelector("button").click();
      }}, 50);
    </script></body>"""
    page = PAGE.read_text(encoding="utf-8").replace("</body>", filled)
    application = Server([judge]).application("127.0.0.1")
    application.router.routes.insert(0, Route("/", lambda _: HTMLResponse(page)))
    words = ["--headless", "--no-sandbox", "--virtual-time-budget=20000", "--dump-dom"]
    with Loopback(application) as server:
        found = subprocess.run(
            [str(CHROMIUM), *words, server.url], capture_output=True, text=True, timeout=120
        ).stdout
    for name, own in judge.ask(STATE).items():
        said = str(own.value).lower() if own.type == "bool" else own.value
        assert f"<p>{name}: {said}" in found
        assert f'aria-label="{name}: the probability of each answer"' in found


def test_a_judge_of_questions_is_not_measured_on_single_candidates(
    adapter: Path, base: Path
) -> None:
    with pytest.raises(UserError, match="judges questions, and the rows are single candidates"):
        measure_served(adapter, str(base), rows=1, requests=1, body_tokens=30)


def test_a_served_request_that_fails_does_not_fail_those_beside_it(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, go = Judge.answers, threading.Event()

    def answers(judge: Judge, examples: Any, **how: Any) -> Any:
        go.wait(60)
        if any("Xq7" in example.state for example in examples):
            raise UserError("two options are one to this tokenizer")
        return score(judge, examples, **how)

    monkeypatch.setattr(Judge, "answers", answers)

    def wait_for(rows: int) -> None:
        end = time.monotonic() + 60
        while running.server.worker.waiting < rows and time.monotonic() < end:
            time.sleep(0.02)

    bad = {"state": {**STATE, "reply": "Xq7"}, "questions": OWN}
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(served, running, OWN)]
        wait_for(4)  # the others wait for it, and are scored together
        good.append(pool.submit(served, running, OWN))
        failed = pool.submit(running.ask, "POST", "/v1/systemone", bad)
        wait_for(12)
        go.set()
        assert all(each.result() for each in good)
        status, content, _ = failed.result()
    assert (status, b"two options are one" in content) == (422, True)


def test_a_server_says_what_its_questions_are(judge: Judge, running: Any) -> None:
    (model,) = json.loads(running.ask("GET", "/v1/models")[1])["data"]
    about = model["x_judge"]
    assert (about["task"], about["fields"]) == ("questions", ["ticket", "reply"])
    assert list(about["questions"]) == list(QUESTIONS)
    own = about["questions"]["offer"]
    assert own["instructions"] == QUESTIONS["offer"]["instructions"]
    fitted = judge.fitted["offer"]
    assert fitted is not None
    assert own["threshold"] == fitted.threshold.as_json()


def test_exports_and_parity_of_questions_are_refused_before_anything_is_written(
    adapter: Path, base: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has questions, which only transformers answers"):
        export(adapter, "merged", tmp_path / "out", folder, ExportOptions(base=str(base)))
    with pytest.raises(UserError, match="has questions, which only transformers answers"):
        check(adapter, folder, [f"merged:{folder}"], ParityOptions(out=tmp_path / "parity.json"))
    assert not list(tmp_path.iterdir())
