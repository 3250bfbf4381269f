"""The wires of decision models: a state and typed questions out, the probability of each option in.

OpenAI's Decisions takes a list of questions, System One (TypeSafe and others) a map of them. What a
server answers on both is in docs/SERVING.md, what is asked in docs/EVIDENCE.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pt_app.core.errors import UserError
from pt_app.core.questions import MAX_OPTIONS, Question
from pt_app.core.verdicts import Scale

Wire = Literal["openai", "systemone"]
ROUTES: Mapping[Wire, str] = {"openai": "decisions", "systemone": "systemone"}
MAX_LEVELS = 10  # of a score, for TypeSafe, LiteLLM and vLLM: a finer scale is asked as a choice
ROUNDING = 0.005  # by which each probability may be off: vendors round to two decimals
MAX_OFF = 0.1  # by which their sum may be off, however many they are
Json = Any  # a value that was read from JSON, or is written as it


@dataclass(frozen=True)
class Decision:
    """A question about a state.

    Attributes:
        kind: bool, choice or score.
        instructions: what is asked.
        options: the verdicts of the scale, in its order, each with what it means ("": as it says).
    """

    kind: Literal["bool", "choice", "score"]
    instructions: str
    options: tuple[tuple[str, str], ...]

    @staticmethod
    def of(scale: Scale, words: str, question: Question | None = None) -> "Decision":
        """Return the question of a scale, in these words, or a declared one in its own.

        Raises:
            UserError: if the scale has more verdicts than a decision model takes options.
        """
        if (count := len(scale.values)) > MAX_OPTIONS:
            limit = f"decision models take at most {MAX_OPTIONS} options"
            raise UserError(f"the scale {scale.name} has {count} verdicts, and {limit}")
        about = dict(question.described) if question else {}
        options = tuple((str(value), about.get(str(value), "")) for value in scale.values)
        if question and question.type == "bool":
            return Decision("bool", question.declared.instructions, options)
        is_score = scale.task == "score" and count <= MAX_LEVELS
        words = question.declared.instructions if question else words
        return Decision("score" if is_score else "choice", words, options)

    def as_systemone(self) -> dict[str, Json]:
        """Write it for System One."""
        if self.kind == "bool":
            (_, yes), (_, no) = self.options
            criteria: Json = {"true": yes, "false": no} if yes or no else None
        elif self.kind == "choice":
            criteria = {name: about or None for name, about in self.options}
        else:
            # The levels of a dataset are texts, whose numbers are their places.
            bare = [name for name, _ in self.options] == [*map(str, range(len(self.options)))]
            texts = bare and all(about for _, about in self.options)
            criteria = [
                about if texts else f"{name}: {about}" if about else name
                for name, about in self.options
            ]
        kind = "noul" if self.kind == "bool" else self.kind
        fields = {"type": kind, "instructions": self.instructions, "criteria": criteria}
        return {name: value for name, value in fields.items() if value is not None}

    def as_openai(self) -> dict[str, Json]:
        """Write it for OpenAI's Decisions, whose yes/no questions have no criteria of their own."""
        if self.kind == "bool":
            both = zip(("true", "false"), self.options, strict=True)
            lines = [f"{truth}: {about}" for truth, (_, about) in both if about]
            return {"type": "predicate", "instructions": "\n".join([self.instructions, *lines])}
        name, field = ("label", "levels") if self.kind == "score" else ("value", "choices")
        listed = [
            {name: option} | ({"description": about} if about else {})
            for option, about in self.options
        ]
        return {"type": self.kind, "instructions": self.instructions, field: listed}

    def chances(self, answer: Json) -> list[float]:
        """Return the probability of each option, of an answer on either wire; they sum to 1.

        Raises:
            ValueError: with what is wrong with it.
        """
        fields = answer if isinstance(answer, Mapping) else {}
        if fields.get("type") == "refusal":
            raise ValueError("refused")
        if self.kind == "bool":
            yes = _chance(fields.get("noul", fields.get("probability")))
            return [yes, 1 - yes]
        listed = fields.get("probabilities")
        if isinstance(listed, list):  # of a score `value` is its place
            entries = [entry if isinstance(entry, Mapping) else {} for entry in listed]
            listed = {str(entry.get("value")): entry.get("probability") for entry in entries}
        if not isinstance(listed, Mapping):
            raise ValueError("no probabilities")
        names = [name for name, _ in self.options]
        if self.kind == "score":
            names = [*map(str, range(len(names)))]
        if sorted(listed) != sorted(names):
            raise ValueError("probabilities of other options than were asked")
        given = [_chance(listed[name]) for name in names]
        if abs((total := sum(given)) - 1) > min(MAX_OFF, ROUNDING * (len(given) + 1)):
            raise ValueError(f"probabilities that sum to {total:.3g}")
        return [chance / total for chance in given]


def route(url: str, wire: Wire) -> str:
    """Return where to post: the URL itself if it names a route, else that of the wire below it."""
    url = url.rstrip("/")
    return url if url.rpartition("/")[2] in ROUTES.values() else f"{url}/{ROUTES[wire]}"


def request(wire: Wire, model: str, state: Json, asked: Mapping[str, Decision]) -> dict[str, Json]:
    """Write a request that asks questions, by name, about a state."""
    if wire == "systemone":
        questions: Json = {name: decision.as_systemone() for name, decision in asked.items()}
        return {"model": model, "state": state, "questions": questions}
    questions = [{"name": name, **decision.as_openai()} for name, decision in asked.items()]
    # Text is what every server of this wire reads; JSON parts of messages are OpenAI's alone.
    return {"model": model, "input": json.dumps(state, ensure_ascii=False), "questions": questions}


def answer_to(name: str, names: Sequence[str], answers: Json) -> Json:
    """Return the answer to one of the questions of a request; None if there is none."""
    if isinstance(answers, Mapping):
        return answers.get(name)
    return answers[names.index(name)] if len(answers) == len(names) else None


def _chance(number: Json) -> float:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError("no probability" if number is None else "a number that is no probability")
    return float(number)
