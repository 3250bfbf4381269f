"""Questions that a dataset declares: each has words and its own scale of verdicts.

A row and a question are one example: its prompt begins with what is asked about, the state, and
ends with the question. The names of questions are not part of any prompt.
"""

import json
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pt_app.core.errors import UserError
from pt_app.core.verdicts import MAX_VALUES, YES_NO, Scale, Verdict
from pt_app.core.words import is_unicode

MAX_OPTIONS = 255
TRUTH = ("true", "false", *YES_NO)
_JOINS = re.compile(r",|\bor\b")  # a name in which the line of the options would seem to go on
# Names of questions are names of folders and columns.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
# What each type of question may declare beside its instructions.
OWN = {"bool": {"criteria"}, "choice": {"options"}, "score": {"levels", "scale", "legend"}}


class Declared(BaseModel):
    """A question as dataset.json declares it.

    Attributes:
        type: bool, choice or score.
        instructions: the question itself.
        criteria: of a bool, what "true" and "false" mean.
        options: of a choice, a list of names, or names with what they mean.
        levels: of a score, what each of 0, 1, ... means.
        scale: of a score, in place of levels, such as "0-10".
        legend: what some numbers of that scale mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["bool", "choice", "score"]
    instructions: str
    criteria: dict[Literal["true", "false"], str] | None = None
    options: list[str] | dict[str, str | None] | None = None
    levels: list[str | None] | None = None
    scale: str | None = None
    legend: dict[str, str] | None = None


@dataclass(frozen=True)
class Question:
    """A question: its words, and the scale of its verdicts.

    To a judge two questions are the same if they have one `content`: it sees no name, and answers
    by the options and not by their order. `==` also wants the name and the declaration.

    Attributes:
        name: the key of its labels and answers.
        declared: its declaration.
        scale: its verdicts; of a bool, yes and no.
        described: verdicts with what they mean, in the order in which a prompt lists them.
    """

    name: str
    declared: Declared
    scale: Scale
    described: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @staticmethod
    def of(name: str, declared: Declared, where: str) -> "Question":
        """Check a declaration.

        Raises:
            UserError: for what is wrong with it; `where` names it in the message.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            remedy = "use letters, digits, _ . and -, at most 100, not . or - first"
            raise UserError(f'{where}: "{name}" is no name of a question: {remedy}')
        if not is_unicode(json.dumps(declared.model_dump(), ensure_ascii=False)):
            problem = "it holds half of a surrogate pair, which is no character: remove it"
            raise UserError(f"{where}: {problem}")
        given = declared.model_dump(exclude={"type", "instructions"}, exclude_none=True)
        if foreign := sorted(given.keys() - OWN[declared.type]):
            raise UserError(f"{where}.{foreign[0]}: a {declared.type} question has none: remove it")
        if not declared.instructions.strip():
            raise UserError(f"{where}.instructions: they are empty: write what is asked")
        make = {"bool": _bool, "choice": _choice, "score": _score}[declared.type]
        return Question(name, declared, *make(declared, where))

    @property
    def type(self) -> str:
        """bool, choice or score."""
        return self.declared.type

    @property
    def text(self) -> str:
        """The question with a sentence on the form of its answer, as earlier templates ask it."""
        low, high = self.scale.values[0], self.scale.values[-1]
        ends = f", where N is from {low} to {high}" if self.type == "score" else ""
        return f'{self._listed}\nAnswer "{self._form}"{ends}.'

    @property
    def brief(self) -> str:
        """The question as a prompt asks it, behind the state.

        Its last line is the form of the answer, with the options where they need no line of their
        own. A sentence about the form costs 3 to 7 tokens more (of SmolLM2), four options with a
        line each cost 8 more, and each further question about a state pays that again.
        """
        if self.type == "score":
            first, *_, last = self.scale.lines()
            return f"{self._listed}\n{first.strip()} to {last.split()[-1]}"
        names = [name for name, _ in self.described]
        if any(words for _, words in self.described) or any(map(_JOINS.search, names)):
            return f"{self._listed}\n{self._form}"
        return f"{self._words}\n{self.scale.form(names)}"

    @property
    def _words(self) -> str:
        return f"Question: {self.declared.instructions.strip()}"

    @property
    def _listed(self) -> str:
        dash = "" if self.type == "score" else "- "
        lines = [
            f"{dash}{name}: {words}" if words else dash + name for name, words in self.described
        ]
        return "\n".join([self._words, *lines])

    @property
    def _form(self) -> str:
        # A choice lists its options above, in any order.
        return "Answer: OPTION" if self.type == "choice" else self.scale.form()

    @property
    def content(self) -> object:
        """What is equal for the same question: all but its name and the order of options."""
        words = self.declared.instructions.strip()
        return self.type, words, frozenset(self.described), frozenset(self.scale.values)

    def shuffled(self, seed: str) -> "Question":
        """List the options of a choice in an order of the seed; the scale stays as it is."""
        if self.type != "choice":
            return self
        order = random.Random(seed).sample(self.described, len(self.described))
        return replace(self, described=tuple(order))

    def backwards(self) -> "Question":
        """List the options in the reverse order; the scale stays as it is."""
        return replace(self, described=self.described[::-1])

    def verdict(self, cell: object) -> Verdict | None:
        """Read a label, as JSON or as text: true, "refund", 7, "7"; None if it is none."""
        if self.type == "bool":
            text = str(cell).strip().lower() if isinstance(cell, str | bool) else ""
            return {"true": "yes", "false": "no"}.get(text, text) if text in TRUTH else None
        if self.type == "choice" and isinstance(cell, int) and not isinstance(cell, bool):
            return self.scale.normalise(str(cell))  # JSON 1 for the option "1"
        if self.type == "score" and isinstance(cell, str):
            try:
                cell = float(cell)
            except ValueError:
                return None
        return self.scale.normalise(cell)

    def typed(self, verdict: Verdict | None) -> bool | Verdict | None:
        """Return a verdict as the type of the question has it: true for yes."""
        return verdict == "yes" if self.type == "bool" and verdict is not None else verdict

    def says(self) -> str:
        """Name the allowed labels in a few words, for messages."""
        return "allowed are true, false" if self.type == "bool" else self.scale.says()


Asked = Scale | tuple[Question, ...]
"""What a judge is asked: verdicts on one scale, or questions with a scale each."""


def _bool(declared: Declared, where: str) -> tuple[Scale, tuple[tuple[str, str], ...]]:
    words = declared.criteria or {}
    both = zip(YES_NO, (words.get("true", ""), words.get("false", "")), strict=True)
    return Scale.from_name("bool"), tuple(both) if words else ()


def _choice(declared: Declared, where: str) -> tuple[Scale, tuple[tuple[str, str], ...]]:
    where = f"{where}.options"
    listed = declared.options or {}
    words = listed if isinstance(listed, dict) else dict.fromkeys(listed)
    if not 2 <= len(listed) <= MAX_OPTIONS:
        raise UserError(f"{where}: {len(listed)} options: give 2 to {MAX_OPTIONS}")
    # Two forms of one letter (NFC, NFD) look alike, and most tokenizers make them equal.
    names = Counter(unicodedata.normalize("NFC", name) for name in listed)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f'{where}: two options are named "{twice[0]}": give each its own name')
    for name in listed:
        if not name.strip():
            raise UserError(f"{where}: an option has no name: name it or remove it")
        if name != " ".join(name.split()):
            remedy = "write it on one line without blanks around it"
            shown = json.dumps(name, ensure_ascii=False)
            raise UserError(f"{where}: {shown} cannot be the name of an option: {remedy}")
    return Scale.of_options(list(words)), tuple((name, words[name] or "") for name in words)


def _score(declared: Declared, where: str) -> tuple[Scale, tuple[tuple[str, str], ...]]:
    if (declared.levels is None) == (declared.scale is None):
        raise UserError(f"{where}: give either levels, a text for each, or a scale such as 0-10")
    if declared.levels is not None:
        count = len(declared.levels)
        if count < 2:
            raise UserError(f"{where}.levels: {count} level is no scale: give 2 or more")
        if count > MAX_VALUES:
            raise UserError(f"{where}.levels: {count:,} levels: give {MAX_VALUES:,} at most")
        scale = Scale.from_name(f"0-{count - 1}")
        named = zip(map(str, scale.values), declared.levels, strict=True)
        return scale, tuple((name, words or "") for name, words in named if any(declared.levels))
    try:
        scale = Scale.from_name(declared.scale or "")
    except UserError as error:
        raise UserError(f"{where}.scale: {error}") from error
    if scale.task != "score":
        raise UserError(f"{where}.scale: {declared.scale} has no numbers: use low-high (0-10)")
    names = list(map(str, scale.values))
    for name in declared.legend or {}:
        if name not in names:
            raise UserError(f'{where}.legend: "{name}" is off the scale: {scale.says()}')
    legend = declared.legend or {}
    return scale, tuple((name, legend[name]) for name in names if name in legend)


def questions_of(declared: Mapping[str, Declared], where: str) -> tuple[Question, ...]:
    """Check declared questions, in their order; `where` names their place, for messages.

    Raises:
        UserError: if there is none, two have names that differ in case alone, or one is wrong.
    """
    if not declared:
        raise UserError(f"{where}: there is no question: declare one or more")
    folded: dict[str, str] = {}
    for name in declared:
        if (other := folded.setdefault(str(name).lower(), name)) != name:
            problem = f'"{other}" and "{name}" are one folder on some disks'
            raise UserError(f"{where}: {problem}: rename one")
    return tuple(Question.of(name, each, f"{where}.{name}") for name, each in declared.items())


def questions_in(asked: Asked) -> tuple[Question, ...]:
    """Return the questions that a judge is asked; none if it has a scale of its own."""
    return () if isinstance(asked, Scale) else asked


def scales_of(asked: Asked) -> list[tuple[str, Scale]]:
    """Return name and scale of each question; ("", scale) where there is one scale."""
    if isinstance(asked, Scale):
        return [("", asked)]
    return [(question.name, question.scale) for question in asked]


def only_scale(asked: Asked) -> Scale:
    """Return the scale of all verdicts.

    Raises:
        UserError: if there are several questions, so that none is that of all.
    """
    if isinstance(asked, Scale):
        return asked
    if len(asked) != 1:
        names = ", ".join(question.name for question in asked)
        raise UserError(
            f"this takes one question, and there are {len(asked)} ({names}): use `judge score`, "
            "`judge eval` or Judge.ask, or train a judge on one of them (judge train --questions)"
        )
    return asked[0].scale


def per_question(
    text: str, known: Sequence[str], flag: str, above: bool = True
) -> dict[str, float]:
    """Read numbers of questions, such as "tone=2,offer=0.5".

    Args:
        text: what the flag says.
        known: the names of the questions.
        flag: its name, for messages.
        above: whether a number must be above 0, or may be 0.

    Raises:
        UserError: for another question, and what is no such number.
    """
    numbers: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        if name not in known:
            use = f"use {', '.join(known)}" if known else "there are no questions"
            raise UserError(f'{flag} {text}: there is no question "{name}": {use}')
        if name in numbers:
            raise UserError(f'{flag} {text}: "{name}" is given twice: name each question once')
        with suppress(ValueError):
            numbers[name] = float(number)
        if not 0 <= numbers.get(name, -1.0) < math.inf or (above and not numbers[name]):
            least = "above 0" if above else "of 0 or more"
            raise UserError(f'{flag} {text}: "{number}" is no number {least}')
    return numbers


def chosen(questions: Sequence[Question], names: Sequence[str], where: str) -> tuple[Question, ...]:
    """Return the questions of these names, in their declared order; all without names.

    Raises:
        UserError: for a name that is not declared.
    """
    known = [question.name for question in questions]
    for name in names:
        if name not in known:
            raise UserError(f'{where}: there is no question "{name}": use {", ".join(known)}')
    return tuple(question for question in questions if not names or question.name in names)
