"""One row of a dataset: its record, and how either shape on disk becomes one.

Every problem is a UserError that names file, row and field.
"""

import math
import numbers
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SkipValidation,
    TypeAdapter,
    ValidationError,
)
from pydantic.types import StrictFloat, StrictInt, StrictStr

from pt_app.core.errors import UserError
from pt_app.core.files import shown
from pt_app.core.questions import Asked, Question, only_scale
from pt_app.core.verdicts import Scale, Task, Verdict, format_answer
from pt_app.core.words import is_unicode

ROLES = ("system", "user", "assistant")
ONLY_READ = ("prompt", "system", "state", "question", "shares", "row", "where")  # ignored on disk
LARGEST = sys.float_info.max
MAX_SAID = 500


def as_name(value: object) -> object:
    """Write a number as the text of a name, "" for none; anything else is left as it is.

    Spreadsheets and databases number their rows, and pandas writes a column of such numbers as 1.0,
    2.0 and NaN where one is missing.
    """
    if isinstance(value, int):  # an integer may be larger than any float
        return str(value)
    if isinstance(value, numbers.Real) and not math.isnan(value):
        return str(math.floor(value)) if value % 1 == 0 else str(float(value))
    return "" if value is None or isinstance(value, numbers.Real) else value


Cells = Mapping[str, object]
"""A row as a file holds it: values by the names of fields."""

Name = Annotated[str, BeforeValidator(as_name)]


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True)
    role: str
    content: str


class Label(BaseModel):
    """What annotators, a teacher or the generator say about a candidate."""

    model_config = ConfigDict(frozen=True)
    verdict: StrictInt | StrictFloat | StrictStr
    issues: list[str] = []
    feedback: str = ""


class Annotation(BaseModel):
    """The label of one annotator; `rater` is a name, or the number of a column."""

    model_config = ConfigDict(frozen=True)
    rater: Name = ""
    verdict: StrictInt | StrictFloat | StrictStr


def _by_column(annotators: object) -> object:
    """Name the raters of bare verdicts by their places, 1 on; null is a rater who said nothing."""
    if not isinstance(annotators, list):
        return annotators
    return [
        label if isinstance(label, dict | Annotation) else {"rater": str(place), "verdict": label}
        for place, label in enumerate(annotators, start=1)
        if label is not None
    ]


class JudgeExample(BaseModel):
    """One row, whichever shape it had on disk.

    A chat row carries `prompt`, the user's turn as it was written, and `system` where it had one;
    a row of fields is laid out by a prompt template. `annotators` has the label of each of them,
    `meta` what else is known of the row (system, document, time). `errors` are the kinds of error
    known to be in the candidate, where a generator put them there. A row of a dataset that declares
    questions is an example for each `question`, about the same `state`; `shares` is the
    distribution of its labels over the values of the scale, if it has several, and `row` is the
    whole row as it was read. `where` is "file:row", for messages.
    """

    model_config = ConfigDict(frozen=True)
    id: Name = ""
    group: Name = ""
    task: Task | None = None
    source: str | None = None
    conversation: list[Turn] | None = None
    context: str | None = None
    reference: str | None = None
    candidate: str | None = None
    candidates: tuple[str, str] | None = None
    rubric: str | None = None
    label: Label | None = None
    annotators: Annotated[list[Annotation], BeforeValidator(_by_column)] = []
    errors: list[str] | None = None
    meta: dict[str, Any] = {}
    prompt: str | None = None
    system: str | None = None
    state: str | None = None
    question: SkipValidation[Question | None] = None
    shares: tuple[float, ...] = ()
    row: SkipValidation[Cells | None] = None
    where: str = ""

    @property
    def asks(self) -> str:
        """The name of its question; "" if the dataset declares none."""
        return self.question.name if self.question else ""

    def answer(self, scale: Scale) -> str | None:
        """Write the label as the answer to supervise; None where the row has no label."""
        if self.label is None:
            return None
        return format_answer(scale, self.label.verdict, self.label.issues, self.label.feedback)

    def as_row(self, scale: Asked) -> dict[str, Any]:
        """Return the row as it is written to disk, in the shape it was read from.

        The answer of a chat row is rewritten from its label, as training supervises it.
        """
        if self.row is not None:
            kept = {name: cell for name, cell in self.row.items() if name != "meta"}
            meta = {"meta": self.meta} if self.meta else {}
            return {**kept, "id": self.id, "group": self.group, **meta}
        if self.prompt is None:
            return self.model_dump(exclude={"where"}, exclude_defaults=True)
        answer = self.answer(only_scale(scale))
        turns = [("system", self.system), ("user", self.prompt), ("assistant", answer)]
        row: dict[str, Any] = {"id": self.id, "group": self.group}
        row["messages"] = [{"role": r, "content": text} for r, text in turns if text is not None]
        others = {"source": self.source, "translation": self.candidate, "meta": self.meta or None}
        return row | {name: value for name, value in others.items() if value is not None}


class ChatRow(BaseModel):
    """A row in the format of chat programs: turns, or one input and one output."""

    id: Name = ""
    group: Name = ""
    task: Task | None = None
    messages: list[Turn] | None = None
    input: str | None = None
    output: str | None = None
    source: str | None = None
    translation: str | None = None
    meta: dict[str, Any] = {}


class RowError(UserError):
    """A row that cannot be used; `field` names the field at fault."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Place:
    """The file and the number of a row, for messages."""

    file: Path
    row: int
    lines: bool

    def error(self, field: str, problem: str, remedy: str) -> RowError:
        """Return a UserError: what is wrong with a field of this row, and the remedy.

        Either may quote a cell, which may be of any length: it is cut to `MAX_SAID` characters.
        """
        said, remedy = clipped(problem, MAX_SAID), clipped(remedy, MAX_SAID)
        message = f"{self}{f', field {field}' if field else ''}: {said}: {remedy}"
        return RowError(message, field)

    def __str__(self) -> str:
        return f"{shown(self.file)}, {'line' if self.lines else 'row'} {self.row}"

    @property
    def stem(self) -> str:
        """The file name without its ending, from which ids are made."""
        return shown(self.file.stem)

    @property
    def where(self) -> str:
        return f"{shown(self.file.name)}:{self.row}"


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(model: type[_Model], value: Cells, place: Place) -> _Model:
    try:
        validated = model.model_validate(value)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise place.error(field, problem, "correct it") from error
    for field in model.model_fields.keys() & value.keys():
        if any(not is_unicode(text) for text in _texts(value[field])):
            problem = "it holds half of a surrogate pair, which is no character"
            raise place.error(field, problem, "remove it")
    return validated


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Name the field of the first problem, and the problem, in few words."""
    first = error.errors(include_url=False, include_context=False)[0]
    # A union's problem has the name of the branch that was tried: int, or list[str].
    types = re.compile(r"int|float|str|.*\[.*")
    names = [str(part) for part in first["loc"] if not types.fullmatch(str(part))]
    # Not in the words of pydantic, which name classes of Python.
    said = re.sub(r"^Value error, | or instance of \w+", "", first["msg"])
    return ".".join(names), said[0].lower() + said[1:]


_Kind = TypeVar("_Kind")


def checked(
    kind: type[_Kind], value: object, where: Path | str, remedy: str = "correct it"
) -> _Kind:
    """Return what a file holds as `kind`: a pydantic model, a dataclass, or a type of fields.

    Raises:
        UserError: for a field that is missing, unknown or of another type; it begins with `where`.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        field, problem = first_problem(error)
        at = f", field {field}" if field else ""
        raise UserError(f"{where}{at}: {problem}: {remedy}") from error


def example_of(value: Cells, place: Place, scale: Scale) -> JudgeExample:
    """Make one row's record; fields nobody knows are ignored.

    Raises UserError for a missing turn or field, a wrong type, a verdict that cannot be read or
    is off the scale, and another task than the scale's.
    """
    if value.get("task") not in (None, scale.task):
        problem = f"{value['task']}, but the dataset's is {scale.task}"
        raise place.error("task", problem, "keep one task in a folder, and name it in dataset.json")
    named = {"candidate", "candidates"} & value.keys()
    pair = ("input" in value or "output" in value) and not named
    return (_chat if pair or "messages" in value else _fields)(value, place, scale)


def unlabelled(value: Cells, place: Place, scale: Scale) -> JudgeExample:
    """Make the record of a row that is to be judged; a label that it has is not looked at.

    A pair may be in `candidate_a` and `candidate_b`; of a chat the user's turn is judged, and an
    answer that follows it is not looked at. Raises UserError as `example_of` does.
    """
    about_labels = ("label", "annotators", "errors", "meta", "candidate_a", "candidate_b")
    row = {name: cell for name, cell in value.items() if name not in about_labels}
    if "candidate_a" in value or "candidate_b" in value:
        row["candidates"] = [value.get("candidate_a"), value.get("candidate_b")]
    if "messages" not in row and not ("input" in row and "candidate" not in row):
        return _fields(row, place, scale)
    chat = _validate(ChatRow, row, place)
    system, user, _, _ = _turns(chat, place, labelled=False)
    return JudgeExample(id=chat.id, prompt=user, system=system, where=place.where)


def _fields(value: Cells, place: Place, scale: Scale) -> JudgeExample:
    # What only reading sets is not taken from the file.
    own = {k: v for k, v in value.items() if k not in ONLY_READ}
    row = _validate(JudgeExample, own, place)
    wanted = "candidates" if scale.task == "pairwise" else "candidate"
    if getattr(row, wanted) is None:
        remedy = f"a row of the task {scale.task} needs it (or messages, or input and output)"
        raise place.error(wanted, "the row has none", remedy)
    turns = "\n".join(turn.content for turn in row.conversation or ())
    if not _first_of(row.source, turns):
        raise place.error("source", "the row has none, and no conversation", "add one of the two")
    for number, label in enumerate(row.annotators):
        # An annotator may have given any number as a score, and else a verdict of the scale.
        if not _is_score(label.verdict, scale) and scale.normalise(label.verdict) is None:
            field = f"annotators.{number}.verdict"
            raise place.error(field, f"{label.verdict!r} is no verdict", scale.says())
    update: dict[str, object] = {"task": scale.task, "where": place.where}
    update["group"] = _first_of(row.group, row.source, turns)
    if row.label is not None:
        verdict = scale.normalise(row.label.verdict)
        if verdict is None:
            problem = f"{row.label.verdict!r} is off the scale {scale.name}"
            raise place.error("label.verdict", problem, scale.says())
        update["label"] = row.label.model_copy(update={"verdict": verdict})
    return row.model_copy(update=update)


def _is_score(verdict: Verdict, scale: Scale) -> bool:
    # An integer may be larger than any float.
    return scale.task == "score" and not isinstance(verdict, str) and abs(verdict) <= LARGEST


def _chat(value: Cells, place: Place, scale: Scale) -> JudgeExample:
    row = _validate(ChatRow, value, place)
    system, user, answer, field = _turns(row, place)
    read = scale.read(answer)
    if read is None:
        raise place.error(field, scale.why_unreadable(answer), f'write it as "{scale.form()}"')
    candidate = row.translation
    label = Label(verdict=read.verdict, issues=list(read.issues), feedback=read.feedback)
    group = _first_of(row.group, row.source, without_candidate(user, candidate), user)
    same = {"id": row.id, "source": row.source, "meta": row.meta, "task": scale.task}
    own = {"group": group, "candidate": candidate, "label": label, "prompt": user, "system": system}
    return JudgeExample.model_validate({**same, **own, "where": place.where})


def _turns(
    row: ChatRow, place: Place, *, labelled: bool = True
) -> tuple[str | None, str, str, str]:
    """Give system, user's turn, answer, and the name of the answer's field.

    The answer is "" where the row has none, which only a row that is `labelled` must have.
    """
    if row.messages is None:
        for name in ("input", "output") if labelled else ("input",):
            if getattr(row, name) is None:
                raise place.error(name, "the row has none", "a row needs input and output")
        return None, _not_empty(row.input or "", "input", place), row.output or "", "output"
    roles = [turn.role for turn in row.messages]
    for index, role in enumerate(roles):
        if role not in ROLES:
            field, problem = f"messages.{index}.role", f"unknown role {clipped(role)!r}"
            raise place.error(field, problem, f"use {', '.join(ROLES)}")
    for role in ROLES:
        count, needed = roles.count(role), role == "user" or (role == "assistant" and labelled)
        if count > 1 or (needed and not count):
            problem = f"{count or 'no'} {role} turn{'s' if count > 1 else ''}"
            remedy = (
                "a row needs one user turn and one assistant turn; "
                "a conversation to judge goes into the field conversation"
            )
            raise place.error("messages", problem, remedy)
    texts = {turn.role: turn.content for turn in row.messages}
    at = {role: f"messages.{index}.content" for index, role in enumerate(roles)}
    if "assistant" in roles and roles.index("assistant") < roles.index("user"):
        raise place.error("messages", "the assistant's turn comes first", "put it last")
    user = _not_empty(texts["user"], at["user"], place)
    return texts.get("system"), user, texts.get("assistant", ""), at.get("assistant", "")


def _not_empty(user: str, field: str, place: Place) -> str:
    if not user.strip():
        raise place.error(field, "the user's turn is empty", "write what is to be judged")
    return user


def without_candidate(user: str, candidate: str | None) -> str:
    """Return the user's turn without the last occurrence of the candidate in it."""
    before, _, after = user.rpartition(candidate) if candidate else ("", "", user)
    return before + after


def _first_of(*texts: str | None) -> str:
    """Return the first text that is not blank, as groups are compared; "" if none is."""
    return next(filter(None, (one_line(text or "") for text in texts)), "")


def clipped(text: str, longest: int = 60) -> str:
    """Return a text on one line, cut to `longest` characters."""
    line = one_line(text)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def one_line(text: str) -> str:
    """Join the words of `text` with single spaces, as groups are compared."""
    return " ".join(text.split())
