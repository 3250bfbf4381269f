"""Cells of a row of any label file: lookup by name or path, emptiness, JSON written as text."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place

MISSING = object()
"""What `find` returns where a row has no such cell."""


def find(value: Any, name: str) -> Any:
    """Look up a cell by the name of its column, else by a path (`a.0.b`).

    In a path, `*` stands for every item of a list. A cell on the way may hold JSON as text.

    Returns:
        The cell, or `MISSING` where the row has no such cell.
    """
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, _, rest = name.partition(".")
    if head == "*" and isinstance(value, list):
        cells = [find(item, rest) if rest else item for item in value]
        return [None if cell is MISSING else cell for cell in cells]
    if isinstance(value, Mapping) and head in value:
        inner = value[head]
    elif isinstance(value, list) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    else:
        return MISSING
    return find(parsed(inner), rest) if rest else inner


def check_column(columns: Sequence[str], name: str, file: str, flag: str) -> None:
    """Raise UserError for a column, or a path into one, that the file does not have.

    The message lists the columns of the file, the most similar names first.
    """
    if name in columns or any(name.startswith(f"{column}.") for column in columns):
        return
    shown = sorted(columns, key=lambda c: -difflib.SequenceMatcher(None, c, name).ratio())
    raise UserError(f"{file} has no column {name} ({flag}): its columns are {', '.join(shown)}")


def parsed(cell: Any) -> Any:
    """Parse a cell that holds a JSON list or object as text; return any other cell unchanged."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def refuse_bytes(cell: Any, place: Place, column: str) -> None:
    """Raise RowError for a cell that holds binary data, at any depth."""
    if isinstance(cell, bytes):
        problem = f"it holds {len(cell):,} bytes that are not UTF-8"
        raise place.error(column, problem, "decode that column, or map another")
    inner = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
    for item in inner:
        refuse_bytes(item, place, column)


def is_empty(cell: Any) -> bool:
    """Return whether a cell says nothing: it is missing, null, NaN or blank."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or cell is MISSING or bool(cell != cell)  # NaN differs from itself
