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
from pt_app.judge_data.question_labels import unreadable
from pt_app.judge_data.reading.tables import Table

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
        left_out: columns that seem to be labels and are no questions, each with the reason.
    """

    asked: Sequence[str]
    text: str
    flags: Sequence[str]
    left_out: Sequence[str]


def propose_questions(
    table: Table, columns: Columns, guessed: Mapping[str, Names], reading: Reading
) -> Questions:
    """Propose a question for each column of labels, about the columns of texts.

    The rows are converted as an import would do it, so that what is proposed can be imported.

    Args:
        table: the file.
        columns: what is in it.
        guessed: the columns of each field of --map; none for a file of a known shape.
        reading: how the file is read.

    Raises:
        UserError: there are fewer than two questions, or the rows cannot be imported.
    """
    fields = [name for target in (*STATE, *CANDIDATES) for name in guessed.get(target, ())]
    taken = {*ROLES, *RESERVED}
    state = {name: [own] for name, own in _named(fields, table.columns, taken).items()}
    labels = _labels(columns, guessed)
    names = _named(labels, filter(NAME.fullmatch, table.columns), taken)
    asked, paths, left_out = dict[str, Any](), dict[str, list[str]](), dict[str, str]()
    for name, key in names.items():
        paths[name] = [column.name for column in labels[key]]
        try:
            asked[name] = _question(name, labels[key])
        except UserError as error:
            left_out[name] = str(error)
    roles = {role: [*guessed[role]] for role in ROLES if role in guessed}
    while state and len(asked) > 1:
        own = state | roles | {name: paths[name] for name in asked}
        text, flags, tally = _imported(table, list(state), asked, own, reading)
        reasons = {name: tally.answers.first.get(unreadable(name)) for name in asked}
        bad = {name: reason for name, reason in reasons.items() if reason}
        left_out |= bad
        if not bad:
            words = [f"{name} ({own.get('scale', own['type'])})" for name, own in asked.items()]
            return Questions(words, text, flags, _each(left_out))
        asked = {name: own for name, own in asked.items() if name not in bad}
    left = f"; left out: {', '.join(_each(left_out))}" if left_out else ""
    problem = "it has no two columns of labels, beside a text, that can be imported as questions"
    raise UserError(f"{problem}{left}: add one")


def _imported(
    table: Table,
    state: Sequence[str],
    asked: Mapping[str, Any],
    paths: Mapping[str, Sequence[str]],
    reading: Reading,
) -> tuple[str, list[str], Tally]:
    """Import the rows in memory.

    Returns:
        The file of questions, the flags of the import, and what became of the rows.

    Raises:
        UserError: they cannot be imported.
    """
    renamed = {name: "+".join(map(escaped, own)) for name, own in paths.items() if own != [name]}
    mapped = ",".join(f"{escaped(name)}={own}" for name, own in renamed.items())
    content = {"state": list(state), "questions": dict(asked)}
    text = HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    options = ImportOptions(questions=Path("questions.yaml"), map=(mapped,), reading=reading)
    tally = Tally(drop_bad=True)
    _, examples = converted([table], declared(text, Path("questions.yaml")), options, tally)
    check_ids(examples)
    if not examples:
        raise UserError(f"no row can be used: {'; '.join(map(str.strip, tally.lines()[1:]))}")
    flags = [*(["--map", mapped] if mapped else []), *reading.flags()]
    return text, flags + ["--drop_bad"] * tally.bad, tally


def _each(left_out: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in left_out.items()]


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


def _question(name: str, columns: Sequence[Column]) -> dict[str, Any]:
    """Declare the question whose labels are in columns; raises UserError where it cannot be."""
    values = list(dict.fromkeys(value.strip() for column in columns for value in column.values))
    numbers = {number for column in columns for number in column.numbers}
    own: dict[str, Any] = {"type": "choice", "options": values}
    if {value.casefold() for value in values} in ({"true", "false"}, {"yes", "no"}):
        own = {"type": "bool"}
    elif all(column.kind == "number" for column in columns):
        guessed = guess_labels(columns, pair=False)
        if not guessed.scale:
            raise UserError(guessed.remark)
        own = {"type": "score", "scale": guessed.scale}
        if numbers == {0, 1}:  # as labels of a bool they would be refused
            own |= {"scale": "0-1", "legend": {"0": "no", "1": "yes"}}
    words = ASKED["bool" if "legend" in own else own["type"]].format(name.replace("_", " "))
    own = {"type": own["type"], "instructions": words, **own}
    Question.of(name, Declared.model_validate(own), name)
    return own
