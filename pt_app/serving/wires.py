"""What a server reads and writes on the wires of decision models (core/decision_wires.py).

Each format reads a request into a state and questions, and writes the judgements as its answers.
What a judge knows beyond them is in `x_judge`, which all clients take. The models are for reading
alone: they take more than our own client writes (structured instructions, map and list forms,
messages), and its readings of answers take more than is written here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictStr

from pt_app.core.decision_wires import TRUE_FALSE, Json, WireQuestion
from pt_app.core.http_server import RefusedError
from pt_app.core.questions import MAX_OPTIONS
from pt_app.judge import Judgement
from pt_app.serving.questions import ServedRow, text_of

MAX_QUESTIONS = 400
DEFAULT = "jev-latest"  # the model that TypeSafe's clients name by default
Text = str | dict[str, Json] | list[Json]
Judged = tuple[ServedRow, Judgement]


class Noul(BaseModel):
    """A yes/no question of System One."""

    type: Literal["noul"]
    instructions: Text | None = None
    criteria: dict[Literal["true", "false"], Text | None] | None = None

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        about = self.criteria or {}
        described = text_of(about.get("true") or ""), text_of(about.get("false") or "")
        options = tuple(zip(TRUE_FALSE, described, strict=True))
        return WireQuestion("bool", text_of(self.instructions or ""), options)

    def answer(self, chances: Sequence[float]) -> dict[str, object]:
        """Return the answer's fields."""
        return {"type": "noul", "noul": chances[0]}


class Choice(BaseModel):
    """A choice of System One."""

    type: Literal["choice"]
    instructions: Text | None = None
    criteria: dict[str, Text | None] = Field(min_length=2, max_length=MAX_OPTIONS)

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        options = tuple((name, text_of(about or "")) for name, about in self.criteria.items())
        return WireQuestion("choice", text_of(self.instructions or ""), options)

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

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        levels = tuple((text_of(level), "") for level in self.criteria)
        return WireQuestion("score", text_of(self.instructions or ""), levels)

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

    def wire_questions(self) -> list[WireQuestion]:
        """Return the questions, in order."""
        return [replace(each.question(), key=name) for name, each in self.questions.items()]

    def response(self, model: str, judged: Sequence[Judged]) -> dict[str, Any]:
        """Return the body of the response."""
        pairs = zip(self.questions.items(), judged, strict=True)
        written = {name: _answer(each, own) for (name, each), own in pairs}
        usage = {"input_tokens": _tokens(judged), "output_tokens": 0}
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

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        options = tuple((name, "") for name in TRUE_FALSE)
        return WireQuestion("bool", _joined(self.instructions), options)

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

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        options = tuple((text_of(own.value), own.description or "") for own in self.choices)
        return WireQuestion("choice", _joined(self.instructions), options)

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

    def question(self) -> WireQuestion:
        """Return the question of either wire."""
        # The AI SDK numbers the levels, and puts the text of each into its description.
        levels = tuple((level.label, level.description or "") for level in self.levels)
        if all(name == str(i) and text for i, (name, text) in enumerate(levels)):
            levels = tuple((text, "") for _, text in levels)
        return WireQuestion("score", _joined(self.instructions), levels)

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

    def wire_questions(self) -> list[WireQuestion]:
        """Return the questions, in order."""
        return [replace(each.question(), key=i) for i, each in enumerate(self.questions)]

    def response(self, model: str, judged: Sequence[Judged]) -> dict[str, Any]:
        """Return the body of the response."""
        pairs = zip(self.questions, judged, strict=True)
        written = [{"name": each.name} | _answer(each, own) for each, own in pairs]
        usage: dict[str, object] = {"input_tokens": (tokens := _tokens(judged))}
        usage |= {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
        usage |= {"output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}}
        return {"model": model, "answers": written, "usage": usage | {"total_tokens": tokens}}


Request = SystemOne | Decisions
AnyQuestion = Noul | Choice | Score | Predicate | ListChoice | ListScore


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

    1 - the mean distance to the most likely level / that of equally likely levels to their middle.
    """
    top, middle = max(range(len(chances)), key=chances.__getitem__), (len(chances) - 1) / 2
    spread = sum(chance * abs(level - top) for level, chance in enumerate(chances))
    even = sum(abs(level - middle) for level in range(len(chances))) / len(chances)
    return max(0.0, 1 - spread / even)


def _answer(question: AnyQuestion, judged: Judged) -> dict[str, object]:
    """Return the answer to a question: the fields of its wire, and `x_judge`."""
    row, judgement = judged
    fitted = judgement.calibrated is not None
    extra: dict[str, object] = {"trained_question": row.trained, "calibrated": fitted}
    extra |= {"abstain": judgement.abstain, "verdict_mass": judgement.verdict_mass}
    if row.trained:
        names = ("verdict", "greedy", "expected", "confidence", "consistent")
        extra |= {name: getattr(judgement, name) for name in names}
        extra["accuracy"] = judgement.calibrated
    return question.answer(row.probabilities(judgement)) | {"x_judge": extra}


def _tokens(judged: Sequence[Judged]) -> int:
    return sum(judgement.tokens for _, judgement in judged)


def _values(parts: Parts | None) -> list[Json]:
    return [part.value() for part in parts] if isinstance(parts, list) else [parts or ""]


def _joined(parts: Parts | None) -> str:
    return "\n".join(map(text_of, _values(parts)))
