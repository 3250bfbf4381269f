"""The OpenAI-compatible server, asked by the `openai` client, `judge eval` and strangers."""

import asyncio
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI, RateLimitError
from starlette.applications import Starlette

pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")

from pt_app.core.errors import UserError
from pt_app.core.http_server import MAX_BODY
from pt_app.models.endpoint.budget import Budget
from pt_app.models.endpoint.client import Client
from pt_app.models.endpoint.options import RequestOptions
from pt_app.pretrain.chat import Chat, Reply
from pt_app.pretrain.server import MAX_WAITING, PAGE, Server, serve
from pt_app.pretrain.settings import Sampling, ServeSettings
from tests.conftest import ROOT
from tests.serving import Loopback
from tests.tiny_models import make_model, make_tokenizer

GREEDY = {"temperature": 0, "max_tokens": 12}
ASKED: Any = [{"role": "user", "content": "Source: a casa"}]


class Running(Loopback):
    """A server of a model, and the model."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.server = chat, Server(lambda: chat, Sampling())
        super().__init__(self.server.application("127.0.0.1"))

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def ask(
        self, method: str, path: str, body: bytes | str = b"", **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())

    def idle(self) -> bool:
        return not self.server._turn.locked() and not self.server._waiting


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Chat(make_model(tokenizer, max_position_embeddings=256), tokenizer, "small")


@pytest.fixture(scope="module")
def running(chat: Chat) -> Iterator[Running]:
    with Running(chat) as server:
        yield server


def expected(chat: Chat, **sampling: Any) -> str:
    ids, _ = chat.fitted(ASKED)
    return "".join(Reply(chat, ids, Sampling(**(GREEDY | sampling))))


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_answer_is_the_model_s_streamed_or_not(running: Running) -> None:
    answer = expected(running.chat)
    whole = running.client.chat.completions.create(model="small", messages=ASKED, **GREEDY)
    assert whole.choices[0].message.content == answer
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(running.chat.prompt(ASKED))
    assert 0 < whole.usage.completion_tokens <= 12
    stream = running.client.chat.completions.create(
        model="small", messages=ASKED, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert len(chunks) > 5
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_models_are_listed_and_found(running: Running) -> None:
    (model,) = running.client.models.list()
    assert (model.id, running.client.models.retrieve("small").id) == ("small", "small")
    with pytest.raises(NotFoundError, match="no model 'large' here"):
        running.client.models.retrieve("large")
    with pytest.raises(NotFoundError, match="no model 'large' here"):
        running.client.chat.completions.create(model="large", messages=ASKED)
    assert json.loads(running.ask("GET", "/healthz")[1]) == {"status": "ok", "model": "small"}


def test_stops_and_seeds_are_kept_to(running: Running) -> None:
    answer = expected(running.chat)
    stop = answer[5:7]
    cut = running.client.chat.completions.create(
        model="small", messages=ASKED, stop=[stop], **GREEDY
    )
    assert cut.choices[0].message.content == answer[: answer.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    drawn = [
        running.client.chat.completions.create(
            model="small", messages=ASKED, seed=seed, temperature=2, max_tokens=12
        )
        for seed in (1, 1, 2)
    ]
    one, same, other = (each.choices[0].message.content for each in drawn)
    assert one == same != other


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "not the user's"),
        ({"temperature": -1}, "temperature: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"n": 2}, "n is not supported here: leave it out"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(
    change: dict[str, Any], problem: str, running: Running
) -> None:
    with pytest.raises(BadRequestError) as error:
        running.client.chat.completions.create(**({"model": "small", "messages": ASKED} | change))
    assert problem in error.value.message


def test_what_changes_no_answer_is_taken(running: Running) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}]
    more: Any = {"n": 1, "response_format": {"type": "text"}, "user": "x", "logprobs": False}
    whole = running.client.chat.completions.create(
        model="small",
        messages=parts,  # type: ignore[arg-type]
        **(GREEDY | more),
    )
    assert whole.choices[0].message.content == expected(running.chat)


def test_a_conversation_beyond_the_context_is_refused_with_its_length(running: Running) -> None:
    turns = [("user", "q"), ("assistant", "a" * 30)] * 20
    said: Any = [{"role": role, "content": text} for role, text in turns] + ASKED
    create = running.client.chat.completions.create
    with pytest.raises(BadRequestError, match="without its oldest") as error:
        create(model="small", messages=said, **GREEDY)
    assert error.value.code == "context_length_exceeded"
    whole = create(model="small", messages=said, extra_body={"truncation": "auto"}, **GREEDY)
    assert whole.usage is not None
    assert whole.usage.model_extra == {"dropped_exchanges": pytest.approx(16, abs=3)}
    long: Any = [{"role": "user", "content": "x " * 400}]
    with pytest.raises(BadRequestError, match="tokens of a context of 256"):
        create(model="small", messages=long, extra_body={"truncation": "auto"})


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{}", "text/plain", 415),  # what a page of another origin may send without asking
        (b" " * (MAX_BODY + 1), "application/json", 413),
    ],
)
def test_bodies_that_are_no_request_are_refused(
    body: bytes, kind: str, status: int, running: Running
) -> None:
    found, text, _ = running.ask("POST", "/v1/chat/completions", body, Content_Type=kind)
    assert found == status
    assert json.loads(text)["error"]["message"]


def test_another_host_name_is_refused(running: Running) -> None:
    assert running.ask("GET", "/v1/models", Host="rebound.example")[0] == 400
    assert running.ask("GET", "/v1/models", Host=f"localhost:{running.port}")[0] == 200


def test_the_page_asks_for_nothing_outside(running: Running) -> None:
    status, text, headers = running.ask("GET", "/")
    assert status == 200
    assert text == PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "//" not in text.replace("// ", "")
    assert "innerHTML" not in text


def test_requests_wait_their_turn_and_get_their_own_answers(running: Running) -> None:
    def ask(n: int) -> str | None:
        turns: Any = [{"role": "user", "content": f"Source: {n}"}]
        whole = running.client.chat.completions.create(model="small", messages=turns, **GREEDY)
        return whole.choices[0].message.content

    alone = [ask(n) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def endless(chat: Chat, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
    """Let the model write one token after another, slowly, up to the end of its context."""
    forward = chat._forward
    monkeypatch.setattr(chat, "ends", set())
    monkeypatch.setattr(chat, "_forward", lambda ids: (time.sleep(seconds), forward(ids))[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(
    stream: bool, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(running.chat, monkeypatch, 0.05)  # 10 s for the whole context
    began = time.monotonic()
    if stream:
        answer = running.client.chat.completions.create(model="small", messages=ASKED, stream=True)
        for _, chunk in zip(range(3), answer, strict=False):
            assert chunk.choices
        answer.close()
    else:
        with pytest.raises(Exception, match="timed out"):
            running.client.with_options(timeout=0.4).chat.completions.create(
                model="small", messages=ASKED
            )
    wait_for(running.idle)
    assert time.monotonic() - began < 5


def test_a_client_that_leaves_while_a_piece_is_sent_gives_up_its_turn(running: Running) -> None:
    asked = {"model": "small", "messages": ASKED, "stream": True}
    incoming = [{"type": "http.request", "body": json.dumps(asked).encode()}]
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    server = Server(lambda: running.chat, Sampling())

    async def ask() -> None:
        blocked, sent = asyncio.Event(), 0

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await blocked.wait()
            return {"type": "http.disconnect"}

        async def send(_: object) -> None:
            nonlocal sent
            sent += 1
            if sent == 4:  # the head, the role, and two pieces; its buffer is full
                blocked.set()
                await asyncio.Event().wait()

        await server.application("127.0.0.1")(scope | {"query_string": b""}, receive, send)

    asyncio.run(ask())
    assert not server._turn.locked()


def test_too_many_waiting_requests_are_told_to_come_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(running.chat, monkeypatch)
    first = running.client.chat.completions.create(model="small", messages=ASKED, stream=True)
    next(first)

    def ask(_: int) -> int:
        try:
            running.client.chat.completions.create(model="small", messages=ASKED, max_tokens=1)
        except RateLimitError as error:
            return error.response.status_code + int(error.response.headers["retry-after"])
        return 200

    with ThreadPoolExecutor(MAX_WAITING + 3) as pool:
        answers = pool.map(ask, range(MAX_WAITING + 3))
        wait_for(lambda: running.server._waiting == MAX_WAITING)
        time.sleep(0.3)
        first.close()
        codes = sorted(answers)
    assert codes == [200] * MAX_WAITING + [429 + 1] * 3
    wait_for(running.idle)


def test_a_failure_is_reported_and_the_next_request_is_answered(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running.chat, "_forward", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(APIStatusError) as error:
            running.client.chat.completions.create(model="small", messages=ASKED)
        assert error.value.status_code == 500
    whole = running.client.chat.completions.create(model="small", messages=ASKED, **GREEDY)
    assert whole.choices[0].message.content == expected(running.chat)


def test_the_client_of_judge_eval_gets_answers(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for a JSON schema first, and does without where that is refused."""
    url = f"http://127.0.0.1:{running.port}/v1"
    client = Client(model="small", budget=Budget(RequestOptions()), base_url=url, max_tokens=12)
    replies: list[str] = []

    async def ask(_: int) -> None:
        replies.append((await client.ask(ASKED, {"type": "object"})).text)

    client.ask_all([1, 2, 3], ask, "asking")
    assert replies == [expected(running.chat)] * 3


def test_a_port_in_use_is_refused_before_the_model_is_loaded(running: Running) -> None:
    with pytest.raises(UserError, match=rf"127.0.0.1:{running.port} cannot be listened at"):
        serve(ServeSettings(model="tiny", port=running.port))


def test_the_thread_that_loads_the_model_reads_and_answers(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(call: Any) -> Any:
        def noting(*given: Any) -> Any:
            threads.append(threading.current_thread().name)
            return call(*given)

        return noting

    def run(application: Starlette, *_: object) -> None:
        with Loopback(application) as server:
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
            client.chat.completions.create(model="small", messages=ASKED, **GREEDY)

    monkeypatch.setattr(Chat, "load", noted(lambda *_: chat))
    monkeypatch.setattr(chat, "fitted", noted(chat.fitted))
    monkeypatch.setattr(chat, "_forward", noted(chat._forward))
    monkeypatch.setattr("pt_app.pretrain.server.run", run)
    serve(ServeSettings(model="small", port=0))
    assert len(threads) > 3
    assert len(set(threads)) == 1


@contextmanager
def served() -> Iterator[str]:
    """The URL of a server of the tiny base in a process of its own, which Ctrl-C ends."""
    command = [sys.executable, "-m", "scripts.chat_web", "--model=tiny", "--port=0", "--device=cpu"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            yield next(word for word in words if word.startswith("http")) + "/v1"
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode in (0, 130)


@pytest.mark.slow
def test_the_script_serves_until_it_is_interrupted() -> None:
    with served() as url:
        client = OpenAI(base_url=url, api_key="none")
        stream = client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
        next(stream)  # an answer is under way


@pytest.mark.slow
def test_judge_eval_measures_what_the_script_serves(rows: Path, tmp_path: Path) -> None:
    words = ["eval", f"--data={rows}", "--endpoint_model=tiny", "--max_tokens=64"]
    command = [sys.executable, "-m", "pt_app.cli", *words, f"--out={tmp_path}"]
    with served() as url:
        done = subprocess.run(
            [*command, f"--endpoint={url}"], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()
    answered = [json.loads(line) for line in lines]
    assert len(answered) == 12
    assert {row["status"] for row in answered} <= {"ok", "parse_failure"}
    assert all(row["raw"] for row in answered)
    models = json.loads((tmp_path / "results.json").read_text("utf-8"))["models"]
    (measured,) = (model for model in models if model["name"] == "tiny")
    unread = sum(row["status"] == "parse_failure" for row in answered)
    assert measured["parse_failures"] == unread
