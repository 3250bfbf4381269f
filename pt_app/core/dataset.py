"""Reads and checks a dataset folder: judge_{train,val,test}.json, dataset.json, splits.json.

Every problem is a UserError with file, row and field; nothing is dropped or repaired silently.
"""

import difflib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from pt_app.core.errors import UserError
from pt_app.core.files import (
    AS_ROWS,
    json_lines,
    parse_json,
    read_json,
    read_text,
    refuse_constant,
    sha256_file,
)
from pt_app.core.leaks import find_leaks
from pt_app.core.questions import Asked, Declared, Question, only_scale, questions_in, questions_of
from pt_app.core.records import JudgeExample, Place, checked, clipped, example_of, one_line
from pt_app.core.results import RaterPair
from pt_app.core.settings import By
from pt_app.core.state_rows import RESERVED, examples_of
from pt_app.core.verdicts import NAMED, Scale, Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["JudgeExample"]  # which most readers of a folder need too

SPLITS = ("train", "val", "test")
OPTIONAL_SPLITS = ("val",)
FILE_ENDS = (".json", ".jsonl", ".html", ".md")  # of the files that an evaluation consists of


class HowSplit(BaseModel):
    """How the rows were split: by what, at which ratios, and what else `SplitPlan.about` says."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | str | list[float]]
    by: By = "group"
    near: float = Field(default=0, ge=0, le=1)
    left_out: int = 0


class Imported(BaseModel):
    """What one import into the folder read and kept."""

    model_config = ConfigDict(extra="allow", strict=True)
    files: list[str]
    read: int
    kept: int
    dropped: dict[str, int]


class DatasetCard(BaseModel):
    """`dataset.json`: what the rows are about, and where they come from.

    `state` and `questions` are those of the task "questions": the fields of a row that are asked
    about, and what is asked (questions.py).
    """

    model_config = ConfigDict(extra="allow")
    task: Literal[Task, "questions"] = "score"
    scale: str = ""
    template: str = "translation"
    rubric: str | None = None
    origin: str = ""
    licence: str = ""
    state: list[str] = []
    questions: dict[str, Declared] = {}
    sha256: dict[str, str] = Field(default_factory=dict)
    split: HowSplit = HowSplit.model_validate({})  # mypy wants its extra fields named in a call
    label_rule: str = ""
    imports: list[Imported] = []
    self_agreement: RaterPair | None = None

    def model_post_init(self, _context: object) -> None:
        """Fill in the usual scale or template of the task."""
        if self.task == "questions":
            self.template = self.template if "template" in self.model_fields_set else self.task
        else:
            self.scale = self.scale or (self.task if self.task in NAMED else "0-10")


@dataclass(frozen=True)
class JudgeData:
    """A dataset folder in memory. `sha256` is of each file as it was read.

    `asked` is the scale of its labels, or its questions. `leaks` has a line for each text on both
    sides of the split, if that was allowed.
    """

    path: Path
    card: DatasetCard
    asked: Asked
    train: list[JudgeExample]
    val: list[JudgeExample]
    test: list[JudgeExample]
    sha256: dict[str, str]
    notes: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    @property
    def scale(self) -> Scale:
        """The scale of all labels; raises UserError if there are several questions."""
        return only_scale(self.asked)

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that it declares; empty if it has a scale of its own."""
        return questions_in(self.asked)

    def views(self) -> list[tuple[str, "JudgeData"]]:
        """Return name and data of each question; ("", self) where there is one scale."""
        if not self.questions:
            return [("", self)]
        return [(question.name, self.about((question,))) for question in self.questions]

    def about(self, questions: Sequence[Question]) -> "JudgeData":
        """Return the same data with the labels of these questions alone."""
        names = {question.name for question in questions}
        train, val, test = (
            [row for row in rows if row.asks in names] for rows in (self.train, self.val, self.test)
        )
        return replace(self, asked=tuple(questions), train=train, val=val, test=test)


def read_dataset(folder: Path, allow_leaks: bool = False) -> JudgeData:
    """Read a dataset folder and check it as a whole.

    Raises UserError for a missing, broken or empty file, a row that cannot be used, two rows with
    one id and, unless `allow_leaks`, one group, source or long candidate in two splits.
    """
    folder = find_folder(folder)
    card = read_card(folder)
    asked = card_asks(card, folder / "dataset.json")
    if (folder / "1" / "judge_test.json").exists():
        remedy = f"train them all with `judge train --data_dir {folder}`, or one, {folder / '1'}"
        raise UserError(f"{folder} holds folds: {remedy}")
    splits = read_splits(folder, card)
    paths = [folder / f"judge_{split}.json" for split in SPLITS]
    hashes = {path.name: sha256_file(path) for path in paths if path.exists()}
    if not isinstance(asked, Scale):
        remedy = "label some, or remove it from dataset.json"
        check_labelled(asked, splits["train"], f"{folder / 'judge_train.json'}: no row", remedy)
    leaks = _leaks(splits, card, folder, allow_leaks)
    changed = [name for name, digest in card.sha256.items() if hashes.get(name, digest) != digest]
    notes = tuple(f"{name} is not the file that dataset.json describes" for name in changed)
    return JudgeData(folder, card, asked, notes=notes, sha256=hashes, leaks=leaks, **splits)


def check_labelled(
    questions: Sequence[Question], train: Sequence[JudgeExample], rows: str, remedy: str
) -> None:
    """Raise UserError for the first question that no training row has a label for.

    Args:
        questions: that are trained.
        train: the training rows.
        rows: what they are, at the start of the message: "...: no row".
        remedy: what to do, at its end.
    """
    labelled = {row.asks for row in train}
    for question in questions:
        if question.name not in labelled:
            raise UserError(f"{rows} has a label for {question.name}: {remedy}")


def find_folder(folder: str | Path) -> Path:
    """Return the dataset folder; raises UserError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "name another (--data_dir of a training), or make one with `judge data import`"
        raise UserError(f"data folder {folder} is not there: {remedy} or `judge data generate`")
    return folder


def read_splits(
    folder: Path, card: DatasetCard, optional: Sequence[str] = OPTIONAL_SPLITS
) -> dict[str, list[JudgeExample]]:
    """Read the rows of each split; an `optional` one whose file is not there is empty.

    Raises UserError as `read_rows` does, and for two rows with one id.
    """
    splits: dict[str, list[JudgeExample]] = {}
    for split in SPLITS:
        path = folder / f"judge_{split}.json"
        missing = not path.exists() and split in optional
        splits[split] = [] if missing else read_rows(path, card, split)
    check_ids([example for examples in splits.values() for example in examples])
    return splits


def _leaks(
    splits: Mapping[str, Sequence[JudgeExample]], card: DatasetCard, folder: Path, allow: bool
) -> tuple[str, ...]:
    """List the texts on both sides of the split; raises UserError for the first unless `allow`."""
    if not allow:
        _check_groups(splits, folder)
    by_row = f"{folder.name} was split by row, so that groups are on several sides"
    lines = [by_row] if card.split.by == "row" else []
    # Allowed leaks go into results.json, and with it to the tracker: no texts of rows.
    lines += [leak.line(with_text=not allow) for leak in find_leaks(splits)]
    if lines and not allow:
        more = f", and {len(lines) - 1} more" if len(lines) > 1 else ""
        again = f"`judge data split {folder} --anew` splits them again"
        raise UserError(f"leak: {lines[0]}{more}: {again}, --allow_leaks trains anyway")
    return tuple(lines)


def read_card(folder: Path) -> DatasetCard:
    """Read `dataset.json`; without it the rows are scored 0-10 with the default template.

    A template that is a folder below this one is given with its whole path, else by its name.
    """
    path = folder / "dataset.json"
    if not os.path.lexists(path):  # a link to nothing is an error
        return DatasetCard()
    card = checked(DatasetCard, read_json(path, constant=refuse_constant), path)
    for name in card.model_extra or {}:  # it also holds what else an import says about the rows
        if near := difflib.get_close_matches(name, DatasetCard.model_fields, n=1, cutoff=0.8):
            raise UserError(f"{path}, field {name}: it is not known: write {near[0]}, or rename it")
    if card.questions and card.task != "questions":
        problem = f"the task is {card.task}, and it declares questions"
        raise UserError(f'{path}, field task: {problem}: write "task": "questions"')
    own = (folder / card.template).absolute()
    is_own = (own / "user.txt").is_file()
    return card.model_copy(update={"template": str(own)}) if is_own else card


def card_asks(card: DatasetCard, path: Path) -> Asked:
    """Return the card's scale or questions; raises UserError for what is wrong with them."""
    if card.task != "questions":
        return card_scale(card, path)
    where = f"{path}, field"
    if not card.state or len(set(card.state)) < len(card.state):
        raise UserError(f"{where} state: name the fields of a row that are asked about, each once")
    if taken := set(card.state) & set(RESERVED):
        raise UserError(f"{where} state: {min(taken)} is no field of the state: rename it")
    if card.scale:
        raise UserError(f"{where} scale: each question has its own: remove the field")
    if files := [name for name in card.questions if name.lower().endswith(FILE_ENDS)]:
        problem = "its results are a folder of this name beside files: rename it"
        raise UserError(f"{where} questions.{files[0]}: {problem}")
    return _each_once(questions_of(card.questions, f"{where} questions"), f"{where} questions")


def _each_once(questions: tuple[Question, ...], where: str) -> tuple[Question, ...]:
    """Return questions; raises UserError for two that are one to a judge, who sees no names.

    Adapters that were trained on two such questions are still read.
    """
    first: dict[object, str] = {}
    for question in questions:
        if (other := first.setdefault(question.content, question.name)) != question.name:
            remedy = "remove one of them, or ask it in other words"
            raise UserError(f"{where}: {other} and {question.name} ask the same: {remedy}")
    return questions


def card_scale(card: DatasetCard, path: Path) -> Scale:
    """Return the card's scale; raises UserError if it does not belong to the card's task."""
    if card.task == "questions":
        return only_scale(card_asks(card, path))
    try:
        scale = Scale.from_name(card.scale)
    except UserError as error:
        raise UserError(f"{path}, field scale: {error}") from error
    if scale.task != card.task:
        problem = f"{card.scale} is no scale of the task {card.task}"
        raise UserError(f"{path}, field scale: {problem}: correct one of the two")
    return scale


def read_rows(path: Path, card: DatasetCard, split: str) -> list[JudgeExample]:
    """Read one file of rows, a JSON list or JSON Lines, both shapes mixed at will.

    `split` names rows that have no id: "train-17". Raises UserError at the first row that cannot
    be used or has no label, or if there is none.
    """
    asked = card_asks(card, path.parent / "dataset.json")
    examples: list[JudgeExample] = []
    for place, value in _values(path):
        if not isinstance(value, dict):
            raise place.error("", "a row must be an object", "write {...} for each row")
        if not isinstance(asked, Scale):
            made = [*examples_of(value, place, card.state, asked, f"{split}-{place.row}")]
            if not made:
                raise place.error("labels", "the row has none", "label it or leave it out")
            examples += made
            continue
        example = example_of(value, place, asked)
        if example.label is None:
            raise place.error("label", "the row has none", "label it or leave it out")
        name = example.id or f"{split}-{place.row}"
        examples.append(example.model_copy(update={"id": name}))
    if not examples:
        remedy = "add rows or remove the file" if split in OPTIONAL_SPLITS else "add rows"
        raise UserError(f"{path} holds no rows: {remedy}")
    return examples


def to_dataset(
    examples: Sequence[JudgeExample], columns: Mapping[str, Sequence[object]]
) -> "Dataset":
    """Make a `datasets.Dataset` of the examples' id, group and where, and the given columns.

    Raises UserError if the import finds a folder called `datasets` and not the package.
    """
    import datasets

    if not hasattr(datasets, "Dataset"):
        problem = f"the import found {list(datasets.__path__)}"
        raise UserError(f"the package datasets is not installed, {problem}: pip install datasets")
    own = {name: [getattr(e, name) for e in examples] for name in ("id", "group", "where")}
    return datasets.Dataset.from_dict({**own, **columns})


def _values(path: Path) -> Iterator[tuple[Place, object]]:
    """Yield each row of a JSON list, or each line of JSON Lines, with its place."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        for row, value in enumerate(parse_json(text, path, **AS_ROWS), start=1):
            yield Place(path, row, lines=False), value
        return
    for number, value in json_lines(text, path, **AS_ROWS):
        yield Place(path, number, lines=True), value


def check_ids(examples: Iterable[JudgeExample]) -> None:
    """Raise UserError for the first id that two rows have."""
    seen: dict[str, JudgeExample] = {}
    for example in examples:
        other = seen.setdefault(example.id, example)
        # The examples of a row, one for each question, hold the same row.
        if other is not example and not (example.asks and other.row is example.row):
            where = f"{other.where} and {example.where}, field id"
            raise UserError(f'two rows have the id "{example.id}": {where}: give each its own')


def _check_groups(splits: Mapping[str, Iterable[JudgeExample]], folder: Path) -> None:
    placed = read_places(folder)
    seen: dict[str, tuple[str, str]] = {}
    for split, examples in splits.items():
        for example in examples:
            group = example.group
            other, where = seen.setdefault(group, (split, example.where))
            if other != split:
                where += f" and {example.where}, field group: move all rows of it to one split"
                raise UserError(f'group "{clipped(group)}" is in two splits: {where}')
            if placed.get(group, split) != split:
                problem = f'places group "{clipped(group)}" in {placed[group]}'
                problem += f", but it is at {example.where}"
                raise UserError(f"{folder / 'splits.json'} {problem}: correct one of the two")


def read_places(folder: Path) -> dict[str, str]:
    """Read from splits.json where each group was placed; empty without the file."""
    path = folder / "splits.json"
    if not os.path.lexists(path):
        return {}
    placed = read_json(path)
    for group, split in placed.items():
        if split not in SPLITS:
            problem = f'places group "{clipped(group)}" in {split!r}'
            raise UserError(f"{path} {problem}: use {', '.join(SPLITS)}")
    return {one_line(str(group)): split for group, split in placed.items()}


def draw(rows: Sequence[JudgeExample], count: int, seed: int) -> Sequence[JudgeExample]:
    """Draw `count` rows by the seed, in their order; all rows if `count` is 0.

    All examples of a row, one for each question, are drawn together.
    """
    members = members_of(rows)
    if not 0 < count < len(members):
        return rows
    drawn = sorted(random.Random(seed).sample(range(len(members)), count))
    return [rows[i] for row in drawn for i in members[row]]


def members_of(examples: Sequence[JudgeExample]) -> list[list[int]]:
    """Return the indices of the examples of each row: one, or one for each of its questions."""
    members: list[list[int]] = []
    before: JudgeExample | None = None
    for index, example in enumerate(examples):
        own = example.id, example.where
        if before is None or not example.asks or own != (before.id, before.where):
            members.append([])
        members[-1].append(index)
        before = example
    return members
