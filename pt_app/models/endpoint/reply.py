"""Read what an endpoint answered, whatever shape it gave it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pt_app.models.endpoint.budget import Usage

# How models mark a thought: most; Anthropic's and others; Mistral's; one template's own word.
_NAMES = "think|thinking|reasoning|THINK"
_OPEN = re.compile(rf"^[ \t]*[<\[](?:{_NAMES})[>\]]", re.MULTILINE)
_CLOSE = re.compile(rf"[<\[]/(?:{_NAMES})[>\]]")
_FINAL = "<|channel|>final<|message|>"  # gpt-oss, where a server does not read its channels
_CHANNEL = "<|channel|>"


class RefusedError(Exception):
    """The endpoint will not answer this one request; others may be fine."""


@dataclass(eq=False)
class AgainError(Exception):
    """An answer that may come on another try, after so many seconds where they are given.

    `of_row`: where it never comes, this request is at fault and not the endpoint.
    """

    problem: str
    after: float | None = None
    of_row: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer's text and what it took; `estimated` where the endpoint did not say.

    `cut`: it reached the maximum of tokens that was asked for, so its last line is not whole.
    `model`: the name under which the model answered; "" if the endpoint does not say.
    """

    text: str
    usage: Usage
    estimated: bool
    cut: bool = False
    model: str = ""


def reply_of(body: object, estimate: Usage) -> Reply:
    """Read the body of a chat completion.

    Raises RefusedError where the endpoint gives a reason for no answer, AgainError where it gives
    neither.
    """
    choice = _first_choice(body)
    message, reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, Mapping):
        raise AgainError("an answer without choices", of_row=True)
    text = whole_characters(_text(message.get("content")))
    if message.get("refusal"):
        raise RefusedError(f"refused: {one_line(message['refusal'])}")
    if reason == "content_filter":
        raise RefusedError("withheld by the endpoint's content filter")
    if not text and message.get("tool_calls"):
        raise RefusedError("a call of a tool instead of an answer")
    counts = _mapping(_mapping(body).get("usage"))
    prompt, answer = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    usage = Usage(
        estimate.prompt if prompt is None else prompt,
        len(text.encode()) // 2 + 1 if answer is None else answer,
    )
    estimated = prompt is None or answer is None
    return Reply(text, usage, estimated, reason == "length", _model(body))


def decisions_of(body: object, estimate: Usage) -> Reply:
    """Read the body of a decision model's answer; its text is the JSON of the answers.

    Raises AgainError where there are none.
    """
    fields = _mapping(body)
    answers, counts = fields.get("answers"), _mapping(fields.get("usage"))
    if not isinstance(answers, list | Mapping):
        raise AgainError("an answer without answers", of_row=True)
    prompt = _count(counts.get("input_tokens"))
    answer = _count(counts.get("output_tokens")) or 0
    usage = Usage(estimate.prompt if prompt is None else prompt, answer)
    text = json.dumps(answers, ensure_ascii=False)
    return Reply(text, usage, prompt is None, model=_model(body))


def error_of(body: object) -> tuple[int, str] | None:
    """Return status (0: unknown) and message of an error that came with status 200, or None."""
    fields = _mapping(body)
    error = fields.get("error") or _first_choice(body).get("error")
    error = error or (fields if fields.get("object") == "error" else None)
    if not error:
        return None
    details = _mapping(error)
    codes = (str(details.get(name)) for name in ("code", "status"))
    return int(next(filter(str.isdecimal, codes), 0)), one_line(details.get("message") or error)


def answer_part(text: str, cut: bool = False) -> str | None:
    """Return an answer without the thought before it, and without the last line of a cut one.

    None where the thought never ended: a verdict in it is one that was weighed, not given.
    """
    if _CHANNEL in text:
        _, final, text = text.rpartition(_FINAL)
        if not final:
            return None
    opened, closed = _OPEN.search(text), _CLOSE.search(text)
    before = text[: opened.start()] if opened else text
    if closed and (opened is None or opened.start() > closed.start()):
        text = text[closed.end() :]  # the server's template opened it
    elif opened:
        text = before + text[closed.end() :] if closed else before
        if not (closed or before.strip()):
            return None
    if cut:
        text = text.rpartition("\n")[0]
    return text.strip()


def whole_characters(text: str) -> str:
    """Replace halves of surrogate pairs, which no file and no request can hold, by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parsed_json(text: str | bytes) -> Any:
    """Parse JSON as it can be written again; raises ValueError or RecursionError."""
    return json.loads(whole_characters(json.dumps(json.loads(text), ensure_ascii=False)))


def one_line(message: object) -> str:
    """Shorten a message of the endpoint to one line."""
    return " ".join(whole_characters(str(message)).split())[:200]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _model(body: object) -> str:
    return one_line(_mapping(body).get("model") or "")


def _first_choice(body: object) -> Mapping[str, object]:
    choices = _mapping(body).get("choices")
    return _mapping(choices[0]) if isinstance(choices, list) and choices else {}


def _count(tokens: object) -> int | None:
    return tokens if isinstance(tokens, int) and tokens >= 0 else None


def _text(content: object) -> str:
    """Join the texts of an answer's content: a text, or a list of parts of which some think."""
    if isinstance(content, list):
        return "".join(map(_text, content))
    if isinstance(content, Mapping):
        is_text = content.get("type", "text") in ("text", "output_text")
        content = content.get("text") if is_text else ""
    return content if isinstance(content, str) else ""
