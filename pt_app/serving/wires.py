"""The wire formats of decision models: System One (TypeSafe and others) and OpenAI's Decisions.

Each reads a request into a state and questions, and writes the judgements as its answers. What a
judge knows beyond them is in `x_judge`, which all clients take.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, StrictBool, StrictStr

from pt_app.core.http_server import RefusedError
from pt_app.core.questions import MAX_OPTIONS
from pt_app.judge import Judgement
from pt_app.serving.questions import Asked, Json, Question, text_of

MAX_QUESTIONS = 400
DEFAULT = "jev-latest"  # the model that TypeSafe's clients name by default
Text = str | dict[str, Json] | list[Json]
Answer = tuple[Asked, Judgement]


class Wire(Protocol):
    """A request in one of the formats."""

    model: str

    def state(self) -> Json:
        """Return what is asked about."""

    def asked(self) -> list[Question]:
        """Return the questions, in order."""

    def answer(self, model: str, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of the response."""


class Noul(BaseModel):
    """A yes/no question of System One."""

    type: Literal["noul"]
    instructions: Text | None = None
    criteria: dict[Literal["true", "false"], Text | None] | None = None

    def question(self) -> Question:
        """Return it as a judge is asked."""
        about = self.criteria or {}
        described = text_of(about.get("true") or ""), text_of(about.get("false") or "")
        return Question("yes_no", text_of(self.instructions or ""), ("PASS", "FAIL"), described)

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        return {"type": "noul", "noul": chances[0]}


class Choice(BaseModel):
    """A choice of System One."""

    type: Literal["choice"]
    instructions: Text | None = None
    criteria: dict[str, Text | None] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> Question:
        """Return it as a judge is asked."""
        described = tuple(text_of(about or "") for about in self.criteria.values())
        return Question("choice", text_of(self.instructions or ""), tuple(self.criteria), described)

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        of = dict(zip(self.criteria, chances, strict=True))
        return {"type": "choice", "choice": max(of, key=of.__getitem__), "probabilities": of} | {
            "confidence": concentration(chances)
        }


class Score(BaseModel):
    """A score of System One; more than its 10 levels are answered too."""

    type: Literal["score"]
    instructions: Text | None = None
    criteria: list[Text] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> Question:
        """Return it as a judge is asked."""
        levels = tuple(map(text_of, self.criteria))
        return Question("score", text_of(self.instructions or ""), levels, ("",) * len(levels))

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        fields = {"type": "score", "score": mean(chances), "confidence": nearness(chances)}
        legend = {str(i): text_of(level) for i, level in enumerate(self.criteria)}
        return fields | {"legend": legend, "probabilities": dict(zip(legend, chances, strict=True))}


class SystemOne(BaseModel):
    """A request of System One: questions by name."""

    model: str = DEFAULT
    content: Text = Field(alias="state")
    questions: dict[str, Annotated[Noul | Choice | Score, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MAX_QUESTIONS
    )

    def state(self) -> Json:
        """Return what is asked about."""
        return self.content

    def asked(self) -> list[Question]:
        """Return the questions, in order."""
        return [question.question() for question in self.questions.values()]

    def answer(self, model: str, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of the response."""
        pairs = zip(self.questions.items(), answers, strict=True)
        written = {name: _extended(asked.answer(_chances(a)), a) for (name, asked), a in pairs}
        usage = {"input_tokens": _tokens(answers), "output_tokens": 0}
        return {"model": model, "answers": written, "usage": usage}


class MapDecisions(SystemOne):
    """The same with OpenAI's name for the state, as Gemini and others have it."""

    content: Text = Field(alias="input")


class Part(BaseModel, extra="allow"):
    """A part of a message; images are not read."""

    type: str
    text: str | None = None
    data: Json = None

    def value(self) -> Json:
        """Return its text or data."""
        if "image" in self.type:
            raise RefusedError("images are not read here", 422, "input")
        return self.data if self.type == "input_json" else self.text or ""


Parts = str | list[Part]


class Item(BaseModel, extra="allow"):
    """A message, or a tool's call or output."""

    role: str | None = None
    content: Parts | None = None

    def values(self) -> list[Json]:
        """Return its texts and data."""
        if self.role is None or self.content is None:
            return [text_of(self.model_dump(exclude_none=True))]
        return _values(self.content)


class Predicate(BaseModel):
    """A statement of OpenAI's Decisions that is true or not."""

    type: Literal["predicate"]
    name: str | None = None
    instructions: Parts | None = None

    def question(self) -> Question:
        """Return it as a judge is asked."""
        return Question("yes_no", _joined(self.instructions), ("PASS", "FAIL"), ("", ""))

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        return {"type": "predicate", "probability": chances[0]}


class Option(BaseModel):
    """An option; a text and a boolean that read alike are two."""

    value: StrictStr | StrictBool
    description: str | None = None


class ListChoice(BaseModel):
    """A choice of OpenAI's Decisions."""

    type: Literal["choice"]
    name: str | None = None
    instructions: Parts | None = None
    choices: list[Option] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> Question:
        """Return it as a judge is asked."""
        names = tuple(text_of(option.value) for option in self.choices)
        described = tuple(option.description or "" for option in self.choices)
        return Question("choice", _joined(self.instructions), names, described)

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        top = max(range(len(chances)), key=chances.__getitem__)
        fields = {"type": "choice", "choice": self.choices[top].value}
        options = zip(self.choices, chances, strict=True)
        listed = [{"value": option.value, "probability": p} for option, p in options]
        return fields | {"confidence": concentration(chances), "probabilities": listed}


class Level(BaseModel):
    """A level of a score."""

    label: str
    description: str | None = None


class ListScore(BaseModel):
    """A score of OpenAI's Decisions."""

    type: Literal["score"]
    name: str | None = None
    instructions: Parts | None = None
    levels: list[Level] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> Question:
        """Return it as a judge is asked."""
        # The AI SDK numbers the levels, and puts the text of each into its description.
        numbered = all(level.label == str(i) for i, level in enumerate(self.levels))
        if numbered and all(level.description for level in self.levels):
            texts = tuple(level.description or "" for level in self.levels)
            return Question("score", _joined(self.instructions), texts, ("",) * len(texts))
        names = tuple(level.label for level in self.levels)
        described = tuple(level.description or "" for level in self.levels)
        return Question("score", _joined(self.instructions), names, described)

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        levels = enumerate(zip(self.levels, chances, strict=True))
        listed = [{"value": i, "label": each.label, "probability": p} for i, (each, p) in levels]
        fields = {"type": "score", "score": mean(chances), "confidence": nearness(chances)}
        return fields | {"probabilities": listed}


class Decisions(BaseModel):
    """A request of OpenAI's Decisions: a list of questions."""

    model: str
    input: str | list[Item]
    questions: list[Annotated[Predicate | ListChoice | ListScore, Field(discriminator="type")]] = (
        Field(min_length=1, max_length=MAX_QUESTIONS)
    )

    def state(self) -> Json:
        """Return what is asked about: the one JSON object in the input, else all of its texts."""
        if isinstance(self.input, str):
            return self.input
        values = [value for item in self.input for value in item.values()]
        objects = [value for value in values if isinstance(value, dict)]
        return objects[0] if len(objects) == 1 else "\n".join(map(text_of, values))

    def asked(self) -> list[Question]:
        """Return the questions, in order."""
        return [question.question() for question in self.questions]

    def answer(self, model: str, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the body of the response."""
        pairs = zip(self.questions, answers, strict=True)
        written = [
            _extended({"name": asked.name} | asked.answer(_chances(a)), a) for asked, a in pairs
        ]
        usage: dict[str, object] = {"input_tokens": (tokens := _tokens(answers))}
        usage |= {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
        usage |= {"output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}}
        return {"model": model, "answers": written, "usage": usage | {"total_tokens": tokens}}


def decisions(content: Mapping[str, Any]) -> type[SystemOne] | type[Decisions]:
    """Return which form a request to /v1/decisions has: its questions are a map or a list."""
    return MapDecisions if isinstance(content.get("questions"), dict) else Decisions


def mean(chances: Sequence[float]) -> float:
    """Return the mean level, counted from 0."""
    return sum(level * chance for level, chance in enumerate(chances))


def concentration(chances: Sequence[float]) -> float:
    """Return the confidence in a choice as TypeSafe defines it: 0 if all are equal, 1 if one is."""
    return (max(chances) - 1 / len(chances)) / (1 - 1 / len(chances))


def nearness(chances: Sequence[float]) -> float:
    """Return the confidence in a score as TypeSafe defines it.

    The mean distance to the most likely level, over that of all levels to their middle.
    """
    top, middle = max(range(len(chances)), key=chances.__getitem__), (len(chances) - 1) / 2
    spread = sum(chance * abs(level - top) for level, chance in enumerate(chances))
    even = sum(abs(level - middle) for level in range(len(chances))) / len(chances)
    return max(0.0, 1 - spread / even)


def _extended(fields: Mapping[str, object], answer: Answer) -> dict[str, object]:
    asked, judgement = answer
    fitted = judgement.calibrated is not None
    extra: dict[str, object] = {"trained_question": asked.trained, "calibrated": fitted}
    extra |= {"abstain": judgement.abstain, "verdict_mass": judgement.verdict_mass}
    if asked.trained:
        names = ("verdict", "greedy", "expected", "confidence", "consistent")
        extra |= {name: getattr(judgement, name) for name in names}
        extra["accuracy"] = judgement.calibrated
    return {**fields, "x_judge": extra}


def _chances(answer: Answer) -> list[float]:
    asked, judgement = answer
    return asked.probabilities(judgement)


def _tokens(answers: Sequence[Answer]) -> int:
    return sum(judgement.tokens for _, judgement in answers)


def _values(parts: Parts | None) -> list[Json]:
    return [part.value() for part in parts] if isinstance(parts, list) else [parts or ""]


def _joined(parts: Parts | None) -> str:
    return "\n".join(map(text_of, _values(parts)))
