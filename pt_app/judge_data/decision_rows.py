"""Training rows of open decision models: what `judge data import --format laya` and others read.

They are requests of TypeSafe's System One (a state and named, typed questions) with labels: of
Laya (`expected` or `gold`, NandhaKishorM/laya, docs/finetune.md), Kev (`label` in each question,
jaredpalmer/kev, README.md) and NeMo AutoModel (`answers` and `soft_labels`, its page on decision
records). A file becomes a card that declares its questions, and a table of rows of a dataset.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import isfinite

from pt_app.core.errors import UserError
from pt_app.core.records import Place, RowError
from pt_app.core.state_rows import RESERVED
from pt_app.judge_data.reading.tables import Rows, Table
from pt_app.judge_data.rows import Row, is_empty

TYPES = {"noul": "bool", "choice": "choice", "score": "score"}
FIRST = 200  # rows that are read to recognise a format
FIELD = "state"  # of a state that is no object, or whose fields differ by row


def format_of(table: Table) -> str:
    """Return the name of the format whose labels one of the first rows has; "" if none has any."""
    for _, row in islice(table.rows(), FIRST):
        asked = row.get("questions")
        if "state" in row and isinstance(asked, Mapping):
            for name, label in LABELS.items():
                if any(label(row, question) is not None for question in asked):
                    return name
    return ""


def as_dataset(
    tables: Sequence[Table], name: str, refuse: Callable[[RowError], None]
) -> tuple[Row, list[Table]]:
    """Read files of a format as a dataset that declares its questions.

    Args:
        tables: the files.
        name: of the format.
        refuse: takes the error of a row that cannot be used, or raises it.

    Returns:
        The part of dataset.json that says what is asked, and the files as rows of a dataset.

    Raises:
        UserError: for a question whose name or options no dataset can have.
    """
    questions: dict[str, Row] = {}
    fields: list[str] | None = None
    refused: set[tuple[str, int]] = set()
    for table in tables:
        for place, value in table.rows():
            try:
                shown = _requested(value, place, questions, name)
            except RowError as error:
                refuse(error)
                refused.add((table.name, place.row))
                continue
            fields = shown if fields is None or {*fields} == {*shown} else []
    if not fields or {*fields} & {*questions, *RESERVED}:
        fields = []
    if clash := {*questions} & {*RESERVED, "rater", *([] if fields else [FIELD])}:
        remedy = "rename it in the file"
        raise UserError(f"{tables[0].name}: no question can have the name {min(clash)}: {remedy}")
    card: Row = {"task": "questions", "state": fields or [FIELD], "questions": questions}
    columns = ("id", "group", *card["state"], "labels")

    def rows(table: Table) -> Rows:
        for place, value in table.rows():
            if (table.name, place.row) not in refused:
                yield place, _row(value, place, LABELS[name], fields or ())

    return card, [replace(t, columns=columns, rows=partial(rows, t)) for t in tables]


def _requested(value: Row, place: Place, questions: dict[str, Row], name: str) -> list[str]:
    """Add what a row asks to `questions`, and return the fields of its state.

    Raises:
        RowError: for a row that is no request, and a question that another row asks otherwise.
    """
    if "state" not in value:
        raise place.error("state", "the row has none", f"name a file of the format {name}")
    read = _questions(value, place).items()
    asked = {one: _declared(cell, place, f"questions.{one}") for one, cell in read}
    for one, own in asked.items():
        if questions.get(one, own) != own:
            remedy = "give a question of other words or options its own name"
            problem = "an earlier row asks it in another way"
            raise place.error(f"questions.{one}", problem, remedy)
    questions |= asked
    return _fields(value["state"])


def _questions(value: Row, place: Place) -> Mapping[str, object]:
    questions = value.get("questions")
    if not isinstance(questions, Mapping) or not questions:
        raise place.error("questions", "they are no object", 'write {name: {"type": ...}}')
    return questions


def _fields(state: object) -> list[str]:
    """Return the fields of a state that is an object; none where one of them has no value."""
    whole = isinstance(state, Mapping) and None not in state.values()
    return [*state] if isinstance(state, Mapping) and whole else []


def _declared(cell: object, place: Place, at: str) -> Row:
    """Return a question of System One as dataset.json declares it."""
    kind = TYPES.get(str(cell.get("type"))) if isinstance(cell, Mapping) else None
    if not isinstance(cell, Mapping) or kind is None:
        raise place.error(f"{at}.type", "it is none of noul, choice, score", "correct it")
    own: Row = {"type": kind, "instructions": _text(cell.get("instructions"))}
    if not own["instructions"].strip():
        raise place.error(f"{at}.instructions", "they are empty", "write what is asked")
    criteria = cell.get("criteria")
    if kind == "score":
        if not isinstance(criteria, list):
            raise place.error(f"{at}.criteria", "they are no list", "list the levels, low first")
        return own | {"levels": [_text(level) or None for level in criteria]}
    if criteria is not None and not isinstance(criteria, Mapping):
        raise place.error(f"{at}.criteria", "they are no object", "write {option: words}")
    words = {name: _text(text) or None for name, text in (criteria or {}).items()}
    if kind == "choice":
        return own | {"options": words}
    words = {name: text for name, text in words.items() if text}
    return own | ({"criteria": words} if words else {})


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(value: Row, place: Place, label: "Label", fields: Sequence[str]) -> Row:
    """Return a row of a file as a row of a dataset."""
    state, meta = value["state"], value.get("meta")
    own = {name: state[name] for name in fields} if fields else {FIELD: _text(state)}
    group = value.get("group")
    if is_empty(group) and isinstance(meta, Mapping):
        group = meta.get("group")
    read = {name: label(value, name) for name in _questions(value, place)}
    labels = {name: found for name, found in read.items() if found is not None}
    return {"id": value.get("id"), "group": group, **own, "labels": labels}


def _in(value: Row, column: str, name: str) -> object:
    cells = value.get(column)
    return cells.get(name) if isinstance(cells, Mapping) else None


def _laya(value: Row, name: str) -> object:
    """`expected`, whose level may lie between two; else `gold`, a teacher's probabilities."""
    answer = _in(value, "expected", name)
    if isinstance(answer, float) and isfinite(answer) and answer % 1:
        low = int(answer // 1)
        return {"votes": {str(low): 1 - answer % 1, str(low + 1): answer % 1}}
    gold = _in(value, "gold", name)
    if answer is not None or not isinstance(gold, Mapping):
        return answer
    return {"votes": gold.get("probabilities")}


def _kev(value: Row, name: str) -> object:
    return _in(value["questions"], name, "label")


def _nemo(value: Row, name: str) -> object:
    """`soft_labels`, probabilities by option, where there are any; else `answers`."""
    soft = _in(value, "soft_labels", name)
    return {"votes": soft} if isinstance(soft, Mapping) else _in(value, "answers", name)


Label = Callable[[Row, str], object]
LABELS: Mapping[str, Label] = {"laya": _laya, "kev": _kev, "nemo-decision": _nemo}
