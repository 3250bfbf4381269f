"""Reads what an OpenAI-compatible endpoint answered, whatever shape it gave it.

Both those who ask an endpoint use it: `judge data distil` and `judge eval --endpoint`.
"""

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


class AgainError(Exception):
    """An answer that may come when asked once more, after so many seconds where they are said.

    `of_row`: where it never comes, this request is at fault and not the endpoint.
    """

    def __init__(self, problem: str, after: float | None = None, of_row: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.after, self.of_row = problem, after, of_row


@dataclass(frozen=True)
class Reply:
    """An answer's text and what it took; `estimated` where the endpoint did not say.

    `cut`: it reached the most tokens that were asked for, so that its last line is not whole.
    """

    text: str
    usage: Usage
    estimated: bool
    cut: bool = False


def reply_of(body: Any, estimate: Usage) -> Reply:
    """Read the body of a chat completion.

    Raises RefusedError where there is a reason for no answer, AgainError where there is neither.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(first, Mapping) or not isinstance(message, Mapping):
        raise AgainError("an answer without choices", of_row=True)
    text = whole_characters(_text(message.get("content")))
    reason = first.get("finish_reason")
    if message.get("refusal"):
        raise RefusedError(f"refused: {one_line(message['refusal'])}")
    if reason == "content_filter":
        raise RefusedError("withheld by the endpoint's content filter")
    if not text and message.get("tool_calls"):
        raise RefusedError("a call of a tool instead of an answer")
    said = body.get("usage")
    counts = [
        said.get(name) if isinstance(said, Mapping) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    known = [one if isinstance(one, int) and one >= 0 else None for one in counts]
    own = Usage(estimate.prompt, len(text.encode()) // 2 + 1)
    prompt, answer = (
        guess if one is None else one
        for one, guess in zip(known, (own.prompt, own.answer), strict=True)
    )
    return Reply(text, Usage(prompt, answer), None in known, reason == "length")


def error_of(body: Any) -> tuple[int, str] | None:
    """Give status (0: none said) and message of an error that came as a success, if it is one."""
    if not isinstance(body, Mapping):
        return None
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    found = body.get("error") or (first.get("error") if isinstance(first, Mapping) else None)
    if not found and body.get("object") != "error":
        return None
    found = found or body
    if not isinstance(found, Mapping):
        return 0, one_line(found)
    code = next((found[k] for k in ("code", "status") if str(found.get(k)).isdigit()), 0)
    return int(code), one_line(found.get("message") or found)


def answer_part(text: str, cut: bool = False) -> str | None:
    """Give an answer without the thought before it, and without the last line of a cut one.

    None where the thought never ended: a verdict in it is one that was weighed, not given.
    """
    if _CHANNEL in text:
        _, final, text = text.rpartition(_FINAL)
        if not final:
            return None
    opened, closed = _OPEN.search(text), _CLOSE.search(text)
    if closed and (opened is None or opened.start() > closed.start()):
        text = text[closed.end() :]  # the server's template opened it
    elif closed and opened:
        text = text[: opened.start()] + text[closed.end() :]
    elif opened:
        text = text[: opened.start()]
        if not text.strip():
            return None
    if cut:
        text = text.rpartition("\n")[0]
    return text.strip()


def whole_characters(text: str) -> str:
    """Replace halves of surrogate pairs, which no file and no request can hold, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def one_line(said: Any) -> str:
    """Shorten what an endpoint said to a line for messages."""
    return " ".join(whole_characters(str(said)).split())[:200]


def _text(content: Any) -> str:
    """Join the texts of an answer's content: a text, or a list of parts of which some think."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    parts = content if isinstance(content, list) else []
    return "".join(
        part
        if isinstance(part, str)
        else str(part["text"])
        if isinstance(part, Mapping)
        and part.get("type", "text") in ("text", "output_text")
        and isinstance(part.get("text"), str)
        else ""
        for part in parts
    )
