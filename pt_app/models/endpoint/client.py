"""Ask a model behind an endpoint: within a budget, with retries, in parallel.

It writes text (OpenAI's chat completions), or decides (core/decision_wires.py).
"""

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from pt_app.core.errors import UserError
from pt_app.models.endpoint.budget import Budget, MoneySpentError, Usage
from pt_app.models.endpoint.keys import key_in
from pt_app.models.endpoint.reply import (
    AgainError,
    RefusedError,
    Reply,
    decisions_of,
    error_of,
    one_line,
    parsed_json,
    reply_of,
    whole_characters,
)

log = logging.getLogger(__name__)

FIRST_WAIT, MAX_WAIT = 0.5, 60.0  # seconds before a retry, doubled each time
MAX_PAUSE = 600.0  # seconds, where the endpoint asks for a pause
RETRIED = (408, 409, 425, 429)
# Options that an endpoint may not take, by the words with which it says so.
COMPLAINTS = {
    "max_tokens": ("max_completion_tokens",),
    "response_format": ("response_format", "json_schema", "schema"),
    "temperature": ("temperature",),
}
CHAT = "/chat/completions"
Messages = Sequence[Mapping[str, str]]
Schema = Mapping[str, object]
Body = dict[str, Any]
Read = Callable[[object, Usage], Reply]
Item = TypeVar("Item")


@dataclass(kw_only=True, eq=False)
class Client:
    """One model at one endpoint. Raises UserError where it cannot be asked at all."""

    model: str
    budget: Budget
    base_url: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    timeout: float = 60.0
    retries: int = 6

    def __post_init__(self) -> None:
        from openai import AsyncOpenAI

        url = self.base_url or os.environ.get("OPENAI_BASE_URL", "")
        key = key_in(self.budget.limits.key_env, required=not url)
        self.where = _host_of(url or "https://api.openai.com")
        # No retries of the library's own: waiting is done here, where the budget is known.
        self._client = AsyncOpenAI(
            base_url=url or None, api_key=key or "none", max_retries=0, timeout=self.timeout
        )
        # `_without` drops those that the endpoint does not take.
        self._options: dict[str, Any] = {
            "response_format": "json_schema",
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    async def ask(self, messages: Messages, schema: Schema | None) -> Reply:
        """Get one answer, of a JSON schema or (None) in free text.

        Raises RefusedError where this request cannot be answered, MoneySpentError at the limit,
        and UserError where the endpoint is down or refuses access.
        """
        # Bytes over two is more than any tokenizer makes of a text, and counts the roles' tokens.
        prompt = sum(len(m["content"].encode("utf-8", "replace")) for m in messages) // 2 + 50
        write = partial(self._chat, messages, schema)
        return await self._answered(CHAT, write, reply_of, Usage(prompt, self.max_tokens))

    async def decide(self, url: str, body: Mapping[str, object]) -> Reply:
        """Get a decision model's answers to one request at `url`, as JSON; raises as `ask`."""
        sent: Body = parsed_json(json.dumps(body))
        estimate = Usage(len(json.dumps(sent, ensure_ascii=False).encode()) // 2 + 50)
        return await self._answered(url, lambda: sent, decisions_of, estimate)

    async def _answered(
        self, url: str, write: Callable[[], Body], read: Read, estimate: Usage
    ) -> Reply:
        """Make a request, and again where that may help; `write` is called for each try."""
        attempt = 1
        while True:
            entry = await self.budget.acquire(estimate)
            usage: Usage | None = None
            try:
                reply = read(await self._once(url, write()), estimate)
                usage = reply.usage
                return reply
            except AgainError as again:
                if attempt > self.retries:
                    if again.of_row:
                        raise RefusedError(f"{again.problem}, {attempt} times") from again
                    problem = f"did not answer in {attempt} tries (last: {again.problem})"
                    remedy = "the journal keeps what came; run the same command again"
                    raise UserError(f"{self.where} {problem}: {remedy}") from again
                await self._wait(again, attempt)
            finally:
                self.budget.settle(entry, estimate, usage)
            attempt += 1

    def ask_all(
        self, items: Sequence[Item], ask: Callable[[Item], Awaitable[None]], name: str
    ) -> None:
        """Call `ask` for all items, several at a time, with a bar of that name; then close.

        Where one call raises UserError, or the budget is spent, no further one begins; those in
        flight end, since they are paid for. Raises UserError in both cases.
        """
        left = iter(items)
        bar = tqdm(total=len(items), desc=name, unit=" rows")
        failed: list[Exception] = []

        async def work() -> None:
            for item in left:
                try:
                    await ask(item)
                except (MoneySpentError, UserError) as error:
                    failed.append(error)
                    self.budget.close()
                    return
                bar.set_postfix_str(f"${self.budget.spent:.4f}", refresh=False)
                bar.update()

        async def run() -> None:
            async with self._client:
                await asyncio.gather(*(work() for _ in range(self.budget.limits.concurrency)))

        with bar:
            asyncio.run(run())
        if failed:
            if error := next((e for e in failed if isinstance(e, UserError)), None):
                raise error
            done = f"{bar.n} of {len(items)} rows answered, ${self.budget.spent:.4f} spent in all"
            remedy = "the journal keeps them; resume with a higher --max_cost"
            limit = f"--max_cost {self.budget.limits.max_cost:g}"
            raise UserError(f"stopped at {limit}: {done}: {remedy}") from failed[0]

    def _chat(self, messages: Messages, schema: Schema | None) -> Body:
        sent = {"model": self.model, **self._options}
        if schema is None:
            sent.pop("response_format", None)
        elif "response_format" in sent:
            judgement = {"name": "judgement", "strict": True, "schema": dict(schema)}
            sent["response_format"] = {"type": "json_schema", "json_schema": judgement}
        turns = [{**turn, "content": whole_characters(turn["content"])} for turn in messages]
        return sent | {"messages": turns}

    async def _once(self, url: str, sent: Body) -> object:
        """Make one request, and return its JSON; raises AgainError where another try may help."""
        import openai

        try:
            body: object = json.loads(await self._client.post(url, cast_to=str, body=sent))
        except openai.APIStatusError as error:
            message = error.body.get("message") if isinstance(error.body, dict) else None
            problem = one_line(message or error.message)
            after = _retry_after(error.response.headers)
            raise self._status(error.status_code, problem, after, sent) from None
        except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
            cause = error.__cause__ or error
            raise AgainError(f"{type(cause).__name__}: {one_line(cause)}") from None
        except (ValueError, RecursionError) as error:
            raise AgainError(f"an answer that is no JSON ({error})") from None
        if failure := error_of(body):
            if failure[0] < 400:  # unknown, so another try may help
                raise AgainError(failure[1])
            raise self._status(*failure, None, sent)
        return body

    def _status(
        self, status: int, problem: str, after: float | None, sent: Mapping[str, object]
    ) -> Exception:
        """Return what a status means: try again, do without an option, skip the row, or give up."""
        if status in RETRIED or status >= 500:
            return AgainError(f"status {status}: {problem}", after)
        if status in (401, 403):
            refusal = f"does not accept the key in {self.budget.limits.key_env}"
            return UserError(f"{self.where} {refusal} (status {status}): export a valid one")
        if status == 404:
            refusal = f"knows no model {self.model} at this address (status 404)"
            remedy = "correct the model's name or the URL (which usually ends in /v1)"
            return UserError(f"{self.where} {refusal}: {remedy}")
        if status == 400 and (option := self._without(problem.casefold(), sent)):
            return AgainError(f"status 400 about {option}", 0.0)
        return RefusedError(f"status {status}: {problem}")

    def _without(self, problem: str, sent: Mapping[str, object]) -> str:
        """Drop the option of a request that a 400 complains of; "" where it is none of them."""
        blamed = (name for name, words in COMPLAINTS.items() if any(w in problem for w in words))
        name = next((name for name in blamed if name in sent), "")
        if name in self._options:  # another request may have dropped it by now
            log.warning("%s does not take %s: asking without it", self.where, name)
            value = self._options.pop(name)
            if name == "max_tokens":
                self._options["max_completion_tokens"] = value
        return name

    async def _wait(self, again: AgainError, attempt: int) -> None:
        if again.after is not None:
            self.budget.pause(min(again.after, MAX_PAUSE))
            return
        # Full jitter: clients that failed together do not come back together.
        await asyncio.sleep(random.uniform(0, min(MAX_WAIT, FIRST_WAIT * 2 ** (attempt - 1))))


def _host_of(url: str) -> str:
    """Return the host that a URL names; raises UserError where it names none."""
    with suppress(ValueError):  # a port that is no number, half of an IPv6 address
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.port != 0 and parts.hostname:
            return parts.hostname
    raise UserError(f"{url} is no URL of an endpoint: write it as http://HOST:PORT/v1")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read the seconds that an endpoint asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
