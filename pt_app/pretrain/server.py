"""Serve a model with an OpenAI-compatible interface and a page to chat, on this machine alone.

One answer is made at a time; others wait their turn. What a request asks for and cannot get is
refused in the form that OpenAI's own clients report, never left out in silence.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import uuid4

import anyio
from pydantic import BaseModel, Field, ValidationError

from pt_app.core.errors import UserError
from pt_app.core.http_server import (
    PAGE_HEADERS,
    RefusedError,
    body,
    known_hosts,
    listen,
    run,
    url_of,
)
from pt_app.pretrain.chat import Chat, Reply, TooLongError
from pt_app.pretrain.settings import Sampling, ServeSettings

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise UserError(f"{error}: pip install -r requirements-serve.txt") from error

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
MAX_WAITING = 8  # requests that wait for their turn
# Fields of OpenAI's interface that would change an answer, with the values that change none.
UNSUPPORTED: dict[str, object] = {"n": 1, "logprobs": False, "tools": [], "functions": []}
UNSUPPORTED |= {"top_logprobs": 0, "presence_penalty": 0, "frequency_penalty": 0}
UNSUPPORTED |= {"response_format": {"type": "text"}, "logit_bias": {}, "audio": None}


class Part(BaseModel):
    """A part of a message's content; texts alone are read."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message of a request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def message(self) -> dict[str, str]:
        """Return it as a chat template reads it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """Whether a stream ends with what it took."""

    include_usage: bool = False


class ChatRequest(BaseModel, extra="allow"):
    """A request for a chat completion, as OpenAI documents it.

    `top_k` is vLLM's, and `truncation` that of OpenAI's Responses: "auto" leaves the oldest
    exchanges out where a conversation does not fit.
    """

    model: str
    messages: list[Turn] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    truncation: Literal["auto", "disabled"] = "disabled"

    def sampling(self, default: Sampling) -> Sampling:
        """Return how tokens are drawn: what is not asked for is as the server was started."""
        asked = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}
        asked["max_tokens"] = self.max_completion_tokens or self.max_tokens
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(default, **given)

    def stops(self) -> list[str]:
        """Return the texts that end the answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class Server:
    """The routes of a model, with its turn: one request at a time."""

    def __init__(self, load: Callable[[], Chat], sampling: Sampling) -> None:
        # One thread loads and answers: two that compute slow each other down (serving/batching.py).
        self._thread = ThreadPoolExecutor(1, "chat")
        self.chat, self.sampling = self._thread.submit(load).result(), sampling
        # asyncio's: the task that closes a stream need not be the one that it took its turn in.
        self._turn, self._waiting = asyncio.Lock(), 0
        self._started = int(time.time())

    def application(self, host: str) -> Starlette:
        """Return the ASGI application for requests to a host name."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/healthz", self.health),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.models),
                Route("/v1/chat/completions", self.completions, methods=["POST"]),
            ],
            middleware=[known_hosts(host)],
            exception_handlers={RefusedError: refusal},
        )

    async def page(self, _: Request) -> Response:
        """Show the page."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(self, _: Request) -> Response:
        """Say that the model is loaded."""
        return JSONResponse({"status": "ok", "model": self.chat.name})

    async def models(self, request: Request) -> Response:
        """List the model, or describe it by its name."""
        name = self.chat.name
        model = {"id": name, "object": "model", "created": self._started, "owned_by": "local"}
        model["max_model_len"] = self.chat.context  # as vLLM names it
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_name(request.path_params["name"])
        return JSONResponse(model)

    async def completions(self, request: Request) -> Response:
        """Answer a conversation, as a stream or at once."""
        asked = read(await body(request))
        self._check_name(asked.model)
        in_thread = asyncio.get_running_loop().run_in_executor
        reply, cut = await in_thread(self._thread, self._reply, asked)
        if self._waiting >= MAX_WAITING:
            raise RefusedError(f"{MAX_WAITING} requests wait already: try again later", 429)
        head: dict[str, object] = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time())}
        head["model"] = self.chat.name
        if asked.stream:
            return Stream(self._events(asked, reply, cut, head), media_type="text/event-stream")
        text = ""
        async with aclosing(self._pieces(reply)) as pieces:
            async for piece in pieces:
                text += piece
                if await request.is_disconnected():
                    break
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reply.reason or "stop"}
        whole = {"object": "chat.completion", "choices": [choice], "usage": usage(reply, cut)}
        return JSONResponse(head | whole)

    def _check_name(self, name: str) -> None:
        if name != self.chat.name:
            problem = f"there is no model {name!r} here: this is {self.chat.name!r}"
            raise RefusedError(problem, 404, "model_not_found")

    def _reply(self, asked: ChatRequest) -> tuple[Reply, int]:
        """Return the answer to make, and how many exchanges are left out of its conversation."""
        sampling = asked.sampling(self.sampling)
        # Room for some answer, at least: whoever leaves it to us loses no more than is needed.
        room = 1
        if asked.truncation == "auto":
            room = min(sampling.max_tokens or self.chat.context, self.chat.context // 4)
        try:
            ids, cut = self.chat.fitted([turn.message() for turn in asked.messages], room)
        except TooLongError as error:
            raise RefusedError(str(error), 400, "context_length_exceeded") from error
        except UserError as error:
            raise RefusedError(str(error)) from error
        if cut and asked.truncation == "disabled":
            problem = f"{self.chat.context} tokens hold the conversation without its oldest {cut}"
            problem += ' exchanges: leave them out, or add "truncation": "auto"'
            raise RefusedError(problem, 400, "context_length_exceeded")
        return Reply(self.chat, ids, sampling, asked.stops()), cut

    async def _pieces(self, reply: Reply) -> AsyncGenerator[str, None]:
        """Yield the pieces of an answer when its turn has come."""
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            in_thread, pieces = asyncio.get_running_loop().run_in_executor, iter(reply)
            while (piece := await in_thread(self._thread, lambda: next(pieces, None))) is not None:
                yield piece
        finally:
            self._turn.release()

    async def _events(
        self, asked: ChatRequest, reply: Reply, cut: int, head: dict[str, object]
    ) -> AsyncGenerator[str, None]:
        """Yield server-sent events, as OpenAI streams a completion."""

        def event(delta: Mapping[str, str], reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return data(head | {"object": "chat.completion.chunk", "choices": [choice]})

        yield event({"role": "assistant", "content": ""})
        async with aclosing(self._pieces(reply)) as pieces:
            async for piece in pieces:
                yield event({"content": piece})
        yield event({}, reply.reason or "stop")
        if asked.stream_options.include_usage:
            last = {"object": "chat.completion.chunk", "choices": [], "usage": usage(reply, cut)}
            yield data(head | last)
        yield "data: [DONE]\n\n"


class Stream(StreamingResponse):
    """A stream that gives up its turn when its client goes away."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self.body_iterator.aclose()  # type: ignore[attr-defined]


def data(content: Mapping[str, object]) -> str:
    """Write one server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def usage(reply: Reply, cut: int) -> dict[str, int]:
    """Return what an answer took, and the exchanges that its prompt left out."""
    prompt, answer = len(reply.ids), reply.tokens
    counts = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return counts | {"dropped_exchanges": cut}


def read(content: bytes) -> ChatRequest:
    """Read a request; refuses what is none, and what this server cannot do."""
    try:
        asked = ChatRequest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise RefusedError(f"{where}: {first['msg']}") from error
    for name, neutral in UNSUPPORTED.items():
        value = (asked.model_extra or {}).get(name)
        if value is not None and value != neutral:
            raise RefusedError(f"{name} is not supported here: leave it out", 400, name)
    return asked


async def refusal(_: Request, error: Exception) -> Response:
    """Write a refused request's error."""
    assert isinstance(error, RefusedError)
    kind = "invalid_request_error" if error.status < 429 else "rate_limit_error"
    content = {"message": error.message, "type": kind, "param": None, "code": error.code}
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    return JSONResponse({"error": content}, error.status, headers)


def serve(settings: ServeSettings) -> None:
    """Load a model and answer requests until Ctrl-C.

    Raises:
        UserError: for a port in use, and as `Chat.load`.
    """
    with listen(settings.host, settings.port) as listening:
        server = Server(partial(Chat.load, settings.model, settings.device), settings.sampling)
        chat, url = server.chat, url_of(listening, settings.host)
        ready = f"{chat.name}, a context of {chat.context} tokens: {url} (OpenAI: {url}/v1)"
        run(server.application(settings.host), listening, 1, f"{ready}\nCtrl-C ends")
