"""A prompted model behind an OpenAI-compatible endpoint as a judge, with or without examples."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from pt_app.core.dataset import JudgeData, JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.verdicts import Scale
from pt_app.eval_model.evaluation import prediction
from pt_app.eval_model.options import Endpoint
from pt_app.evidence.results import JudgeRows
from pt_app.models.endpoint.budget import Budget
from pt_app.models.endpoint.client import Client
from pt_app.models.endpoint.journal import Entry, Journal
from pt_app.models.endpoint.reply import RefusedError, answer_part
from pt_app.scoring.scorer import Scored

log = logging.getLogger(__name__)

Messages = list[dict[str, str]]


def prompted_rows(
    endpoint: Endpoint,
    budget: Budget,
    test: Sequence[JudgeExample],
    shots: Sequence[JudgeExample],
    data: JudgeData,
    journal: Path,
) -> JudgeRows:
    """Ask about each test row once; a run resumes from the answers in `journal`.

    An answer whose verdict cannot be read, and a refused request, is a parse failure; the log
    counts what was refused or cut.

    Raises:
        UserError: if the endpoint is down, refuses all requests, or `max_cost` is reached.
    """
    template = Template.load(data.card.template, data.card.rubric)
    questions = {example.id: _messages(example, shots, template, data.scale) for example in test}
    with closing(Journal(journal, _settings(endpoint, questions))) as kept:
        answers = _answers(endpoint, budget, questions, kept)
    scored = [_scored(answers[example.id], data.scale) for example in test]
    rows = [prediction(endpoint.model, *pair, None) for pair in zip(test, scored, strict=True)]
    return JudgeRows(endpoint.model, f"{endpoint.model} at an endpoint", rows)


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


def _settings(endpoint: Endpoint, questions: Mapping[str, Messages]) -> dict[str, str | int]:
    """Return what an answer depends on: a journal of other settings is refused."""
    hashed = sha256(repr(sorted(questions.items())).encode()).hexdigest()
    return {"model": endpoint.model, "questions": hashed, "max_tokens": endpoint.max_tokens}


def _answers(
    endpoint: Endpoint, budget: Budget, questions: Mapping[str, Messages], journal: Journal
) -> dict[str, Entry]:
    """Return each row's journal entry, after asking about the rows that have none."""
    done = {entry["id"]: entry for entry in journal.entries}
    budget.spent = sum(entry["cost"] for entry in done.values())
    waiting = [id_ for id_ in questions if id_ not in done]

    async def ask(id_: str) -> None:
        entry: Entry = {"id": id_, "text": "", "cost": 0.0}
        try:
            reply = await client.ask(questions[id_], None)
            cost = budget.cost(reply.usage)
            entry |= {"text": reply.text, "cost": cost, "usage": asdict(reply.usage)}
            entry |= {"cut": True} if reply.cut else {}
        except RefusedError as refused:
            entry["refused"] = str(refused)
        journal.append(entry)
        done[id_] = entry

    if waiting:
        client = Client(
            model=endpoint.model,
            budget=budget,
            base_url=endpoint.url,
            max_tokens=endpoint.max_tokens,
        )
        client.ask_all(waiting, ask, "verdicts")
    _report_missing([done[id_] for id_ in questions], endpoint)
    return done


def _report_missing(entries: Sequence[Entry], endpoint: Endpoint) -> None:
    """Log how many rows have no complete answer, and why; raise UserError if all were refused."""
    refused = Counter(entry["refused"] for entry in entries if "refused" in entry)
    if refused and sum(refused.values()) == len(entries):
        raise UserError(
            f"the endpoint refuses every request ({next(iter(refused))}): correct the settings, "
            "and give another --out"
        )
    for reason, count in refused.most_common():
        log.warning("%d rows have no answer: %s", count, reason)
    if cut := sum(bool(entry.get("cut")) for entry in entries):
        cause = f"cut at --max_tokens {endpoint.max_tokens}: raise it for a model that thinks"
        log.warning("%d answers were %s", cut, cause)


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
    return Scored("parse_failure" if verdict is None else "ok", verdict=verdict, raw=text)
