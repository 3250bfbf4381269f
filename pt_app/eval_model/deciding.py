"""A decision model at an endpoint as a judge: asked about each row several times, at a price.

It is asked in the words of the dataset's rubric, or of its questions, about the fields that an
adapter is shown, and answers with a probability for each verdict.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pt_app.core.choosing import choose, mean_of, resolved_rule
from pt_app.core.dataset import JudgeData, JudgeExample
from pt_app.core.decision_wires import WireQuestion, answer_to, request, route
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template, asked_fields
from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale
from pt_app.eval_model.asking import Replies, hash_of, replies_to
from pt_app.eval_model.evaluation import ByQuestion, prediction
from pt_app.eval_model.options import Endpoint
from pt_app.evidence.results import JudgeRows
from pt_app.models.endpoint.journal import Entry
from pt_app.scoring.scorer import Scored

ONLY = "verdict"  # the name of the question of a dataset that declares none
Chances = Sequence[float] | None  # None: no answer that can be read
log = logging.getLogger(__name__)


def decided_rows(
    endpoint: Endpoint, test: Sequence[JudgeExample], data: JudgeData, journal: Path
) -> ByQuestion:
    """Ask a decision model about each test row, `endpoint.repeats` times; resumes from `journal`.

    All questions of a row are asked in one request. The first answer counts; the others show how
    far the model agrees with itself. One that is refused or cannot be read is a parse failure, and
    the log counts them.

    Returns:
        Its rows by question; "": without one.

    Raises:
        UserError: as `replies_to` and `asked_about`, and if no answer can be read.
    """
    questions = asked_about(test, data)
    fields = _fields(data)
    bodies = {
        row.id: request(endpoint.wire, endpoint.model, _state(row, fields), questions[row.id])
        for row in test
    }
    turns, url = range(1, endpoint.repeats + 1), route(endpoint.decisions, endpoint.wire)
    requests = {f"{turn} {name}": body for turn in turns for name, body in bodies.items()}
    settings = {"questions": hash_of(bodies)}
    replies = replies_to(endpoint, requests, settings, journal, lambda c, b: c.decide(url, b))
    read = _read(replies, test, questions, endpoint.repeats)
    rows: dict[str, JudgeRows] = {}
    for name, view in data.views():
        own = [i for i, row in enumerate(test) if row.asks == name]
        rows[name] = JudgeRows(
            endpoint.model,
            replies.name,
            [_row(endpoint.model, test[i], [_scored(p, view.scale) for p in read[i]]) for i in own],
            rule=resolved_rule("auto", view.scale),
            cost=replies.cost(len(own) * endpoint.repeats, len(test) * endpoint.repeats),
        )
    return rows


def asked_about(
    test: Sequence[JudgeExample], data: JudgeData
) -> dict[str, dict[str, WireQuestion]]:
    """Return what is asked about each row, by its id: all questions that it has a label for.

    Raises:
        UserError: for a scale that is too fine, and for data without words to ask in.
    """
    scales = {name: view.scale for name, view in data.views()}
    words = "" if data.questions else _words(data)
    questions: dict[str, dict[str, WireQuestion]] = {}
    for row in test:
        question = WireQuestion.of(scales[row.asks], words, row.question)
        questions.setdefault(row.id, {})[row.asks or ONLY] = question
    return questions


def _words(data: JudgeData) -> str:
    words = Template.load(data.card.template, data.card.rubric).words(data.scale)
    if not words.strip():
        problem = f"{data.path} has neither a rubric nor a template with a system text"
        raise UserError(f"{problem}: a decision model is asked in its words; write a rubric")
    return words


def _fields(data: JudgeData) -> list[str]:
    """Return the fields of a row that an adapter is shown."""
    if data.questions:
        return data.card.state
    shown = asked_fields(Template.load(data.card.template, data.card.rubric), data.scale)
    named = ("candidates" if name.startswith("candidate_") else name for name in shown)
    return [*dict.fromkeys(named), "rubric"]


def _state(row: JudgeExample, fields: Sequence[str]) -> Any:
    """Return what is asked about: the fields of a row, or the turns of a chat row."""
    if row.row is not None:
        return {name: row.row[name] for name in fields}
    if row.prompt is not None:
        turns = (("system", row.system), ("user", row.prompt))
        return {"messages": [{"role": who, "content": said} for who, said in turns if said]}
    return row.model_dump(include=set(fields), exclude_none=True)


def _read(
    replies: Replies,
    test: Sequence[JudgeExample],
    questions: Mapping[str, Mapping[str, WireQuestion]],
    repeats: int,
) -> list[list[Chances]]:
    """Return the probabilities of each row in each of its answers, and log what cannot be read.

    Raises:
        UserError: if that is all.
    """
    problems, others = Counter[str](), Counter[str]()

    def read_one(entry: Entry, row: JudgeExample) -> Chances:
        if "refused" in entry:
            return None
        name, asked = row.asks or ONLY, questions[row.id]
        try:
            given = answer_to(name, [*asked], json.loads(entry["text"]))
            chances = asked[name].chances(given)
        except ValueError as error:
            problems[str(error)] += 1
            return None
        extra = given.get("x_judge")  # of `judge serve`
        others[row.asks] += isinstance(extra, Mapping) and extra.get("trained_question") is False
        return chances

    turns = range(1, repeats + 1)
    read = [[read_one(replies.entries[f"{turn} {row.id}"], row) for turn in turns] for row in test]
    if problems and not any(one for each in read for one in each):
        problem = f"no answer of {replies.model} can be read ({problems.most_common(1)[0][0]})"
        raise UserError(f"{problem}: correct --wire or --endpoint_model, and give another --out")
    for problem, count in problems.most_common():
        log.warning("%d answers of %s cannot be read: %s", count, replies.model, problem)
    if count := others.total():
        named = ", ".join(name for name, own in others.items() if own and name)
        untrained = "%d answers of %s are to a question that it was not trained on%s"
        log.warning(untrained, count, replies.model, f": {named}" if named else "")
    return read


def _scored(chances: Chances, scale: Scale) -> Scored:
    if chances is None:
        return Scored("parse_failure")
    verdict = choose(chances, scale, resolved_rule("auto", scale))
    expected = mean_of(chances, scale)
    return Scored("ok", verdict, verdict, probabilities=tuple(chances), expected=expected)


def _row(model: str, example: JudgeExample, scored: Sequence[Scored]) -> Prediction:
    """Lay out a row of predictions.jsonl: of the first answer, and how far the others differ."""
    first, *others = scored
    row = prediction(model, example, first)
    if not others:
        return row
    moved = [
        abs(p - q)
        for other in others
        for p, q in zip(first.probabilities, other.probabilities, strict=False)
    ]
    repeated = [other.verdict for other in others]
    return row.model_copy(update={"repeated": repeated, "moved": max(moved, default=None)})
