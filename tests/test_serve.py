"""`judge serve`: asked by the openai client, by plain HTTP, by many at once and by strangers."""

import copy
import hmac
import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, NotFoundError, RateLimitError, UnprocessableEntityError

pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")

import uvicorn
from starlette.applications import Starlette

from pt_app.core.errors import UserError
from pt_app.core.http_server import MAX_BODY, listen, run
from pt_app.core.prompts import PromptEncoder
from pt_app.core.verdicts import Scale
from pt_app.judge import Judge
from pt_app.models import adapters
from pt_app.serving import batching, server
from pt_app.serving.options import ServeOptions
from pt_app.serving.questions import CONTEXT
from pt_app.serving.server import MAX_ROWS, PAGE, Server, serve
from pt_app.serving.wires import SystemOne
from tests.conftest import ROOT, slow_case
from tests.serving import Running
from tests.test_judge import some_rows
from tests.test_report_browser import CHROMIUM

ROW = {"source": "the old house", "reference": "a casa", "candidate": "o casa velho"}
VALUES = [str(value) for value in range(11)]
OWN: Any = {
    "type": "score",
    "name": "q",
    "instructions": "",
    "levels": [{"label": v} for v in VALUES],
}
OTHER: Any = {"type": "predicate", "name": "other", "instructions": "The text is polite."}


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> Judge:
    return Judge.load(adapter, base=str(base))


@pytest.fixture(scope="module")
def running(judge: Judge) -> Iterator[Running]:
    with Running(judge) as server:
        yield server


def decided(running: Running, *questions: Any, **changed: Any) -> Any:
    asked: Any = {"model": "jev-latest", "input": json.dumps(ROW), "questions": questions} | changed
    return running.client.decisions.create(**asked)


@pytest.mark.parametrize("clients", [1, 16, slow_case(64)])
def test_served_probabilities_are_those_of_the_judge(
    clients: int, judge: Judge, running: Running
) -> None:
    rows = some_rows(1000 if clients == 64 else 60)
    expected = dict(zip([row["id"] for row in rows], judge.score(rows), strict=True))
    random.Random(clients).shuffle(rows)
    with ThreadPoolExecutor(clients) as pool:
        served = [one for (one,) in pool.map(running.judged, rows)]
    for one in served:
        own = expected[one["id"]]
        assert one["probabilities"] == pytest.approx(own.probabilities, abs=1e-5)
        assert one["judge"] == own.judge


def test_equal_requests_get_equal_bytes(running: Running) -> None:
    bodies = {running.ask("POST", "/v1/judgements", {"rows": [ROW]})[1] for _ in range(5)}
    assert len(bodies) == 1


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    """Nagle's algorithm and delayed acknowledgements cost 40 ms a request."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_requests_that_arrive_together_are_scored_together(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, score = running.server.worker, Judge.score
    monkeypatch.setattr(Judge, "score", lambda *a, **k: (time.sleep(0.2), score(*a, **k))[1])
    before = worker.batches, worker.rows
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(running.judged, some_rows(12)))
    assert worker.rows - before[1] == 12
    assert worker.batches - before[0] <= 4


def test_the_own_question_is_answered_as_score_and_as_choice(
    judge: Judge, running: Running
) -> None:
    (own,) = judge.score([ROW])
    assert own.probabilities is not None
    choices = [{"value": value} for value in reversed(VALUES)]
    choice: Any = {"type": "choice", "name": "c", "instructions": "", "choices": choices}
    answer = decided(running, OWN, choice)
    score, chosen = answer.answers
    assert answer.model == judge.name
    assert (score.name, score.type, chosen.choice) == ("q", "score", str(own.mode))
    chances = {each.label: each.probability for each in score.probabilities}
    assert chances == pytest.approx(own.probabilities, abs=1e-5)
    assert score.score == pytest.approx(own.expected, abs=1e-4)
    assert {e.value: e.probability for e in chosen.probabilities} == pytest.approx(chances)
    extra = score.model_extra["x_judge"]
    assert (extra["trained_question"], extra["verdict"]) == (True, own.verdict)
    # Too few validation rows to fit anything: nothing is known, which is no reason to abstain.
    assert (extra["calibrated"], extra["abstain"], own.abstain) == (False, None, None)
    assert answer.usage.input_tokens == answer.usage.total_tokens == 2 * own.tokens


def test_the_words_of_the_rubric_are_the_own_question_too(running: Running) -> None:
    (model,) = running.client.models.list()
    about = model.model_extra["x_judge"]  # type: ignore[index]
    asked = OWN | {"instructions": f" {about['instructions']}\n"}
    state = [{"role": "user", "content": [{"type": "input_json", "data": ROW}]}]
    first, second = decided(running, OWN, asked, input=state).answers
    assert first.probabilities == second.probabilities
    assert {"source", "candidate"} <= set(about["fields"])


def test_system_one_and_the_map_form_give_the_same(running: Running) -> None:
    questions = {"own": {"type": "score", "criteria": VALUES}}
    one = running.post("/v1/systemone", {"state": ROW, "questions": questions})
    two = running.post("/v1/decisions", {"input": json.dumps(ROW), "questions": questions})
    assert one["answers"] == two["answers"]
    assert one["answers"]["own"]["legend"] == dict(zip(VALUES, VALUES, strict=True))


def test_other_questions_are_answered_uncalibrated(running: Running) -> None:
    choice = {
        "type": "choice",
        "instructions": "Who?",
        "choices": [{"value": "a"}, {"value": True}],
    }
    predicate, picked, own = decided(running, OTHER, choice, OWN).answers
    assert 0 < predicate.probability < 1
    assert [each.value for each in picked.probabilities] == ["a", True]
    assert sum(each.probability for each in picked.probabilities) == pytest.approx(1)
    for answer in (predicate, picked):
        extra = answer.model_extra["x_judge"]
        assert (extra["trained_question"], extra["calibrated"], extra["abstain"]) == (
            False,
            False,
            True,
        )
    assert own.probabilities == decided(running, OWN).answers[0].probabilities


def test_other_questions_of_a_request_are_read_in_one_pass(judge: Judge, running: Running) -> None:
    passes = []
    hook = judge.model.register_forward_hook(lambda *_: passes.append(1))
    levels = {"type": "score", "name": "s", "levels": [{"label": "low"}, {"label": "high"}]}
    try:
        three = decided(running, OTHER, levels, levels | {"name": "t", "instructions": "Clear?"})
    finally:
        hook.remove()
    assert len(passes) == 1
    for question, together in zip((OTHER, levels), three.answers[:2], strict=True):
        (alone,) = decided(running, question).answers
        chance = getattr(alone, "probability", None) or alone.score
        same = getattr(together, "probability", None) or together.score
        assert same == pytest.approx(chance, abs=1e-5)


@pytest.mark.parametrize(
    "trained",
    [{"max_seq_length": CONTEXT}, {"asked": Scale.from_name("1-4").with_grid("1-2")}],
    ids=["as long", "same scale, with a grid"],
)
def test_another_question_is_answered_alike_however_the_judge_was_trained(
    trained: dict[str, Any], judge: Judge, running: Running
) -> None:
    info = replace(judge.info, **trained)
    encoder = adapters.encoder_of(info, judge.encoder.tokenizer)
    options = [{"value": each} for each in "abcd"]
    other: Any = {"type": "choice", "name": "c", "instructions": "Who?", "choices": options}
    own = OWN | {"levels": [{"label": str(value)} for value in info.scale.values]}
    with Running(Judge(judge.model, info, encoder)) as changed:
        _, found = decided(changed, own, other).answers
    chances = {each.value: each.probability for each in found.probabilities}
    (answer,) = decided(running, other).answers
    assert chances == pytest.approx({each.value: each.probability for each in answer.probabilities})


def test_strict_refuses_other_questions(judge: Judge) -> None:
    with Running(judge, strict=True) as running:
        with pytest.raises(
            UnprocessableEntityError, match=r"questions\.0: .* its own question alone"
        ):
            decided(running, OTHER)
        assert decided(running, OWN).answers[0].probabilities


LONG = ROW | {"candidate": "casa " * 3000}
NAMES = [*map(str, range(401))]
NOULS = {name: {"type": "noul"} for name in NAMES}
CHOICE = {"type": "choice", "criteria": dict.fromkeys(NAMES)}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("systemone", b"{", 422, "not JSON"),
        ("systemone", b"\xff\xfe", 422, "not JSON"),
        ("systemone", b"[1]", 422, "no JSON object"),
        ("systemone", b'{"state": NaN}', 422, "not JSON"),
        ("systemone", b"[" * 100_000, 422, "not JSON"),
        ("systemone", b'{"state": "x", "questions": {"q": 1, "q": 2}}', 422, '"q" stands twice'),
        ("systemone", b" " * (MAX_BODY + 1), 413, "more than"),
        ("systemone", {"state": "x", "questions": {}}, 422, "questions: "),
        ("systemone", {"state": "x", "questions": {"q": {"type": "box"}}}, 422, "questions.q"),
        ("systemone", {"state": "x", "questions": NOULS}, 422, "questions: "),
        ("systemone", {"state": "x", "questions": {"q": CHOICE}}, 422, "questions.q.choice.cri"),
        (
            "decisions",
            {"model": "m", "input": "x", "questions": [{"type": "score", "instructions": ""}]},
            422,
            "levels",
        ),
        ("decisions", {"model": "none", "input": "x", "questions": [OTHER]}, 404, "there are"),
        ("decisions", {"model": "jev-latest", "input": "x", "questions": [OWN]}, 422, "candidate"),
        ("judgements", {"rows": []}, 422, "rows: "),
        ("judgements", {"rows": [1]}, 422, "rows.0: "),
        ("judgements", {"rows": [ROW] * (MAX_ROWS + 1)}, 422, "rows: "),
        ("judgements", {"rows": [ROW], "model": "x" * 9999}, 404, f"'{'x' * 57}...' here"),
        ("judgements", {"rows": [ROW], "model": "../../etc/passwd"}, 404, "there is no model"),
    ],
)
def test_bad_requests_get_a_typed_error(
    path: str, body: object, status: int, said: str, running: Running
) -> None:
    found, content, _ = running.ask("POST", f"/v1/{path}", body)
    answer = json.loads(content)
    assert (found, said in answer["error"]["message"]) == (status, True), answer
    if status == 422:
        assert all(each["loc"][0] == "body" for each in answer["detail"])
    else:
        assert answer["detail"]["message"] == answer["error"]["message"]


def test_what_is_too_long_is_an_error_and_never_cut(running: Running) -> None:
    (one,) = running.judged(ROW | {"source": "house " * 3000})
    assert one["status"] == "too_long"
    body = {"state": LONG, "questions": {"q": {"type": "score", "criteria": VALUES}}}
    assert running.ask("POST", "/v1/systemone", body)[0] == 413


@pytest.mark.parametrize("question", [OWN, OTHER])
def test_a_state_that_is_too_long_is_encoded_once_however_many_questions_are_asked(
    question: Any, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = (json.dumps(ROW | {"candidate": "casa " * count}) for count in (40_000, 5))
    body = {"model": "jev-latest", "input": long, "questions": [question] * 10}
    encoded: list[object] = []
    with monkeypatch.context() as patch:
        encode = PromptEncoder.prompt_ids
        patch.setattr(PromptEncoder, "prompt_ids", lambda *a: encoded.append(a) or encode(*a))
        assert running.ask("POST", "/v1/decisions", body)[0] == 413
    assert len(encoded) == 1
    answers = running.post("/v1/decisions", body | {"input": short})["answers"]
    monkeypatch.setattr(server, "MAX_BODY", 100)
    assert running.post("/v1/decisions", body | {"input": short})["answers"] == answers
    bad = {"input": "{}" + " " * 1000, "questions": [OWN] * 2}
    assert running.ask("POST", "/v1/decisions", body | bad)[0] == 422


def test_a_bad_row_says_what_is_wrong(running: Running) -> None:
    good, bad = running.judged(ROW, {"source": "a"})
    assert (bad["status"], bad["probabilities"]) == ("bad_row", None)
    assert sum(good["probabilities"].values()) == pytest.approx(1)
    assert "candidate" in bad["problem"]
    with pytest.raises(UnprocessableEntityError, match="candidate"):
        decided(running, OWN, input='{"source": "a"}')


def test_paths_and_methods_that_are_not_there(running: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/systemone", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("POST", "/v1/nothing", 404),
    ):
        found, content, headers = running.ask(method, path)
        assert (found, headers.get("allow")) == (status, "POST" if status == 405 else None)
        assert json.loads(content)["error"]["message"]
    assert running.ask("POST", "/v1/judgements", b"{}", Content_Type="text/plain")[0] == 415
    assert running.ask("GET", "/healthz", Host="rebound.example")[0] == 400


def test_models_are_pinned_to_their_weights(judge: Judge, running: Running) -> None:
    names = [judge.name, judge.name.partition("@")[0], "jev-latest"]
    assert {running.client.models.retrieve(name).id for name in names} == {judge.name}
    with pytest.raises(NotFoundError, match=judge.name):
        running.client.models.retrieve(f"{names[1]}@000000000000")
    with pytest.raises(UserError, match="two adapters have one name"):
        Server([judge, judge])


def test_a_key_is_asked_for(judge: Judge) -> None:
    with Running(judge, key="secret") as running:
        assert decided(running, OWN).answers
        running.key = "other"
        with pytest.raises(AuthenticationError, match="Bearer"):
            decided(running, OWN)
        for path, status in (("/healthz", 200), ("/", 200), ("/metrics", 401), ("/v1/models", 401)):
            assert running.ask("GET", path)[0] == status
        assert running.ask("GET", "/metrics", Authorization="Basic secret")[0] == 401


def test_keys_are_compared_in_constant_time(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, compare = list[tuple[bytes, bytes]](), hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *a: (compared.append(a), compare(*a))[1])
    with Running(judge, key="secret") as running:
        for key, status in (("secre", 401), ("secret", 200)):
            asked = running.ask("GET", "/v1/models", Authorization=f"Bearer {key}")
            assert (asked[0], compared.pop()) == (status, (key.encode(), b"secret"))


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the judge score nothing until the event is set."""
    go, score = threading.Event(), Judge.score
    monkeypatch.setattr(Judge, "score", lambda *a, **k: (go.wait(60), score(*a, **k))[1])
    return go


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def disconnect(running: Running, count: int) -> None:
    """Ask for rows, and disconnect while they wait."""
    worker, before = running.server.worker, running.server.worker.waiting
    body = json.dumps({"rows": [ROW] * count}).encode()
    head = f"POST /v1/judgements HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_for(lambda: worker.waiting == before + count)
    time.sleep(0.2)


def test_too_many_waiting_rows_are_told_to_come_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING", 3)
    go = held(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(running.judged, ROW) for _ in range(3)]
        wait_for(lambda: running.server.worker.waiting == 3)
        with pytest.raises(RateLimitError) as error:
            decided(running, OWN)
        assert error.value.response.headers["retry-after"] == "1"
        go.set()
        assert all(each.result() for each in waiting)
    assert running.judged(ROW)


def test_a_large_request_is_scored_in_the_same_batches_whatever_came_before(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, go = running.server.worker, held(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(running.judged, ROW)]
        wait_for(lambda: worker.waiting == 1)
        waiting += [pool.submit(running.judged, ROW) for _ in range(2)]
        wait_for(lambda: worker.waiting == 3)
        go.set()
        assert all(each.result() for each in waiting)
    before = worker.batches
    judged = running.judged(*[ROW] * (batching.MAX_ROWS + 1))
    assert worker.batches - before == 2
    assert [one["id"] for one in judged] == [f"rows:{i}" for i in range(1, batching.MAX_ROWS + 2)]


def test_rows_of_a_client_that_disconnected_are_not_scored(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, go = running.server.worker, held(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.judged, ROW)
        wait_for(lambda: worker.waiting == 1)
        disconnect(running, 5)
        before = worker.rows
        go.set()
        assert first.result()
    wait_for(lambda: not worker.waiting)
    assert worker.rows == before


def test_a_failure_beside_a_client_that_disconnected_is_only_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker, score, go = running.server.worker, Judge.score, threading.Event()

    def failing(judge: Judge, rows: Any, **more: Any) -> Any:
        go.wait(60)
        if any("fails" in row for row in rows):
            raise UserError("it cannot be judged")
        return score(judge, rows, **more)

    monkeypatch.setattr(Judge, "score", failing)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.judged, ROW)
        wait_for(lambda: worker.waiting == 1)
        disconnect(running, 5)
        body = {"rows": [ROW | {"fails": ""}]}
        failed = pool.submit(running.ask, "POST", "/v1/judgements", body)
        wait_for(lambda: worker.waiting == 7)
        go.set()
        assert first.result()
        status, content, _ = failed.result()
    assert (status, b"it cannot be judged" in content) == (422, True)
    wait_for(lambda: not worker.waiting)
    assert not [record for record in caplog.records if record.name == batching.__name__]


def test_a_failure_is_reported_and_the_next_request_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "score", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        status, content, _ = running.ask("POST", "/v1/judgements", {"rows": [ROW]})
        assert (status, json.loads(content)["error"]["type"]) == (500, "server_error")
    assert running.judged(ROW)[0]["probabilities"]


def test_the_rest_of_a_request_that_failed_is_not_scored(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "score", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    worker = running.server.worker
    before, body = worker.batches, {"rows": [ROW] * MAX_ROWS}
    assert running.ask("POST", "/v1/judgements", body)[0] == 500
    assert running.ask("POST", "/v1/judgements", {"rows": [ROW]})[0] == 500  # behind all parts
    assert worker.batches - before < MAX_ROWS // batching.MAX_ROWS // 2


def test_what_ends_a_request_unexpectedly_is_counted(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemOne, "response", lambda *_: 1 / 0)
    body = {"state": ROW, "questions": {"q": {"type": "noul", "instructions": "Is it?"}}}
    assert running.ask("POST", "/v1/systemone", body)[0] == 500
    text = running.ask("GET", "/metrics")[1].decode()
    assert 'judge_requests_total{path="/v1/systemone",status="500"} 1' in text


def test_requests_are_counted_and_their_texts_not_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        running.judged(ROW | {"candidate": "Xq7secret"}, {"source": "Xq7secret"}, LONG)
        decided(running, OTHER, input="Xq7secret")
        running.ask("POST", "/v1/systemone", b'{"Xq7secret')
    assert "Xq7secret" not in caplog.text
    text = running.ask("GET", "/metrics")[1].decode()
    assert 'judge_requests_total{path="/v1/systemone",status="422"}' in text
    assert f"judge_rows_total {running.server.worker.rows}" in text


def test_the_page_asks_for_nothing_outside(running: Running) -> None:
    status, text, headers = running.ask("GET", "/")
    assert (status, text.decode()) == (200, PAGE.read_text(encoding="utf-8"))
    policy = {name.lower(): value for name, value in headers.items()}["content-security-policy"]
    assert "default-src 'none'" in policy
    assert b"//" not in text
    assert b"innerHTML" not in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_the_page_shows_no_field_for_a_key_before_a_server_wants_one(tmp_path: Path) -> None:
    shown = "<script>document.title = getComputedStyle(at('keyed')).display</script>"
    page = tmp_path / "page.html"
    page.write_text(PAGE.read_text(encoding="utf-8").replace("</body>", f"{shown}</body>"))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--dump-dom", page.as_uri()]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    assert "<title>none</title>" in found


QUESTIONS: Any = {"q": {"type": "score", "criteria": VALUES}, "r": {"type": "noul"}}
QUESTIONS |= {"s": {"type": "choice", "criteria": {"a": "x", "b": None}}}
PARTS = [{"type": "input_json", "data": ROW}, {"type": "input_text", "text": "x"}]
ROWS: Any = [ROW | {"id": "a", "group": "g", "rubric": "r", "label": {"verdict": 3}}]
ROWS += [{"conversation": [{"role": "user", "content": "x"}], "candidate": ""}]
LIST: Any = [
    OWN,
    OTHER,
    {"type": "choice", "name": "c", "choices": [{"value": "a"}, {"value": True}]},
]
VALID: list[tuple[str, Any]] = [
    ("systemone", {"model": "jev-latest", "state": ROW, "questions": QUESTIONS}),
    ("decisions", {"input": json.dumps(ROW), "questions": QUESTIONS}),
    ("decisions", {"model": "jev-latest", "input": json.dumps(ROW), "questions": LIST}),
    (
        "decisions",
        {"model": "jev-latest", "input": [{"role": "user", "content": PARTS}], "questions": [OWN]},
    ),
    ("judgements", {"model": "jev-latest", "rows": ROWS}),
]
ODD = [None, [], {}, "", "x", -1, 1e308, True, [[]], {"": None}, "\ud800", ["\u0000"], 10**400]
ODD += ['{"source": "\\ud800", "candidate": [NaN, 1e999]}', f'{{"source": {"[" * 900}{"]" * 900}}}']


def malformed(rng: random.Random) -> tuple[str, bytes]:
    """A request with one thing changed that may break it, and its route."""
    path, body = copy.deepcopy(rng.choice(VALID))
    where, steps = body, rng.randint(1, 6)
    for _ in range(steps):
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(where[key], dict | list) and rng.random() < 0.6:
            where = where[key]
        else:
            where[key] = rng.choice(ODD)
            break
    content = bytearray(json.dumps(body).encode())
    if rng.random() < 0.3:
        content[rng.randrange(len(content))] = rng.randrange(256)
    cut = rng.randrange(len(content)) if rng.random() < 0.2 else None
    return f"/v1/{path}", bytes(content[:cut])


@pytest.mark.parametrize("count", [150, slow_case(10_000)])
def test_malformed_requests_never_break_the_server(count: int, running: Running) -> None:
    def ask(number: int) -> tuple[str, int]:
        path, content = malformed(random.Random(f"{count} {number}"))
        status = running.ask("POST", path, content)[0]
        assert status in (200, 404, 413, 422), content
        return path, status

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(count)))
    assert {path for path, status in found if status == 422} == {f"/v1/{path}" for path, _ in VALID}
    assert {path for path, status in found if status == 200} >= {"/v1/decisions", "/v1/judgements"}


def test_a_host_beyond_this_machine_needs_a_key(
    running: Running, adapter: Path, tmp_path: Path
) -> None:
    for words in ("", "two words\n", "clé"):
        (tmp_path / "key").write_text(words, encoding="utf-8")
        with pytest.raises(UserError, match="key holds no key: write one word of ASCII into it"):
            serve([adapter], ServeOptions(key_file=tmp_path / "key"))
    with pytest.raises(UserError, match="give --key_file"):
        serve([adapter], ServeOptions(host="0.0.0.0"))
    (tmp_path / "key").write_text("secret")
    with pytest.raises(UserError, match=r"a\.\.b:8000 cannot be listened at"):
        serve([adapter], ServeOptions(host="a..b", key_file=tmp_path / "key"))
    with pytest.raises(UserError, match=rf"127.0.0.1:{running.port} cannot be listened at"):
        serve([adapter], ServeOptions(port=running.port))


def started(adapter: Path, base: Path) -> "subprocess.Popen[str]":
    words = ["serve", str(adapter), "--base", str(base), "--port", "0"]
    command = [sys.executable, "-m", "pt_app.cli", *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["Server.run", "Server.startup", "Server.shutdown"])
def test_a_signal_that_comes_before_or_after_the_first_request_is_no_exception(
    place: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in its handler once left logging with a lock that nobody held."""
    reached = getattr(uvicorn.Server, place.rpartition(".")[2])

    def signalled(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(number)
        return reached(*args, **kwargs)

    monkeypatch.setattr(f"uvicorn.{place}", signalled)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with listen("127.0.0.1", 0) as listening:
        if place == "Server.shutdown":  # is reached by an earlier signal
            threading.Timer(0.5, signal.raise_signal, [number]).start()
        run(Starlette(), listening, 1, "ready")
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


@pytest.mark.slow
def test_sigterm_at_the_start_is_a_clean_end(adapter: Path, base: Path) -> None:
    with started(adapter, base) as process:
        assert process.stdout is not None
        assert "http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way(adapter: Path, base: Path) -> None:
    with started(adapter, base) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.partition("http://127.0.0.1:")[2].split()[0])
        running = Running.__new__(Running)
        running.port = port
        with ThreadPoolExecutor(1) as pool:
            rows = some_rows(600)
            answer = pool.submit(running.judged, *rows)
            wait_for(lambda: b"judge_rows_waiting 600" in running.ask("GET", "/metrics")[1])
            process.send_signal(signal.SIGTERM)
            assert len(answer.result()) == 600
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
