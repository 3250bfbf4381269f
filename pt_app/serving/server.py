"""`judge serve`: judges as decision models, over HTTP.

Thin over `Judge`: a request becomes rows, one worker scores what has arrived, and the judgements
are written in the request's own format. No text of a request is logged.
"""

import asyncio
import hmac
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from pt_app.core.errors import UserError
from pt_app.core.files import read_text
from pt_app.core.http_server import (
    LOOPBACK,
    MAX_BODY,
    PAGE_HEADERS,
    RefusedError,
    body,
    known_hosts,
    listen,
    run,
    url_of,
)
from pt_app.core.records import JudgeExample, Place, clipped
from pt_app.judge import Judge, Judgement, read_row, row_id, status_of
from pt_app.models import adapters
from pt_app.models.endpoint.keys import checked_key
from pt_app.serving import wires
from pt_app.serving.batching import Worker
from pt_app.serving.options import ServeOptions
from pt_app.serving.questions import ServedRow, json_of, row_of, rubric_of, text_of

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise UserError(f"{error}: pip install -r requirements-serve.txt") from error

PAGE = Path(__file__).with_name("page.html")
PATIENCE = 60  # seconds that requests under way have after SIGTERM
MAX_ROWS = 1000  # of one request; of a judge of several questions its answers
MAX_DETAILS = 20  # problems of a request that are listed
OPEN = ("/", "/healthz")  # routes that need no key
# OpenAI's type of an error by its status, and TypeSafe's.
KINDS = {401: "authentication_error", 404: "not_found_error", 413: "max_tokens_exceeded"}
KINDS |= {429: "rate_limit_error", 500: "server_error"}
DECISIONS = ("/v1/decisions", "/v1beta/decisions", "/api/alpha/decisions")


class Rows(BaseModel):
    """A request for judgements of rows."""

    model: str = wires.DEFAULT
    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_ROWS)


class Server:
    """The routes of some judges.

    Attributes:
        judges: the judges by their pinned names, folder and hash.
        strict: whether questions that a judge was not trained on are refused.
        worker: scores the rows of all requests.
    """

    def __init__(
        self, judges: Sequence[Judge], strict: bool = False, worker: Worker | None = None
    ) -> None:
        self.judges = {judge.name: judge for judge in judges}
        self.strict, self.worker = strict, worker or Worker()
        self._names = self.judges | {_folder(judge): judge for judge in judges}
        if len(self._names) != 2 * len(judges):
            raise UserError("two adapters have one name: rename the folder of one of them")
        self._names |= {wires.DEFAULT: judges[0]}
        self._answers = Counter[tuple[str, int]]()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def application(self, host: str, key: str | None = None) -> Starlette:
        """Return the ASGI application for requests to a host name, and with a key if one is set."""
        post = {
            "/v1/systemone": self.system_one,
            "/v1/judgements": self.judgements,
            **dict.fromkeys(DECISIONS, self.decisions),
        }
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.models),
                *[
                    Route(path, self._timed(path, to), methods=["POST"])
                    for path, to in post.items()
                ],
            ],
            middleware=[known_hosts(host), Middleware(Keyed, key=key)],
            exception_handlers={HTTPException: _not_found, Exception: _bug},
            lifespan=self._working,
        )

    @asynccontextmanager
    async def _working(self, _: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _timed(self, path: str, route: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Return a route whose answers are counted, and whose refusals are written."""

        async def answered(request: Request) -> Response:
            start = time.perf_counter()
            try:
                response: Response = await route(request)
            except (RefusedError, ValidationError) as error:
                response = refusal(error)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:
                self._answers[path, 500] += 1  # `_bug` answers
                raise
            self._answers[path, response.status_code] += 1
            self._seconds[path] += time.perf_counter() - start
            return response

        return answered

    async def page(self, _: Request) -> Response:
        """Show the page on which a row is tried."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(self, _: Request) -> Response:
        """Say that the judges are loaded."""
        return JSONResponse({"status": "ok", "models": [*self.judges]})

    async def models(self, request: Request) -> Response:
        """List the judges as OpenAI and TypeSafe do, or describe the one that is named."""
        if "name" in request.path_params:
            try:
                return JSONResponse(described(self._judge(request.path_params["name"])))
            except RefusedError as error:
                return refusal(error)
        listed = [described(judge) for judge in self.judges.values()]
        about = [
            {
                "name": each["id"],
                "description": f"{each['x_judge']['task']} on {each['x_judge']['scale']}",
                "release_date": f"{datetime.fromtimestamp(each['created'], UTC):%Y-%m-%d}",
            }
            for each in listed
        ]
        return JSONResponse({"object": "list", "data": listed, "models": about})

    async def system_one(self, request: Request) -> Response:
        """Answer questions in TypeSafe's format."""
        return await self._decided(request, wires.SystemOne.model_validate(await content(request)))

    async def decisions(self, request: Request) -> Response:
        """Answer questions in OpenAI's format, or, where they are a map, in Gemini's."""
        given = await content(request)
        return await self._decided(request, wires.decisions(given).model_validate(given))

    async def _decided(self, request: Request, wire: wires.Request) -> Response:
        judge, state = self._judge(wire.model), wire.state()
        first, *others = wire.wire_questions()
        rows = [row_of(first, state, judge, self.strict)]
        # Each question repeats the state: a long one is encoded once before it is 400 times.
        size = len(text_of(state)) * (1 + len(others))
        if size > MAX_BODY and not await self.worker.fits(rows[0]):
            raise _too_long(rows[0])
        rows += [row_of(each, state, judge, self.strict) for each in others]
        judgements = await self.worker.judged(request, rows)
        judged = list(zip(rows, judgements, strict=True))
        for row, judgement in judged:
            _check(row, judgement)
        return JSONResponse(wire.response(judge.name, judged))

    async def judgements(self, request: Request) -> Response:
        """Judge rows; one that cannot be judged says so in its status."""
        given = Rows.model_validate(await content(request))
        judge = self._judge(given.model)
        places = [Place(Path("rows"), i, lines=False) for i in range(1, len(given.rows) + 1)]
        numbered = list(zip(given.rows, places, strict=True))
        if judge.info.questions:
            judged = await self._all_answers(request, judge, numbered)
        else:
            rows = [ServedRow(judge, row, (), place=place) for row, place in numbered]
            judged = list(map(asdict, await self.worker.judged(request, rows)))
        usage = {"input_tokens": sum(one["tokens"] for one in judged), "output_tokens": 0}
        return JSONResponse({"model": judge.name, "judgements": judged, "usage": usage})

    async def _all_answers(
        self, request: Request, judge: Judge, rows: Sequence[tuple[dict[str, Any], Place]]
    ) -> list[dict[str, Any]]:
        """Answer all questions of a judge about each of some rows."""
        if (most := MAX_ROWS // len(judge.info.questions)) < len(rows):
            problem = f"rows: {len(rows)} have more than {MAX_ROWS:,} answers"
            raise RefusedError(f"{problem}: send at most {most} to this judge", 422, "rows")
        read = [read_row(*row, judge.info) for row in rows]
        asked = [
            ServedRow(judge, row.model_copy(update={"question": question}), ())
            for row in read
            if isinstance(row, JudgeExample)
            for question in judge.info.questions
        ]
        answers = iter(await self.worker.judged(request, asked) if asked else ())
        judged = []
        for row, example in zip(rows, read, strict=True):
            about: dict[str, Any] = {"id": row_id(*row), "judge": judge.name}
            if isinstance(example, str):
                judged.append(about | {"status": "bad_row", "tokens": 0, "problem": example})
                continue
            own = {question.name: next(answers) for question in judge.info.questions}
            about |= {"status": status_of(own), "tokens": sum(a.tokens for a in own.values())}
            judged.append(about | {"answers": {name: asdict(a) for name, a in own.items()}})
        return judged

    async def metrics(self, _: Request) -> Response:
        """Write counters as Prometheus reads them."""
        lines = ["# TYPE judge_requests_total counter"]
        for (path, status), count in sorted(self._answers.items()):
            lines.append(f'judge_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE judge_request_seconds_total counter")
        for path, seconds in sorted(self._seconds.items()):
            lines.append(f'judge_request_seconds_total{{path="{path}"}} {seconds:.6f}')
        worker = self.worker
        numbers = ("rows", worker.rows, "counter"), ("batches", worker.batches, "counter")
        for name, number, kind in (*numbers, ("rows_waiting", worker.waiting, "gauge")):
            name = f"judge_{name}{'_total' if kind == 'counter' else ''}"
            lines += [f"# TYPE {name} {kind}", f"{name} {number}"]
        return PlainTextResponse("\n".join(lines) + "\n")

    def _judge(self, name: str) -> Judge:
        if name not in self._names:
            known = ", ".join(self._names)
            problem = f"there is no model {clipped(name)!r} here: there are {known}"
            raise RefusedError(problem, 404, "model")
        return self._names[name]


class Keyed:
    """Refuses requests without the key; two keys are compared in constant time."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.key is not None and scope["type"] == "http" and scope["path"] not in OPEN:
            header = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, key = header.partition(b" ")
            right = hmac.compare_digest(key.strip(), self.key.encode())
            if kind.lower() != b"bearer" or not right:
                error = RefusedError("give the key as Authorization: Bearer", 401)
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def content(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request."""
    given = await body(request)
    try:
        value = json_of(given)
    except ValueError as error:
        raise RefusedError(f"the body is not JSON: {error}", 422) from error
    if not isinstance(value, dict):
        raise RefusedError("the body is no JSON object", 422)
    return value


def refusal(error: RefusedError | ValidationError) -> JSONResponse:
    """Write an error in both forms that clients read: OpenAI's `error` and TypeSafe's `detail`."""
    details: list[dict[str, Any]] = []
    if isinstance(error, ValidationError):
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            loc = ["body", *each["loc"]]
            details.append({"loc": loc, "msg": each["msg"], "type": each["type"]})
        where = ".".join(map(str, details[0]["loc"][1:])) or "the request"
        error = RefusedError(f"{where}: {details[0]['msg']}", 422)
    elif error.status == 422:
        loc = ["body", *(part for part in (error.code, error.key) if part is not None)]
        details.append({"loc": loc, "msg": error.message, "type": "value_error"})
    kind = KINDS.get(error.status, "invalid_request_error")
    openai = {"message": error.message, "type": kind, "param": None, "code": error.code}
    typesafe = {"error_type": kind, "message": error.message}
    headers = {"Retry-After": "1"} if error.status == 429 else {}
    answer = {"error": openai, "detail": details[:MAX_DETAILS] or typesafe}
    return JSONResponse(answer, error.status, headers)


def described(judge: Judge) -> dict[str, Any]:
    """Describe a judge as OpenAI lists models, with what it was trained on."""
    info = judge.info
    made = (info.folder / adapters.WEIGHTS).stat().st_mtime
    thresholds = {name: each and each.threshold.as_json() for name, each in judge.fitted.items()}
    about: dict[str, Any] = {"fields": info.row_fields, "base": info.base_name}
    about |= {"max_seq_length": info.max_seq_length, "sha256": info.sha256}
    if info.questions:
        about |= {"task": "questions", "scale": ", ".join(judge.fitted)}
        about["questions"] = {
            each.name: each.declared.model_dump(exclude_none=True)
            | {"threshold": thresholds[each.name]}
            for each in info.questions
        }
    else:
        about |= {"task": info.scale.task, "scale": info.scale.name}
        about |= {"options": [str(value) for value in info.scale.values]}
        about |= {"instructions": rubric_of(judge), "threshold": thresholds[""]}
    head = {"id": judge.name, "object": "model", "created": int(made), "owned_by": "local"}
    return head | {"x_judge": about}


def serve(folders: Sequence[Path], options: ServeOptions) -> None:
    """Load judges and answer requests until SIGTERM or Ctrl-C; what is under way is finished.

    Raises:
        UserError: for a port in use, a host beyond this machine without a key, and as `Judge.load`.
    """
    file = options.key_file
    key = checked_key(read_text(file), str(file)) if file else None
    if options.host not in LOOPBACK and key is None:
        raise UserError(f"--host {options.host}: others can reach it: give --key_file, too")
    with listen(options.host, options.port) as listening:
        worker = Worker()
        load = partial(Judge.load, base=options.base, precision=options.precision)
        judges = [worker.load(partial(load, folder)) for folder in folders]
        server = Server(judges, options.strict, worker)
        application = server.application(options.host, key)
        url = url_of(listening, options.host)
        ready = f"{', '.join(server.judges)}: {url} (OpenAI: {url}/v1)"
        run(application, listening, PATIENCE, ready)


def _folder(judge: Judge) -> str:
    return judge.info.folder.resolve().name


def _check(row: ServedRow, judgement: Judgement) -> None:
    """Refuse a row that could not be judged."""
    if judgement.status == "bad_row":
        raise RefusedError(judgement.problem or "the row is malformed", 422, "state")
    if judgement.status == "too_long":
        raise _too_long(row)


def _too_long(row: ServedRow) -> RefusedError:
    problem = f"state and question take more than the {row.limit} tokens that are read"
    return RefusedError(f"{row.at}: {problem}: shorten them", 413)


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(RefusedError(error.detail, error.status_code))
    response.headers.update(error.headers or {})  # a 405 names the methods (RFC 9110, 15.5.6)
    return response


async def _bug(_: Request, error: Exception) -> Response:
    return refusal(RefusedError(type(error).__name__, 500))
