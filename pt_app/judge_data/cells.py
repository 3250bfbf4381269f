"""Cells of a row of any label file: found by name or path, empty or not, JSON written as text."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place

MISSING = object()
"""What `find` gives where a row has no such cell."""


def find(value: Any, name: str) -> Any:
    """Look a cell up: by its column's name, else by a path (`a.0.b`).

    In a path `*` stands for each item of a list, and a cell may hold JSON as text. Returns
    `MISSING` where there is no such cell.
    """
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, _, rest = name.partition(".")
    if head == "*" and isinstance(value, list):
        found = [find(one, rest) if rest else one for one in value]
        return [None if one is MISSING else one for one in found]
    if isinstance(value, Mapping) and head in value:
        inner = value[head]
    elif isinstance(value, list) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    else:
        return MISSING
    return find(parsed(inner), rest) if rest else inner


def check_column(columns: Sequence[str], name: str, file: str, flag: str) -> None:
    """Raise UserError for a column, or a path into one, that the file does not have.

    The message lists the columns that the file has, those of similar names first.
    """
    if name in columns or any(name.startswith(f"{column}.") for column in columns):
        return
    shown = sorted(columns, key=lambda c: -difflib.SequenceMatcher(None, c, name).ratio())
    raise UserError(f"{file} has no column {name} ({flag}): its columns are {', '.join(shown)}")


def parsed(cell: Any) -> Any:
    """Read a cell that holds a JSON list or object as text; return any other cell as it is."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def refuse_bytes(cell: Any, place: Place, column: str) -> None:
    """Raise RowError for a cell that holds binary data, which is no text."""
    if isinstance(cell, bytes):
        problem = f"it holds {len(cell):,} bytes that are no UTF-8"
        raise place.error(column, problem, "decode that column, or map another")
    inner = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
    for one in inner:
        refuse_bytes(one, place, column)


def is_empty(cell: Any) -> bool:
    """Whether a cell says nothing: null, NaN, or blank."""
    return (
        cell is None
        or cell is MISSING
        or bool(cell != cell)
        or (isinstance(cell, str) and not cell.strip())
    )
