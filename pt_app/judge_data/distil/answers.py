"""What a teacher is asked, the form its answer must have, and how the answer is read."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pt_app.core.records import Place
from pt_app.core.verdicts import Scale
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.rows import Row
from pt_app.models.endpoint.reply import answer_part, whole_characters

PROMPTS = Path(__file__).with_name("prompts")
_SHOWN = ("source", "conversation", "context", "reference", "rubric", "candidate")
_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
MAX_IN_ENUM = 30


class MalformedError(Exception):
    """An answer that is not of the form asked for; its text says why, in a few words."""


def messages_for(row: Row, scale: Scale, rubric: str, write: int) -> list[dict[str, str]]:
    """Lay out what a teacher is asked about one row: to label it, or to write graded candidates."""
    what = "candidate A and B" if scale.task == "pairwise" else "candidate"
    allowed = scale.says().removeprefix("allowed are ")
    system = _prompt("system").replace("{rubric}", rubric or "Judge how good the candidate is.")
    system = system.replace("{allowed}", allowed).replace("{form}", json.dumps(_form(scale, write)))
    user = _prompt("write" if write else "label").replace("{count}", str(write))
    what = what + "s" if write else what
    user = user.replace("{what}", what).replace(
        "{item}", json.dumps(_shown(row), ensure_ascii=False)
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def asked_again(
    messages: Sequence[Mapping[str, str]], answer: str, reason: str
) -> list[dict[str, str]]:
    """Add the malformed answer, and why it was, to what was asked."""
    again = _prompt("again").replace("{reason}", reason)
    return [
        *map(dict, messages),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": again},
    ]


def schema_for(scale: Scale, write: int) -> dict[str, Any]:
    """Give the JSON schema of an answer: one judgement, or `write` candidates with theirs."""
    if scale.task == "score" and len(scale.values) > MAX_IN_ENUM:
        verdict: dict[str, Any] = {"type": "number"}
    else:
        verdict = {"enum": list(scale.values)}
    text = {"type": "string"}
    judgement = {"verdict": verdict, "issues": {"type": "array", "items": text}, "feedback": text}
    if not write:
        return _object(judgement)
    names = ("candidate_a", "candidate_b") if scale.task == "pairwise" else ("candidate",)
    one = _object({**dict.fromkeys(names, text), **judgement})
    return _object({"candidates": {"type": "array", "items": one}})


def read_answer(text: str, row: Row, scale: Scale, write: int) -> list[Row]:
    """Make labelled rows of an answer; raises MalformedError where it is not of the form."""
    answer = answer_part(text)
    if answer is None:
        raise MalformedError("it is an unfinished thought")
    fenced = _FENCE.match(answer)
    try:
        value = json.loads(fenced.group(1) if fenced else answer)
        value = json.loads(whole_characters(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"it is not JSON ({' '.join(str(error).split())[:80]})") from error
    if not write:
        return [row | {"label": _label(value, scale)}]
    found = value.get("candidates") if isinstance(value, dict) else None
    if not isinstance(found, list) or len(found) != write:
        count = len(found) if isinstance(found, list) else "no"
        raise MalformedError(f"it has {count} candidates, not {write}")
    return [
        row | _candidates(one, scale) | {"id": f"{row['id']}-{i}", "label": _label(one, scale)}
        for i, one in enumerate(found, start=1)
    ]


def _candidates(value: Any, scale: Scale) -> Row:
    names = ("candidate_a", "candidate_b") if scale.task == "pairwise" else ("candidate",)
    texts = [value.get(name) if isinstance(value, dict) else None for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise MalformedError(f"a candidate has no {' or '.join(names)}")
    return {"candidates": texts} if len(texts) == 2 else {"candidate": texts[0]}


def _label(value: Any, scale: Scale) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedError("it is no object")
    place = Place(Path("answer"), 1, lines=False)
    try:
        verdict = scale.normalise(LabelReader(scale).read(value.get("verdict"), place))
    except ValueError as error:
        raise MalformedError("its verdict cannot be read") from error
    except Exception as error:  # RowError, whose remedy is for files
        raise MalformedError(f"its verdict is {value.get('verdict')!r}") from error
    if verdict is None:
        raise MalformedError(f"its verdict {value.get('verdict')!r} is not allowed: {scale.says()}")
    issues, feedback = value.get("issues", []), value.get("feedback", "")
    if not isinstance(issues, list) or not all(isinstance(issue, str) for issue in issues):
        raise MalformedError("its issues are no list of texts")
    if not isinstance(feedback, str):
        raise MalformedError("its feedback is no text")
    return {"verdict": verdict, "issues": issues, "feedback": feedback}


def _form(scale: Scale, write: int) -> dict[str, Any]:
    judgement = {"verdict": scale.values[-1], "issues": ["..."], "feedback": "..."}
    if not write:
        return judgement
    names = ("candidate_a", "candidate_b") if scale.task == "pairwise" else ("candidate",)
    return {"candidates": [{**dict.fromkeys(names, "..."), **judgement}, "..."]}


def _shown(row: Row) -> dict[str, Any]:
    shown = {name: row[name] for name in _SHOWN if row.get(name) is not None}
    if "candidates" in row:
        shown |= {"candidate A": row["candidates"][0], "candidate B": row["candidates"][1]}
    return shown


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _prompt(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
