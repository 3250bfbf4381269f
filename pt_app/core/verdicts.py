"""Scales of verdicts: their lines, how an answer is written, and how one is read back.

An answer starts with its verdict, alone on the first line, so that one forward pass can read it:

    Score: 7/10
    Issues: gender "o" -> "a"; omission "bem"
    Feedback: The article has the wrong gender and an adverb is missing.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Literal

from pt_app.core.errors import UserError

Task = Literal["score", "pairwise", "pass_fail"]
Verdict = int | float | str

KEYWORDS = {"score": "Score", "pairwise": "Winner", "pass_fail": "Verdict", "choice": "Answer"}
NAMED: dict[str, tuple[Verdict, ...]] = {
    "pairwise": ("A", "B", "tie"),
    "pass_fail": ("PASS", "FAIL"),
}
YES_NO = ("yes", "no")
CHOICE = "choice:"  # before the options, as a JSON list, in the name of a scale of options
# Every verdict is a path that the scorer reads; a scale finer than this is a regression.
MAX_VALUES = 1001
MAX_NAMED = 8  # options that a message or a form names

_NUMBER = r"-?\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER})-({_NUMBER})(?::({_NUMBER}))?")
# What people put before a heading: quote marks, bullets, Markdown.
_LINE_START = r"^[ \t>*_`#\-•]*"
_MARKUP = r"[ \t*_`]*"
_AMOUNT = r"(-?\d+(?:[.,]\d+)?)"
_TOP = rf"{_MARKUP}(?:/|out of)[ ]*{_AMOUNT}"
_WRITTEN = {
    # Not the start of a range, 7-8, nor of "7 points out of 10", whose top would go unread.
    "score": rf"{_AMOUNT}(?![ ]*[-–—][ ]*\d)(?:{_TOP}|(?!{_MARKUP}(?:points?|out|of)\b))",
    "pairwise": r"(a|b|tie)()",
    "pass_fail": r"(pass|fail)()",
}
# A verdict ends at a blank, a sentence's end or markup, and stands alone: not 7%, 7/10/2, A or B.
_END = (
    r"(?=[*_`~\"'”’.,;:!?)\]}]*(?:[\s<|(—–]|$))"
    rf"(?!{_MARKUP}(?:[/%&]|(?:or|and|to|tie|percent)\b))"
)
_HEADING = re.compile(
    rf"{_LINE_START}(issues|feedback)[ \t*_]*:[ \t*_]*", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class ParsedAnswer:
    """The content of an answer: its verdict, the issues it lists, and the rest as feedback."""

    verdict: Verdict
    issues: tuple[str, ...]
    feedback: str


@dataclass(frozen=True)
class Scale:
    """The allowed verdicts of a task, in order.

    `task` is "score", "pairwise" or "pass_fail"; `name` is "0-10", "1-5", "0-10:0.5" (low, high,
    step), "pairwise" or "pass_fail". Whole numbers are ints, others floats. A question
    (questions.py) may also ask for options, of the task "choice": "bool" is yes or no, and
    'choice:["red", "blue"]' names them.

    `grid` is a coarser scale that a judge speaks instead: its lines then stand for bins of the
    values (grids.py). Labels, names and probabilities stay those of the scale itself, so that
    scales which differ by their grid alone are equal. So are those whose names are two spellings of
    the same values, "1-5" and "1-5:1".
    """

    task: str
    name: str = field(compare=False)
    values: tuple[Verdict, ...]
    grid: "Scale | None" = field(default=None, compare=False)

    @staticmethod
    @lru_cache(maxsize=64)
    def from_name(name: str) -> "Scale":
        """Build the scale that `name` stands for; raises UserError for any other text."""
        if name in NAMED:
            return Scale(name, name, NAMED[name])
        if name == "bool":
            return Scale("choice", name, YES_NO)
        if name.startswith(CHOICE):
            return Scale("choice", name, _options(name))
        match = _RANGE.fullmatch(name)
        parts = match.groups() if match else ("0", "0", "0")
        low, high, step = (Decimal(part or "1") for part in parts)
        steps = (high - low) / step if step > 0 else Decimal(0)
        if steps >= MAX_VALUES:
            raise UserError(f'scale "{name}" has over {MAX_VALUES} values: widen its step')
        if steps <= 0 or steps != steps.to_integral_value():
            raise UserError(
                f'"{name}" is not a scale: use low-high (0-10), '
                "low-high:step (0-10:0.5) whose steps lead to its end, pairwise or pass_fail"
            )
        return Scale("score", name, tuple(_number(low + step * i) for i in range(int(steps) + 1)))

    @staticmethod
    def of_options(options: Sequence[str]) -> "Scale":
        """Build the scale of the options of a question."""
        return Scale.from_name(CHOICE + json.dumps(list(options), ensure_ascii=False))

    def with_grid(self, name: str) -> "Scale":
        """Return this scale, spoken on the coarser scale `name`; raises UserError if none fits."""
        grid = Scale.from_name(name)
        are_numbers = self.task == grid.task == "score"
        if not are_numbers or len(grid.values) >= len(self.values):
            remedy = "name a coarser scale of numbers, or off"
            raise UserError(f"grid {name}: it does not fit the scale {self.name}: {remedy}")
        return replace(self, grid=grid)

    @cached_property
    def _line_of(self) -> dict[Verdict, str]:
        keyword = KEYWORDS[self.task]
        if self.grid is not None:
            # Bins of equal width from low to high; the top value lies in the last one.
            lines, steps = self.grid.lines(), len(self.values) - 1
            bins = [min(len(lines) - 1, i * len(lines) // steps) for i in range(steps + 1)]
            return {value: lines[b] for value, b in zip(self.values, bins, strict=True)}
        if self.task != "score":
            return {value: f"{keyword}: {value}\n" for value in self.values}
        top = _plain(self.values[-1])
        return {value: f"{keyword}: {_plain(value)}/{top}\n" for value in self.values}

    @cached_property
    def _value_of(self) -> dict[str, Verdict]:
        return {
            line[:-1]: value for line, value in zip(self.lines(), self.line_values, strict=True)
        }

    @cached_property
    def bins(self) -> tuple[tuple[Verdict, ...], ...]:
        """The verdicts that each of `lines` stands for: without a grid one each."""
        bins: dict[str, list[Verdict]] = {}
        for value, line in self._line_of.items():
            bins.setdefault(line, []).append(value)
        return tuple(map(tuple, bins.values()))

    @cached_property
    def line_values(self) -> tuple[Verdict, ...]:
        """The verdict that each of `lines` stands for.

        With a grid it is the value nearest to the mean of its bin, the lower one of two.
        """
        return tuple(values[(len(values) - 1) // 2] for values in self.bins)

    def spread(self, probabilities: Sequence[float]) -> tuple[float, ...]:
        """Return the probabilities of `values` from those of `lines`: even within a bin."""
        of_line = dict(zip(self.lines(), probabilities, strict=True))
        sizes = Counter(self._line_of.values())
        return tuple(of_line[line] / sizes[line] for line in self._line_of.values())

    def gathered(self, probabilities: Sequence[float]) -> tuple[float, ...]:
        """Return the probabilities of `lines` from those of `values`: the inverse of `spread`."""
        of_line = dict.fromkeys(self._line_of.values(), 0.0)
        for line, probability in zip(self._line_of.values(), probabilities, strict=True):
            of_line[line] += probability
        return tuple(of_line.values())

    @cached_property
    def _written(self) -> re.Pattern[str]:
        heading = rf"{_LINE_START}{KEYWORDS[self.task]}{_MARKUP}[:=]?{_MARKUP}"
        options = sorted((re.escape(str(value)) for value in self.values), key=len, reverse=True)
        written = _WRITTEN.get(self.task) or f"({'|'.join(options)})()"
        body = rf"{written}{_END}[*_`.]*"
        return re.compile(heading + body, re.IGNORECASE | re.MULTILINE)

    def normalise(self, verdict: object) -> Verdict | None:
        """Return the scale's own value that equals `verdict` (7 for 7.0), or None."""
        is_verdict = isinstance(verdict, int | float | str) and not isinstance(verdict, bool)
        if not is_verdict or verdict not in self._line_of:
            return None
        return next(value for value in self.values if value == verdict)

    def line(self, verdict: Verdict) -> str:
        """Return the verdict's line, with its line end; raises UserError if it is off the scale."""
        if verdict not in self._line_of:
            raise UserError(f"verdict {verdict!r} is off the scale {self.name}: {self.says()}")
        return self._line_of[verdict]

    def lines(self) -> tuple[str, ...]:
        """Return the lines of all verdicts, in the order of `values`; with a grid, its lines."""
        return tuple(dict.fromkeys(self._line_of.values()))

    def form(self, order: Sequence[str] = ()) -> str:
        """Show how a verdict's line is written: "Score: N/10", "Winner: A, B or tie".

        `order` has the verdicts in another order than that of `values`.
        """
        if self.task == "score":
            return f"{KEYWORDS[self.task]}: N/{_plain(self.values[-1])}"
        *most, last = order or map(str, self.values)
        return f"{KEYWORDS[self.task]}: {', '.join(most)} or {last}"

    def says(self) -> str:
        """Name the allowed verdicts in a few words, for messages."""
        if len(self.values) <= 3 or self.task != "score":
            more = f" and {len(self.values) - MAX_NAMED} more"
            named = ", ".join(map(str, self.values[:MAX_NAMED]))
            return f"allowed are {named}{more if len(self.values) > MAX_NAMED else ''}"
        step = Decimal(str(self.values[1])) - Decimal(str(self.values[0]))
        return f"allowed are {self.values[0]} to {self.values[-1]} in steps of {_plain(step)}"

    def parse(self, answer: str) -> Verdict | None:
        """Read a model's answer: its first line must be an allowed verdict, to the letter."""
        return self._value_of.get(answer.partition("\n")[0])

    def read(self, answer: str) -> ParsedAnswer | None:
        """Read a person's answer: the verdict may start any line, in any case and spacing.

        What is neither verdict nor issues becomes feedback. None where no verdict, one off the
        scale, or two different ones stand in it; `why_unreadable` then says which.
        """
        verdicts = {self._value(*match.groups()) for match in self._written.finditer(answer)}
        if len(verdicts) != 1 or None in verdicts:
            return None
        (verdict,) = verdicts
        assert verdict is not None
        issues, feedback = read_comments(self._written.sub("", answer))
        return ParsedAnswer(verdict, tuple(issues), feedback)

    def why_unreadable(self, answer: str) -> str:
        """Return in a few words why `read` returns None for this answer."""
        matches = list(self._written.finditer(answer))
        if not matches:
            return f'no line like "{self.form()}" in it'
        shown = [f'"{match.group(0).strip()}"' for match in matches]
        for text, match in zip(shown, matches, strict=True):
            if self._value(*match.groups()) is None:
                return f"{text} is off the scale {self.name} ({self.says()})"
        return f"it gives two verdicts, {' and '.join(shown[:2])}"

    def _value(self, written: str, top: str | None) -> Verdict | None:
        if self.task != "score":
            return next(value for value in self.values if str(value).lower() == written.lower())
        if top and Decimal(top.replace(",", ".")) != Decimal(_plain(self.values[-1])):
            return None
        return self.normalise(_number(Decimal(written.replace(",", "."))))


def format_answer(
    scale: Scale, verdict: Verdict, issues: Sequence[str] = (), feedback: str = ""
) -> str:
    """Write an answer: the verdict's line, then issues and feedback where there are any.

    No line end follows the last comment. Raises UserError for a verdict off the scale.
    """
    parts = []
    if issues:
        parts.append("Issues: " + "; ".join(" ".join(issue.split()) for issue in issues))
    if feedback.strip():
        parts.append("Feedback: " + feedback.strip())
    return scale.line(verdict) + "\n".join(parts)


def read_comments(text: str) -> tuple[list[str], str]:
    """Split an answer without its verdict line into its issues and its feedback."""
    issues: list[str] = []
    rest: list[str] = []
    for line in text.splitlines():
        heading = _HEADING.match(line)
        body = line[heading.end() :] if heading else line
        if heading and heading.group(1).lower() == "issues":
            issues += [part.strip() for part in body.split(";") if part.strip()]
        else:
            rest.append(body.strip())
    return issues, "\n".join(rest).strip()


def _options(name: str) -> tuple[str, ...]:
    """Read the options in the name of a scale; raises UserError for what are none."""
    options: Any = None
    with suppress(ValueError, RecursionError):
        options = json.loads(name.removeprefix(CHOICE))
    are_texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if are_texts and len(set(options)) == len(options) >= 2:
        return tuple(options)
    remedy = f'use {CHOICE} and a JSON list of two or more different texts, {CHOICE}["a", "b"]'
    raise UserError(f'"{name}" is not a scale: {remedy}')


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _plain(value: Verdict | Decimal) -> str:
    """Write a number without exponent or trailing zeros."""
    return f"{Decimal(str(value)).normalize():f}"
