"""`judge eval --decisions`: a decision model at an endpoint, served by ourselves or misbehaving."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from pt_app.cli import app
from pt_app.core.decision_wires import TRUE_FALSE, WireQuestion, request, route
from pt_app.core.errors import UserError
from pt_app.core.questions import Declared, Question
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.eval_model import compare
from pt_app.models.endpoint import client
from tests.conftest import ROOT
from tests.question_rows import questions, write_questions
from tests.teacher_server import Answer, Body, TeacherServer, failure

FLAT = [0.04] * 10 + [0.6]
SCALE = Scale.from_name("0-10")


@pytest.fixture(autouse=True)
def key_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


def answered(chances: list[float], **changed: Any) -> Answer:
    """An answer of OpenAI's Decisions to the question of a dataset with the scale 0-10."""
    listed = [{"value": str(i), "probability": p} for i, p in enumerate(chances)]
    one: Body = {"type": "choice", "name": "verdict", "choice": "10", "confidence": 0.5}
    one |= {"probabilities": listed} | changed
    usage = {"input_tokens": 100, "output_tokens": 0}
    body = {"model": "m-2026-11", "answers": [one], "usage": usage}
    return 200, {}, json.dumps(body).encode()


def run(rows: Path, out: Path, url: str, *flags: str) -> Result:
    words = [f"--data={rows}", f"--decisions={url}", f"--out={out}", "--endpoint_model=m"]
    return CliRunner().invoke(app, ["eval", *words, *flags])


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def predictions(out: Path, model: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    return [line for line in lines if line["model"] == model]


# What a decision model is asked, and how its answers are read


@pytest.mark.parametrize("wire", ["openai", "systemone"])
@pytest.mark.parametrize("name", ["0-10", "1-5", "pass_fail", "pairwise"])
def test_a_server_reads_what_is_asked(wire: Any, name: str) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.serving import wires

    scale = Scale.from_name(name)
    question = WireQuestion.of(scale, "How good is it?")
    read = wires.SystemOne if wire == "systemone" else wires.Decisions
    made = read.model_validate(request(wire, "m", {"candidate": "a"}, {"q": question}))
    assert made.wire_questions() == [question]
    assert question.names == tuple(map(str, scale.values))
    assert made.state() in ({"candidate": "a"}, '{"candidate": "a"}')


@pytest.mark.parametrize("wire", ["openai", "systemone"])
def test_a_server_reads_declared_questions_with_what_their_options_mean(wire: Any) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.serving import wires

    asked = {q.name: WireQuestion.of(q.scale, "", q) for q in questions()}
    body = request(wire, "m", {"ticket": "t"}, asked)
    read = wires.SystemOne if wire == "systemone" else wires.Decisions
    apologises, offer, quality, overall = read.model_validate(body).wire_questions()
    said = "says sorry in its own words"
    assert said in (apologises.descriptions[0], apologises.instructions.partition("true: ")[2][:27])
    assert offer == asked["offer"]
    assert "solves it" in (*quality.names, *quality.descriptions)
    assert overall == asked["overall"]


TEXT = st.text(max_size=12)
SCALES = st.sampled_from(["0-1", "0-2", "1-5", "1-5:0.5", "-2-2:0.5", "0-10", "0-100"])
DECLARED = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("bool"), "instructions": TEXT},
        optional={"criteria": st.dictionaries(st.sampled_from(["true", "false"]), TEXT)},
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("choice"),
            "instructions": TEXT,
            "options": st.dictionaries(TEXT, st.none() | TEXT, min_size=2, max_size=5),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("score"),
            "instructions": TEXT,
            "levels": st.lists(st.none() | TEXT, min_size=2, max_size=12),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("score"), "instructions": TEXT, "scale": SCALES},
        optional={"legend": st.dictionaries(st.sampled_from(["0", "1", "2", "-2", "1.5"]), TEXT)},
    ),
)


@pytest.mark.parametrize("wire", ["openai", "systemone"])
@given(declared=DECLARED)
@example(declared={"type": "bool", "instructions": "Is it so?\n", "criteria": {"true": "yes\n"}})
@example(
    declared={
        "type": "score",
        "instructions": "How many stars?",
        "scale": "1-5",
        "legend": {"1": "bad", "5": "good"},
    }
)
@example(declared={"type": "score", "instructions": "How much?", "levels": ["none", None, "much"]})
def test_a_served_judge_knows_its_own_question_in_the_words_of_our_client(
    wire: Any, declared: dict[str, Any]
) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.judge import Judge
    from pt_app.serving import wires
    from pt_app.serving.questions import row_of

    try:
        own = Question.of("own", Declared.model_validate(declared), "here")
    except UserError:
        reject()
    judge = Judge.__new__(Judge)
    judge.info = SimpleNamespace(questions=(own,), state=("text",))  # type: ignore[assignment]
    body = request(wire, "m", {"text": "a"}, {"q": WireQuestion.of(own.scale, "", own)})
    read = wires.SystemOne if wire == "systemone" else wires.Decisions
    made = read.model_validate(json.loads(json.dumps(body)))
    row = row_of(made.wire_questions()[0], made.state(), judge, strict=True)
    assert row.trained
    assert isinstance(row.row, JudgeExample)
    assert row.row.question is own
    expected = TRUE_FALSE if own.type == "bool" else tuple(map(str, own.scale.values))
    assert row.verdicts == expected


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"probabilities": [{"value": str(i), "probability": p} for i, p in enumerate(FLAT)]}, ""),
        ({"probabilities": {str(i): p for i, p in enumerate(FLAT)}}, ""),
        ({"probabilities": {str(i): 0.09 for i in range(11)}}, ""),  # rounded to two decimals
        ({"probabilities": {str(i): 0.2 for i in range(11)}}, "that sum to 2.2"),
        ({"probabilities": {str(i): 0.0 for i in range(11)}}, "that sum to 0"),
        ({"probabilities": {str(i): 0.1 for i in range(10)}}, "other options"),
        ({"probabilities": {str(i): None for i in range(11)}}, "no probability"),
        ({"probabilities": {str(i): -0.1 for i in range(11)}}, "a number that is no probability"),
        ({"probabilities": {str(i): "0.09" for i in range(11)}}, "a number that is no probability"),
        (
            {"probabilities": {str(i): 10**400 for i in range(11)}},
            "a number that is no probability",
        ),
        ({"probabilities": 1}, "no probabilities"),
        ({"type": "refusal"}, "refused"),
        (None, "no probabilities"),
    ],
)
def test_an_answer_is_read_or_says_what_is_wrong(answer: Any, problem: str) -> None:
    question = WireQuestion.of(SCALE, "")
    if problem:
        with pytest.raises(ValueError, match=problem):
            question.chances(answer)
    else:
        assert sum(question.chances(answer)) == pytest.approx(1, abs=1e-12)


def test_levels_of_a_score_go_by_their_places() -> None:
    question = WireQuestion.of(Scale.from_name("1-5"), "")
    shares = [0.1, 0.2, 0.3, 0.4, 0.0]
    listed = [{"value": i, "label": str(i + 1), "probability": p} for i, p in enumerate(shares)]
    given = {str(i): p for i, p in enumerate(shares)}
    assert question.chances({"probabilities": listed}) == pytest.approx(shares)
    assert question.chances({"probabilities": given}) == pytest.approx(shares)


def test_a_scale_with_too_many_verdicts_is_refused() -> None:
    with pytest.raises(UserError, match="1001 verdicts, and decision models take at most 255"):
        WireQuestion.of(Scale.from_name("0-1000"), "")


def test_a_question_on_too_fine_a_scale_is_named_before_adapters_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_judged_each", None)
    data = write_questions(tmp_path / "data")
    card = json.loads((data / "dataset.json").read_text())
    card["questions"]["overall"]["scale"] = "0-1000"
    (data / "dataset.json").write_text(json.dumps(card))
    done = run(data, tmp_path / "out", "http://127.0.0.1:9")
    said = "question overall: the scale 0-1000 has 1001 verdicts, and decision models take at most "
    assert f"{said}255 options: remove the question from a copy of the data" in str(done.exception)


def test_a_url_that_names_a_route_is_taken_as_it_is() -> None:
    assert route("http://a/v1/", "openai") == "http://a/v1/decisions"
    assert route("http://a/v1", "systemone") == "http://a/v1/systemone"
    assert route("http://a/v1/decisions", "systemone") == "http://a/v1/decisions"


# Endpoints that misbehave


def test_a_decision_model_is_a_judge_with_probabilities_flips_and_a_price(
    rows: Path, tmp_path: Path
) -> None:
    def answer(body: Body, number: int) -> Answer:
        assert body["questions"][0]["instructions"].endswith("10 is perfect, 0 is useless.")
        state = json.loads(body["input"])
        assert set(state) == {"source", "reference", "candidate"}  # no label, no id
        flipped = number == 30 and [*FLAT[::-1]]
        return answered(flipped or FLAT)

    with TeacherServer(answer) as server:
        flags = ["--price_in=1", "--concurrency=1"]
        done = run(rows, tmp_path / "out", server.url, *flags)
        assert done.exit_code == 0, done.exception
        again = run(rows, tmp_path / "out", server.url, *flags)
        assert again.exit_code == 0, again.exception
        assert server.answered == 36  # three times each; what the journal holds is not paid again
    (model,) = results(tmp_path / "out")["models"]
    assert model["repeats"]["times"] == 3
    assert model["repeats"]["flips"]["value"] == pytest.approx(1 / 12)
    assert model["repeats"]["probability"] == pytest.approx(0.56)
    assert model["cost"] == pytest.approx({"dollars": 0.0036, "per_verdict": 0.0001, "n": 36})
    assert (model["verdict_rule"], model["calibration"]["ece"]["n"]) == ("mean", 12)
    assert "answered as m-2026-11" in model["id"]
    assert {row["verdict"] for row in predictions(tmp_path / "out", "m")} == {8}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "m was asked 3 times about each row; a probability changes by up to 0.560" in report
    lines = [line for line in report.splitlines() if line.startswith("| m | ")]
    assert any("0.083 [" in line and line.endswith("| 0.000100 |") for line in lines)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (answered(FLAT, type="refusal"), "1 answers of m cannot be read: refused"),
        (answered([0.2] * 11), "1 answers of m cannot be read: probabilities that sum to 2.2"),
        (answered(FLAT[:9]), "1 answers of m cannot be read: probabilities of other options"),
        (
            (200, {}, b'{"model": "m"}'),
            "1 of 12 requests have no answer: an answer without answers, 7 times",
        ),
        (failure(413, "too long"), "1 of 12 requests have no answer: status 413: too long"),
    ],
)
def test_a_row_without_a_usable_answer_is_a_parse_failure_and_counted(
    odd: Answer, said: str, rows: Path, tmp_path: Path
) -> None:
    first: list[str] = []

    def answer(body: Body, number: int) -> Answer:
        first[:] = first or [body["input"]]
        return odd if body["input"] == first[0] else answered(FLAT)

    with TeacherServer(answer) as server:
        done = run(rows, tmp_path / "out", server.url, "--repeats=1")
    assert done.exit_code == 0, done.exception
    assert said in " ".join(done.output.split())
    (model,) = results(tmp_path / "out")["models"]
    assert (model["parse_failures"], "repeats" in model) == (1, False)
    assert model["metrics"]["mae"]["n"] == 11
    assert model["metrics"]["mae_strict"]["n"] == 12


def test_what_is_refused_each_time_is_counted_as_requests(rows: Path, tmp_path: Path) -> None:
    first: list[str] = []

    def answer(body: Body, number: int) -> Answer:
        first[:] = first or [body["input"]]
        return failure(400, "no") if body["input"] == first[0] else answered(FLAT)

    with TeacherServer(answer) as server:
        done = run(rows, tmp_path / "out", server.url, "--repeats=2")
    assert done.exit_code == 0, done.exception
    assert "2 of 24 requests have no answer: status 400: no" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (failure(401, "no"), "does not accept the key in OPENAI_API_KEY"),
        (failure(403, "no"), "does not accept the key in OPENAI_API_KEY"),
        (failure(404, "no"), "knows no model m at this address"),
        (failure(422, "questions: no such type"), "refuses every request .status 422: questions"),
        (answered([0.2] * 11), "no answer of m can be read .probabilities that sum to 2.2"),
        ((200, {}, b'{"answers": []}'), "no answer of m can be read .no probabilities"),
        ((200, {}, b"<html>"), "did not answer in 7 tries .last: an answer that is no JSON"),
        (failure(500, "down"), "did not answer in 7 tries .last: status 500: down"),
    ],
)
def test_an_endpoint_that_is_of_no_use_ends_the_run_in_a_line(
    answer: Answer, said: str, rows: Path, tmp_path: Path
) -> None:
    with TeacherServer(lambda body, number: answer) as server:
        done = run(rows, tmp_path / "out", server.url, "--repeats=1", "--concurrency=1")
    assert isinstance(done.exception, UserError)
    assert re.search(said, str(done.exception))
    assert not (tmp_path / "out").exists()


def test_a_pause_that_the_endpoint_asks_for_is_kept(rows: Path, tmp_path: Path) -> None:
    def answer(body: Body, number: int) -> Answer:
        return failure(429, "slow down", Retry_After="0.4") if number == 3 else answered(FLAT)

    with TeacherServer(answer) as server:
        done = run(rows, tmp_path / "out", server.url, "--repeats=1", "--concurrency=1")
    assert done.exit_code == 0, done.exception
    assert server.requests[3][0] - server.requests[2][0] >= 0.4
    assert server.answered == 12


def test_the_money_ends_a_run_and_more_repeats_resume_it(rows: Path, tmp_path: Path) -> None:
    with TeacherServer(lambda body, number: answered(FLAT)) as server:
        flags = ["--price_in=100", "--concurrency=1"]
        done = run(rows, tmp_path / "out", server.url, *flags, "--max_cost=0.1")
        assert "stopped at --max_cost 0.1" in str(done.exception)
        assert 0 < (paid := server.answered) < 12
        for repeats, total in ((1, 12), (3, 36)):
            done = run(rows, tmp_path / "out", server.url, *flags, f"--repeats={repeats}")
            assert done.exit_code == 0, done.exception
            assert server.answered == total
        assert paid < 12
    assert results(tmp_path / "out")["models"][0]["cost"]["dollars"] == pytest.approx(0.36)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--decisions=http://127.0.0.1:9"], "--decisions and --endpoint_model belong together"),
        (["--decisions=http://a", "--endpoint=http://a", "--endpoint_model=m"], "give one"),
        (["--decisions=http://a", "--endpoint_model=m", "--shots=2"], "takes no examples"),
        (["--decisions=http://a:port/v1", "--endpoint_model=m"], "is no URL of an endpoint"),
        (["--decisions=http://[::1/v1", "--endpoint_model=m"], "is no URL of an endpoint"),
        (["--endpoint=localhost:8000/v1", "--endpoint_model=m"], "localhost:8000/v1 is no URL"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    flags: list[str], said: str, rows: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["eval", f"--data={rows}", f"--out={tmp_path / 'o'}", *flags])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)


# Our own server


@pytest.fixture(scope="module")
def served(adapter: Path, base: Path) -> Iterator[Any]:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.judge import Judge
    from tests.serving import Running

    with Running(Judge.load(adapter, base=str(base)), key="secret") as running:
        yield running


@pytest.mark.parametrize("wire", ["openai", "systemone"])
def test_a_served_judge_has_the_numbers_of_its_adapter(
    wire: str,
    served: Any,
    adapter: Path,
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OURS", "secret")
    out, flags = tmp_path / "out", [f"--adapter={adapter}", f"--base_path={base}", f"--wire={wire}"]
    flags += ["--key_env=OURS", "--endpoint_model=jev-latest", "--probe_rows=0", "--price_in=2"]
    done = run(rows, out, f"{served.url}/v1", *flags)
    assert done.exit_code == 0, done.exception
    own, theirs = predictions(out, "adapter"), predictions(out, "jev-latest")
    for one, other in zip(own, theirs, strict=True):
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)
        assert other["verdict"] == one["verdict"]
    found = results(out)
    first, second = found["models"]
    assert second["repeats"]["flips"]["value"] == 0
    assert second["repeats"]["probability"] <= 1e-5
    assert adapter.name in second["id"]
    assert second["calibration"]["ece"]["value"] == pytest.approx(
        first["calibration"]["ece"]["value"], abs=1e-4
    )
    tokens = second["cost"]["dollars"] / 2 * 1e6
    assert tokens == pytest.approx(36 * 200, rel=0.5)
    # Escalation to a judge of the same verdicts changes nothing but the price.
    points = found["escalation"]["points"]
    assert (points[0]["kept"], points[-1]["kept"]) == (0, 1)
    assert len({round(point["right"]["value"], 9) for point in points}) == 1
    assert points[-1]["per_verdict"] == 0 < points[0]["per_verdict"]
    assert "Accept or escalate" in (out / "report.md").read_text()


def test_a_served_judge_refuses_another_key_and_another_model(
    served: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(rows, tmp_path / "out", f"{served.url}/v1", "--endpoint_model=jev-latest")
    assert "does not accept the key in OPENAI_API_KEY (status 401)" in str(done.exception)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    # Nothing was answered, so that the journal binds nobody to the first model.
    done = run(rows, tmp_path / "out", f"{served.url}/v1")
    assert "knows no model m at this address (status 404)" in str(done.exception)


def test_a_served_judge_that_is_asked_something_else_is_told_of(
    served: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    data = tmp_path / "data"
    shutil.copytree(rows, data)
    card = {"task": "score", "scale": "0-10", "template": "translation", "rubric": "Is it formal?"}
    (data / "dataset.json").write_text(json.dumps(card))
    flags = ["--endpoint_model=jev-latest", "--repeats=1"]
    done = run(data, tmp_path / "out", f"{served.url}/v1", *flags)
    assert done.exit_code == 0, done.exception
    said = "12 answers of jev-latest are to a question that it was not trained on"
    assert said in " ".join(done.output.split())


def to_all(body: Body, **extra: dict[str, Any]) -> Answer:
    """Even answers to all questions of a request of OpenAI's Decisions; `extra` by question."""
    answers: list[Body] = []
    for asked in body["questions"]:
        one: Body = {"type": asked["type"], "name": asked["name"], "probability": 0.5}
        if asked["type"] != "predicate":
            listed = asked.get("choices") or asked["levels"]
            values = [each.get("value", place) for place, each in enumerate(listed)]
            one["probabilities"] = [{"value": v, "probability": 1 / len(values)} for v in values]
        answers.append(one | extra.get(asked["name"], {}))
    usage = {"input_tokens": 100, "output_tokens": 0}
    return 200, {}, json.dumps({"model": "m", "answers": answers, "usage": usage}).encode()


def test_questions_that_a_served_judge_was_not_trained_on_are_named(tmp_path: Path) -> None:
    other = {"x_judge": {"trained_question": False}}
    data = write_questions(tmp_path / "data")
    with TeacherServer(lambda body, number: to_all(body, offer=other, quality=other)) as server:
        done = run(data, tmp_path / "out", server.url, "--repeats=1")
    assert done.exit_code == 0, done.exception
    said = "18 answers of m are to a question that it was not trained on: offer, quality"
    assert said in " ".join(done.output.split())


@pytest.mark.slow
def test_questions_of_a_served_judge_have_the_numbers_of_its_adapter(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.eval_model.judge_train_mps import main as train
    from pt_app.judge import Judge
    from tests.serving import Running

    data = write_questions(tmp_path / "data")
    flags = {"model": base, "data_dir": data, "output_dir": tmp_path / "a", "epochs": 1}
    train(
        [f"--{name}={value}" for name, value in flags.items()] + ["--tracking=off", "--skip_eval"]
    )
    (adapter,) = (tmp_path / "a").glob("*_final")
    out = tmp_path / "out"
    with Running(Judge.load(adapter, base=str(base))) as served:
        words = [f"--adapter={adapter}", f"--base_path={base}", "--wire=systemone"]
        words += ["--endpoint_model=jev-latest", "--probe_rows=0"]
        done = run(data, out, f"{served.url}/v1", *words)
    assert done.exit_code == 0, done.exception
    for name in ("apologises", "offer", "quality", "overall"):
        own, theirs = (predictions(out / name, model) for model in ("adapter", "jev-latest"))
        for one, other in zip(own, theirs, strict=True):
            assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5), name
        assert results(out / name)["models"][-1]["repeats"]["flips"]["value"] == 0


@pytest.mark.slow
def test_the_commands_meet_on_the_loopback(
    adapter: Path, base: Path, rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    judge = [sys.executable, "-m", "pt_app.cli"]
    serve = [*judge, "serve", str(adapter), f"--base={base}", "--port=0"]
    with subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().partition("http://127.0.0.1:")[2].split()[0]
            words = [f"--data={rows}", f"--decisions=http://127.0.0.1:{port}/v1"]
            words += [f"--endpoint_model={adapter.name}", f"--out={tmp_path / 'out'}"]
            began = time.monotonic()
            done = subprocess.run(
                [*judge, "eval", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, (done.stderr, time.monotonic() - began)
        finally:
            process.terminate()
    (model,) = results(tmp_path / "out")["models"]
    assert (model["parse_failures"], model["repeats"]["flips"]["value"]) == (0, 0)
