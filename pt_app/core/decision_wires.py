"""The wires of decision models: a state and typed questions out, the probability of each option in.

OpenAI's Decisions takes a list of questions, System One (TypeSafe and others) a map of them. Here
is what client and server share, the question itself, and what a client writes and reads. What a
server reads and writes is in serving/wires.py, and is no mirror image of it: a client writes only
what every vendor takes, a server reads all that clients write.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pt_app.core.errors import UserError
from pt_app.core.questions import MAX_OPTIONS, Question
from pt_app.core.records import clipped
from pt_app.core.verdicts import Scale

Wire = Literal["openai", "systemone"]
WireType = Literal["bool", "choice", "score"]
ROUTES: Mapping[Wire, str] = {"openai": "decisions", "systemone": "systemone"}
TRUE_FALSE = ("true", "false")  # the options of a bool
MAX_LEVELS = 10  # of a score, for TypeSafe, LiteLLM and vLLM: a finer scale is asked as a choice
ROUNDING = 0.005  # by which each probability may be off: vendors round to two decimals
MAX_OFF = 0.1  # by which their sum may be off, however many they are
Json = Any  # a value that was read from JSON, or is written as it


@dataclass(frozen=True)
class WireQuestion:
    """A question as decision models take it, on whichever wire: without a name and a scale.

    Attributes:
        type: bool, choice or score; System One calls a bool a noul, OpenAI a predicate.
        instructions: what is asked.
        options: the possible answers in their order, each with what it means ("": as it says); of a
            bool these are true and false.
        key: its name or number in a request that was read, for messages.
    """

    type: WireType
    instructions: str
    options: tuple[tuple[str, str], ...]
    key: str | int = field(default="", compare=False)

    @staticmethod
    def of(scale: Scale, words: str, question: Question | None = None) -> "WireQuestion":
        """Return the question of a scale, in these words, or a declared one in its own.

        Raises:
            UserError: if the scale has more verdicts than a decision model takes options.
        """
        if (count := len(scale.values)) > MAX_OPTIONS:
            where = f"question {question.name}: " if question else ""
            limit = f"decision models take at most {MAX_OPTIONS} options"
            remedy = "remove the question from a copy of the data" if question else "do not ask one"
            problem = f"{where}the scale {scale.name} has {count} verdicts"
            raise UserError(f"{problem}, and {limit}: {remedy}, or label on a coarser scale")
        about = dict(question.described) if question else {}
        described = [about.get(str(value), "") for value in scale.values]
        words = question.declared.instructions if question else words
        if question and question.type == "bool":
            return WireQuestion("bool", words, tuple(zip(TRUE_FALSE, described, strict=True)))
        is_score = scale.task == "score" and count <= MAX_LEVELS
        options = tuple(zip(map(str, scale.values), described, strict=True))
        return WireQuestion("score" if is_score else "choice", words, options)

    @property
    def at(self) -> str:
        """Where it is in a request, for messages."""
        return f"questions.{clipped(str(self.key))}"

    @property
    def names(self) -> tuple[str, ...]:
        """The options without what they mean."""
        return tuple(name for name, _ in self.options)

    @property
    def descriptions(self) -> tuple[str, ...]:
        """What the options mean; "" for none."""
        return tuple(about for _, about in self.options)

    @property
    def content(self) -> object:
        """What is equal for the same question, whichever wire it was written on and read from.

        A wire may have no field for what options mean: such words are then in others.
        """
        if self.type == "bool":
            return self.type, self._with_criteria.strip()
        written = self.as_systemone()["criteria"]  # of a choice in any order
        return self.type, self.instructions.strip(), len(self.options), written

    @property
    def _with_criteria(self) -> str:
        lines = [f"{name}: {about}" for name, about in self.options if about]
        return "\n".join([self.instructions.strip(), *lines])

    def as_systemone(self) -> dict[str, Json]:
        """Write it for System One."""
        if self.type == "bool":
            criteria: Json = dict(self.options) if any(self.descriptions) else None
        elif self.type == "choice":
            criteria = {name: about or None for name, about in self.options}
        else:
            # The levels of a dataset are texts, whose numbers are their places.
            bare = self.names == tuple(map(str, range(len(self.options))))
            texts = bare and all(self.descriptions)
            criteria = [
                about if texts else f"{name}: {about}" if about else name
                for name, about in self.options
            ]
        fields = {"type": self.systemone_type, "instructions": self.instructions or None}
        fields["criteria"] = criteria
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def systemone_type(self) -> str:
        """Its type by System One's name."""
        return "noul" if self.type == "bool" else self.type

    def as_openai(self) -> dict[str, Json]:
        """Write it for OpenAI's Decisions, whose yes/no questions have no criteria of their own."""
        if self.type == "bool":
            return {"type": "predicate", "instructions": self._with_criteria}
        name, field = ("label", "levels") if self.type == "score" else ("value", "choices")
        listed = [
            {name: option} | ({"description": about} if about else {})
            for option, about in self.options
        ]
        return {"type": self.type, "instructions": self.instructions, field: listed}

    def chances(self, answer: Json) -> list[float]:
        """Return the probability of each option, of an answer on either wire; they sum to 1.

        Raises:
            ValueError: with what is wrong with it.
        """
        fields = answer if isinstance(answer, Mapping) else {}
        if fields.get("type") == "refusal":
            raise ValueError("refused")
        if self.type == "bool":
            yes = _chance(fields.get("noul", fields.get("probability")))
            return [yes, 1 - yes]
        listed = fields.get("probabilities")
        if isinstance(listed, list):  # of a score `value` is its place
            entries = [entry if isinstance(entry, Mapping) else {} for entry in listed]
            listed = {str(entry.get("value")): entry.get("probability") for entry in entries}
        if not isinstance(listed, Mapping):
            raise ValueError("no probabilities")
        places = tuple(map(str, range(len(self.options))))
        names = places if self.type == "score" else self.names
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


def request(
    wire: Wire, model: str, state: Json, asked: Mapping[str, WireQuestion]
) -> dict[str, Json]:
    """Write a request that asks questions, by name, about a state."""
    if wire == "systemone":
        questions: Json = {name: each.as_systemone() for name, each in asked.items()}
        return {"model": model, "state": state, "questions": questions}
    questions = [{"name": name, **each.as_openai()} for name, each in asked.items()]
    # Text is what every server of this wire reads; JSON parts of messages are OpenAI's alone.
    return {"model": model, "input": json.dumps(state, ensure_ascii=False), "questions": questions}


def answer_to(name: str, names: Sequence[str], answers: Json) -> Json:
    """Return the answer to one of the questions of a request; None if there is none."""
    if isinstance(answers, Mapping):
        return answers.get(name)
    return answers[names.index(name)] if len(answers) == len(names) else None


def _chance(number: Json) -> float:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 <= number <= 1:  # true of NaN, too
        raise ValueError("no probability" if number is None else "a number that is no probability")
    return float(number)
