"""What a teacher is asked, the form its answer must have, and how the answer is read."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from pydantic import BaseModel, ValidationError

from pt_app.core.records import Place, first_problem
from pt_app.core.verdicts import Scale
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.rows import Row
from pt_app.models.endpoint.reply import answer_part, parsed_json

PROMPTS = Path(__file__).with_name("prompts")
SHOWN = ("source", "conversation", "context", "reference", "rubric", "candidate")
MAX_IN_ENUM = 30  # endpoints limit the values of an enum
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
Turns = list[dict[str, str]]
Schema = Mapping[str, object]


class MalformedError(Exception):
    """An answer that is not of the form asked for; its text says why, in a few words."""


def messages_for(row: Row, scale: Scale, rubric: str, write: int) -> Turns:
    """Write what a teacher is asked about one row: to label it, or to write graded candidates."""
    judgement = {"verdict": scale.values[-1], "issues": ["..."], "feedback": "..."}
    graded = {**dict.fromkeys(_candidate_names(scale), "..."), **judgement}
    shown = {name: row[name] for name in SHOWN if row.get(name) is not None}
    if "candidates" in row:
        shown |= {"candidate A": row["candidates"][0], "candidate B": row["candidates"][1]}
    what = "candidate A and B" if scale.task == "pairwise" else "candidate"
    system = _prompt(
        "system",
        rubric=rubric or "Judge how good the candidate is.",
        allowed=scale.says().removeprefix("allowed are "),
        form=json.dumps({"candidates": [graded, "..."]} if write else judgement),
    )
    user = _prompt(
        "write" if write else "label",
        count=str(write),
        what=f"{what}s" if write else what,
        item=json.dumps(shown, ensure_ascii=False),
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def asked_again(messages: Turns, answer: str, reason: str) -> Turns:
    """Add the malformed answer, and why it is malformed, to what was asked."""
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": _prompt("again", reason=reason)},
    ]


def schema_for(scale: Scale, write: int) -> Schema:
    """Return the JSON schema of an answer: one judgement, or `write` candidates with theirs."""
    fine = scale.task == "score" and len(scale.values) > MAX_IN_ENUM
    verdict: Schema = {"type": "number"} if fine else {"enum": list(scale.values)}
    text: Schema = {"type": "string"}
    judgement = {"verdict": verdict, "issues": {"type": "array", "items": text}, "feedback": text}
    if not write:
        return _object(judgement)
    graded = _object({**dict.fromkeys(_candidate_names(scale), text), **judgement})
    return _object({"candidates": {"type": "array", "items": graded}})


class Judgement(BaseModel):
    """An answer, or one of the candidates in it with its judgement."""

    verdict: object = None
    issues: list[str] = []
    feedback: str = ""
    candidate: str | None = None
    candidate_a: str | None = None
    candidate_b: str | None = None


class Written(BaseModel):
    """An answer that holds graded candidates."""

    candidates: list[Judgement]


def read_answer(text: str, row: Row, scale: Scale, write: int) -> list[Row]:
    """Make labelled rows of an answer; raises MalformedError where it is not of the form."""
    answer = answer_part(text)
    if answer is None:
        raise MalformedError("it is an unfinished thought")
    fenced = _FENCE.match(answer)
    try:
        value = parsed_json(fenced.group(1) if fenced else answer)
        if not write:
            return [row | {"label": _label(Judgement.model_validate(value), scale)}]
        graded = Written.model_validate(value).candidates
    except ValidationError as error:
        raise MalformedError(": ".join(filter(None, first_problem(error)))) from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it is not JSON ({' '.join(str(error).split())[:80]})") from error
    if len(graded) != write:
        raise MalformedError(f"it has {len(graded)} candidates, not {write}")
    return [
        row
        | _candidates(judgement, scale)
        | {"id": f"{row['id']}-{number}", "label": _label(judgement, scale)}
        for number, judgement in enumerate(graded, start=1)
    ]


def _candidate_names(scale: Scale) -> tuple[str, ...]:
    return ("candidate_a", "candidate_b") if scale.task == "pairwise" else ("candidate",)


def _candidates(graded: Judgement, scale: Scale) -> Row:
    names = _candidate_names(scale)
    texts = [getattr(graded, name) for name in names]
    if None in texts:
        raise MalformedError(f"a candidate has no {' or '.join(names)}")
    return {"candidates": texts} if len(texts) == 2 else {"candidate": texts[0]}


def _label(judgement: Judgement, scale: Scale) -> Row:
    verdict = judgement.verdict
    try:
        read = LabelReader(scale).read(verdict, Place(Path("answer"), 1, lines=False))
        normal = scale.normalise(read)
    except Exception as error:  # RowError, whose remedy is for files; and any JSON may come
        raise MalformedError(f"its verdict is {verdict!r}") from error
    if normal is None:
        raise MalformedError(f"its verdict {verdict!r} is not allowed: {scale.says()}")
    return {"verdict": normal, "issues": judgement.issues, "feedback": judgement.feedback}


def _object(properties: Mapping[str, Schema]) -> Schema:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": dict(properties), **required}


def _prompt(name: str, **values: str) -> str:
    """Read a prompt and fill in its fields."""
    text = (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    return Template(text).substitute(values)
