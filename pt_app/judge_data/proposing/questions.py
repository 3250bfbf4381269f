"""Propose several questions of one judge for a file with several columns of labels."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from pt_app.core.dataset import check_ids
from pt_app.core.errors import UserError
from pt_app.core.questions import NAME, Declared, Question
from pt_app.core.state_rows import RESERVED
from pt_app.judge_data.importing import Tally
from pt_app.judge_data.mapping import META
from pt_app.judge_data.options import ImportOptions, Reading
from pt_app.judge_data.proposing.columns import MAX_CHOICES, Column
from pt_app.judge_data.proposing.guessing import NAMES, Names, guess_labels, typable, words_of
from pt_app.judge_data.proposing.proposal import escaped
from pt_app.judge_data.question_import import converted, declared
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import find, is_empty, parsed

Columns = Mapping[str, Column]
# The fields of --map that are asked about; what is judged is last.
STATE = ("conversation", "source", "context", "reference")
CANDIDATES = ("candidate_a", "candidate_b", "candidate")
ROLES = ("id", "group", "rater", *META)
HEAD = """\
# Proposed by `judge init`. Correct the instructions: they are what the judge is asked. Say what
# options and numbers mean, and remove what is no label (docs/QUESTIONS.md).
"""
ASKED = {"bool": "{}?", "choice": "Which {}?", "score": "How good is it: {}?"}


@dataclass(frozen=True)
class Questions:
    """A file of questions, and what else `judge data import` is told.

    Attributes:
        asked: each question in a few words.
        text: the file.
        flags: of the import, beside the file of questions.
    """

    asked: Sequence[str]
    text: str
    flags: Sequence[str]


def propose_questions(
    table: Table, columns: Columns, guessed: Mapping[str, Names], reading: Reading
) -> Questions | None:
    """Propose a question for each column of labels, about the columns of texts.

    The rows are converted as an import would do it, so that what is proposed can be imported.

    Args:
        table: the file.
        columns: what is in it.
        guessed: the columns of each field of --map; none for a file of a known shape.
        reading: how the file is read.

    Returns:
        The proposal; None if there are fewer than two questions, or no row can be used.
    """
    fields = [name for target in (*STATE, *CANDIDATES) for name in guessed.get(target, ())]
    if not fields:
        return None
    taken = {*ROLES, *RESERVED}
    state = _named(fields, table.columns, taken)
    labels = _labels(columns, guessed)
    names = _named(labels, filter(NAME.fullmatch, table.columns), taken)
    paths = {name: [column.name for column in labels[key]] for name, key in names.items()}
    asked = {name: own for name, key in names.items() if (own := _question(name, labels[key]))}
    for name in _unreadable(table, asked, paths):
        del asked[name]
    if len(asked) < 2:
        return None
    paths = {name: [column] for name, column in state.items()} | {n: paths[n] for n in asked}
    renamed = {name: "+".join(map(escaped, own)) for name, own in paths.items() if own != [name]}
    mapped = ",".join(f"{escaped(name)}={own}" for name, own in renamed.items())
    content = {"state": list(state), "questions": asked}
    text = HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    options = ImportOptions(questions=Path("questions.yaml"), map=(mapped,), reading=reading)
    tally = Tally(drop_bad=True)
    try:
        _, examples = converted([table], declared(text, Path("questions.yaml")), options, tally)
        check_ids(examples)
    except UserError:
        return None
    flags = [*(["--map", mapped] if mapped else []), *reading.flags()]
    flags += ["--drop_bad"] if tally.dropped.first else []
    words = [f"{name} ({own.get('scale', own['type'])})" for name, own in asked.items()]
    return Questions(words, text, flags) if examples else None


def _named(columns: Iterable[str], kept: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Give each column a name of its own, and add it to `taken`; those in `kept` keep theirs."""
    names, kept = dict[str, str](), set(kept)
    for column in columns:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", column.rpartition(".")[2]).strip("_-")[:90] or "q"
        first = column if column in kept else plain
        possible = chain([first, plain], map(f"{plain}_{{}}".format, count(2)))
        name = next(name for name in possible if name.casefold() not in taken)
        taken.add(name.casefold())
        names[name] = column
    return names


def _labels(columns: Columns, guessed: Mapping[str, Names]) -> dict[str, list[Column]]:
    """Return the columns that may be labels, by column; those of several raters by "label"."""
    label = guessed.get("label", ())
    used = {name for target, own in guessed.items() if target != "label" for name in own}
    roles = {name for role in ROLES for name in NAMES[role]}
    labels = {"label": [columns[name] for name in label]} if len(label) > 1 else {}
    for name, column in columns.items():
        free = name not in used and not (len(label) > 1 and name in label)
        few = 1 < column.distinct < column.filled
        few &= name in label or column.distinct <= MAX_CHOICES
        one = column.may_be_label and column.most == 1 and "*" not in name and typable(name)
        if free and few and one and "_".join(words_of(name)) not in roles:
            labels[name] = [column]
    return labels


def _question(name: str, columns: Sequence[Column]) -> dict[str, Any] | None:
    """Declare the question whose labels are in columns; None if it cannot be declared."""
    values = list(dict.fromkeys(value.strip() for column in columns for value in column.values))
    numbers = {number for column in columns for number in column.numbers}
    own: dict[str, Any] = {"type": "choice", "options": values}
    if {value.casefold() for value in values} in ({"true", "false"}, {"yes", "no"}):
        own = {"type": "bool"}
    elif all(column.kind == "number" for column in columns):
        own = {"type": "score", "scale": guess_labels(columns, pair=False).scale}
        if numbers == {0, 1}:  # as labels of a bool they would be refused
            own |= {"scale": "0-1", "legend": {"0": "no", "1": "yes"}}
    words = ASKED["bool" if "legend" in own else own["type"]].format(name.replace("_", " "))
    own = {"type": own["type"], "instructions": words, **own}
    try:
        Question.of(name, Declared.model_validate(own), name)
    except UserError:
        return None
    return own


def _unreadable(
    table: Table, asked: Mapping[str, Any], paths: Mapping[str, Sequence[str]]
) -> set[str]:
    """Return the questions with a cell that is no label of theirs: a list, a decimal comma."""
    questions = [Question.of(n, Declared.model_validate(own), n) for n, own in asked.items()]
    return {
        question.name
        for _, row in table.rows()
        for question in questions
        for cell in (parsed(find(row, path)) for path in paths[question.name])
        if not is_empty(cell) and question.verdict(cell) is None
    }
