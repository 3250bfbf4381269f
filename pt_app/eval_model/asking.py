"""A model at an endpoint as a judge: what is asked goes through a journal, so that a run resumes.

Here is the model that is prompted and writes, with or without examples; decision models are in
deciding.py.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field

from pt_app.core.dataset import JudgeData, JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.results import Cost
from pt_app.core.verdicts import Scale
from pt_app.eval_model.evaluation import prediction
from pt_app.eval_model.options import Endpoint
from pt_app.evidence.results import JudgeRows
from pt_app.models.endpoint.budget import Budget
from pt_app.models.endpoint.client import Client
from pt_app.models.endpoint.journal import Entry, Journal
from pt_app.models.endpoint.reply import RefusedError, Reply, answer_part
from pt_app.scoring.scorer import Scored

Messages = list[dict[str, str]]
Request = TypeVar("Request")
log = logging.getLogger(__name__)


@dataclass
class Replies:
    """What an endpoint replied: an entry of the journal for each request, by its key."""

    model: str
    entries: Mapping[str, Entry]

    def cost(self, verdicts: int, of: int) -> Cost:
        """Return the cost of `verdicts` out of all `of` verdicts, which cost the same each."""
        each = sum(entry["cost"] for entry in self.entries.values()) / max(1, of)
        return Cost(dollars=each * verdicts, per_verdict=each, n=verdicts)

    @property
    def name(self) -> str:
        """The name in the requests, and the names in the replies where they differ."""
        named = {str(entry.get("model") or self.model) for entry in self.entries.values()}
        also = f" (answered as {', '.join(sorted(named))})" if named != {self.model} else ""
        return f"{self.model} at an endpoint{also}"


class _Answered(BaseModel):
    """What an entry of the journal must hold; `text` is empty where the request was refused."""

    id: str
    text: str
    cost: float = Field(ge=0, allow_inf_nan=False)
    refused: str = ""


def replies_to(
    endpoint: Endpoint,
    requests: Mapping[str, Request],
    settings: Mapping[str, str | int],
    path: Path,
    send: Callable[[Client, Request], Awaitable[Reply]],
) -> Replies:
    """Make the requests that the journal at `path` does not answer yet.

    Args:
        endpoint: where to ask.
        requests: by key.
        settings: what an answer depends on: a journal of others is refused.
        path: of the journal.
        send: makes a request.

    Raises:
        UserError: if the endpoint is down, refuses all requests, or `max_cost` is reached.
    """
    budget = Budget(endpoint)
    with closing(Journal(path, {"model": endpoint.model, **settings}, _Answered)) as journal:
        done = {entry["id"]: entry for entry in journal.entries}
        budget.spent = sum(entry["cost"] for entry in done.values())

        async def ask(key: str) -> None:
            entry: Entry = {"id": key, "text": "", "cost": 0.0}
            try:
                reply = await send(client, requests[key])
                cost = budget.cost(reply.usage)
                entry |= {"text": reply.text, "cost": cost, "usage": asdict(reply.usage)}
                entry |= {"cut": True} if reply.cut else {}
                entry |= {"model": reply.model} if reply.model else {}
            except RefusedError as refused:
                entry["refused"] = str(refused)
            journal.append(entry)
            done[key] = entry

        if waiting := [key for key in requests if key not in done]:
            client = Client(
                model=endpoint.model,
                budget=budget,
                base_url=endpoint.decisions or endpoint.url,
                max_tokens=endpoint.max_tokens,
            )
            client.ask_all(waiting, ask, "verdicts")
    entries = {key: done[key] for key in requests}
    _report_missing([*entries.values()], endpoint)
    return Replies(endpoint.model, entries)


def hash_of(requests: Mapping[str, object]) -> str:
    """Return the hash of all requests, for the settings of a journal."""
    return sha256(repr(sorted(requests.items())).encode()).hexdigest()


def _report_missing(entries: Sequence[Entry], endpoint: Endpoint) -> None:
    """Log how many requests have no complete answer, and why; raise UserError if none has one."""
    refused = Counter(entry["refused"] for entry in entries if "refused" in entry)
    if refused and sum(refused.values()) == len(entries):
        raise UserError(
            f"the endpoint refuses every request ({next(iter(refused))}): correct the settings, "
            "and give another --out"
        )
    for reason, count in refused.most_common():
        log.warning("%d of %d requests have no answer: %s", count, len(entries), reason)
    if cut := sum(bool(entry.get("cut")) for entry in entries):
        cause = f"cut at --max_tokens {endpoint.max_tokens}: raise it for a model that thinks"
        log.warning("%d answers were %s", cut, cause)


def prompted_rows(
    endpoint: Endpoint,
    test: Sequence[JudgeExample],
    shots: Sequence[JudgeExample],
    data: JudgeData,
    journal: Path,
) -> JudgeRows:
    """Ask a model that writes about each test row once; a run resumes from `journal`.

    An answer whose verdict cannot be read, and a refused request, is a parse failure; the log
    counts what was refused or cut.

    Raises:
        UserError: as `replies_to`.
    """
    template = Template.load(data.card.template, data.card.rubric)
    prompts = {example.id: _messages(example, shots, template, data.scale) for example in test}
    settings: dict[str, str | int] = {"questions": hash_of(prompts)}
    settings["max_tokens"] = endpoint.max_tokens
    replies = replies_to(endpoint, prompts, settings, journal, lambda c, p: c.ask(p, None))
    scored = [_scored(replies.entries[example.id], data.scale) for example in test]
    rows = [prediction(endpoint.model, *pair) for pair in zip(test, scored, strict=True)]
    cost = replies.cost(len(test), len(test))
    return JudgeRows(endpoint.model, replies.name, rows, cost=cost)


def _messages(
    example: JudgeExample, shots: Sequence[JudgeExample], template: Template, scale: Scale
) -> Messages:
    """Return the template's prompt, preceded by some training rows with their answers."""
    turns: Messages = []
    for row in (*shots, example):
        system, user = row.system or "", row.prompt
        if user is None:
            system, user = template.render(row, scale)
        if not turns and system:
            turns.append({"role": "system", "content": system})
        turns.append({"role": "user", "content": user})
        if row is not example:
            turns.append({"role": "assistant", "content": row.answer(scale) or ""})
    return turns


def _scored(entry: Entry, scale: Scale) -> Scored:
    """Read an answer: the verdict in the exact format, else as a person would write it.

    A verdict within a thought does not count, nor one in the last line of an answer that was cut.
    """
    text, cut = entry["text"], entry.get("cut", False)
    verdict = scale.parse(text) if "\n" in text or not cut else None
    answer = answer_part(text, cut) if verdict is None else None
    if answer is not None:
        read = scale.read(answer)
        verdict = scale.parse(answer) if read is None else read.verdict
    return Scored("parse_failure" if verdict is None else "ok", verdict, verdict, raw=text)
