"""Rows of any label file, and their cells: lookup by name or path, emptiness, JSON as text."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place

_INDEX = re.compile(r"\d{1,9}")
Row = dict[str, Any]
"""A row of a file, or a row of fields or of chat, as docs/DATA.md describes them."""


@dataclass(frozen=True)
class Converted:
    """What became of one or more rows of a file: a row of the dataset, or the reason for none.

    `rows_read` is the number of rows of the file behind it, so that kept plus dropped equals read.
    """

    place: Place
    row: Row | None
    reason: str = ""
    rows_read: int = 1


def find(value: object, name: str) -> object:
    """Look up a cell by the name of its column, else by a path (`a.0.b`).

    In a path, `*` stands for every item of a list. A cell on the way may hold JSON as text.

    Returns:
        The cell, or None where the row has no such cell.
    """
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, _, rest = name.partition(".")
    inner: object = None
    if head == "*" and isinstance(value, list):
        return [find(item, rest) if rest else item for item in value]
    if isinstance(value, Mapping):
        inner = value.get(head)
    elif isinstance(value, list) and _INDEX.fullmatch(head) and int(head) < len(value):
        inner = value[int(head)]
    return find(parsed(inner), rest) if rest and inner is not None else inner


def check_column(columns: Sequence[str], name: str, file: str, flag: str) -> None:
    """Raise UserError for a column, or a path into one, that the file does not have.

    The message lists the columns of the file, the most similar names first.
    """
    if name in columns or any(name.startswith(f"{column}.") for column in columns):
        return
    shown = sorted(columns, key=lambda c: -difflib.SequenceMatcher(None, c, name).ratio())
    raise UserError(f"{file} has no column {name} ({flag}): its columns are {', '.join(shown)}")


def parsed(cell: object) -> object:
    """Parse a cell that holds a JSON list or object as text; return any other cell unchanged."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def refuse_bytes(cell: object, place: Place, column: str) -> None:
    """Raise RowError for a cell that holds binary data, at any depth."""
    if isinstance(cell, bytes):
        problem = f"it holds {len(cell):,} bytes that are not UTF-8"
        raise place.error(column, problem, "decode that column, or map another")
    inner = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
    for item in inner:
        refuse_bytes(item, place, column)


def is_empty(cell: object) -> bool:
    """Return whether a cell has no value: it is null, NaN or blank."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or bool(cell != cell)  # NaN differs from itself
