"""Describe the columns of an unknown file: their kinds, ranges and examples."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from math import gcd
from typing import Literal, TypeGuard

from pt_app.core.words import units
from pt_app.judge_data.labels import status_of
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers, readings
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import is_empty, parsed

Kind = Literal["empty", "number", "choice", "text", "turns", "other"]

# A column with more different values, or with longer ones, holds texts and no labels.
MAX_CHOICES = 24
MAX_CHOICE_LENGTH = 40
MAX_DEPTH = 6
_TICKS = 10**6
MAX_DIGITS = 15  # of a label before its decimals; longer numbers are identifiers
# What annotation tools keep besides the answers: guesses of models, and unfinished answers.
NO_ANSWERS = {"predictions", "drafts", "suggestions", "suggestion"}


class Column:
    """One column, or one path into nested JSON as --map names it (`a.b`, `a.*.b`).

    Attributes:
        kind: Numbers, a few short values (choice), texts, conversations (turns), or other.
        rows: The number of rows in which the column has a value.
        filled: The number of values in these rows.
        most: The most values in one cell; over 1 in a column of lists.
        distinct: The number of different values.
        values: The first different values.
        may_be_label: Whether it holds numbers or a few short values.
        numbers: Its numbers.
        unclear: Whether a number can be read in two ways, and nothing decides between them.
        step: The largest step of which all numbers are multiples; None if finer than a millionth.
    """

    def __init__(
        self, name: str, cells: Iterable[object], delimiter: str = "", decimal: str = ""
    ) -> None:
        """Describe a column from its cells: values, lists of values, or conversations.

        `delimiter` and `decimal` are those of the file: see `numbers.Numbers`.
        """
        read = [parsed(cell) for cell in cells]
        last = [cell[-1] for cell in read if is_turns(cell)]
        turns = [str(turn.get("content", turn.get("value"))) for turn in last]
        plain = [c if isinstance(c, list) else [c] for c in read if not is_turns(c)]
        lists = [[value for value in cell if not is_empty(value)] for cell in plain]
        values = [value for listed in lists for value in listed]
        scalars = [value for value in values if not isinstance(value, list | dict | bytes)]
        texts = [str(value) for value in scalars]
        different = list(dict.fromkeys([*texts, *turns]))
        longest = max(map(len, different), default=0)
        self.name = name
        self.rows = len(turns) + sum(map(bool, lists))
        self.filled = len(values) + len(turns)
        self.most = max(map(len, lists), default=0)
        self.distinct = len(different)
        self.values = different[: MAX_CHOICES + 1]
        few = self.distinct <= MAX_CHOICES and longest <= MAX_CHOICE_LENGTH
        self.mean_words = sum(len(units(text)) for text in texts) / max(1, self.filled)
        self.numbers, self.unclear = _numbers(scalars, Numbers(lambda: scalars, delimiter, decimal))
        ticks = [number * _TICKS for number in self.numbers]
        exact = all(tick == tick.to_integral_value() for tick in ticks)
        self.step = Decimal(gcd(*map(int, ticks))) / _TICKS if exact else None
        self.kind: Kind = "choice" if few and self.distinct < self.filled else "text"
        if len(turns) == self.filled:
            self.kind = "turns" if turns else "empty"
        elif len(scalars) < len(values):
            self.kind = "other"
        elif len(self.numbers) == self.filled:
            self.kind = "number"
        self.is_text = self.kind in ("text", "choice")
        self.may_be_label = self.kind == "number" or (self.is_text and few)


def _numbers(values: Iterable[object], reader: Numbers) -> tuple[list[Decimal], bool]:
    """Return the numbers among values, and whether one of them can be read in two ways."""
    numbers, unclear = list[Decimal](), False
    for value in values:
        try:
            number = reader.read(value)
        except AmbiguousNumberError:
            number, unclear = readings(str(value))[0], True
        if number is not None and number.adjusted() < MAX_DIGITS:
            numbers.append(number)
    return numbers, unclear


def columns_of(table: Table) -> tuple[dict[str, Column], int]:
    """Describe the columns of a table and count its rows; nested objects become paths of --map."""
    cells: dict[str, list[object]] = {}
    count = 0
    for _, row in table.rows():
        count += 1
        for name, cell in flattened(row):
            cells.setdefault(name, []).append(cell)
    how = (table.delimiter, table.decimal)
    return {name: Column(name, column, *how) for name, column in cells.items()}, count


def flattened(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the leaves of a row: `a.b` of objects, `a.*.b` of a list of them, then `a.*.b.0.c`.

    Answers that were cancelled, discarded or not given yet are left out. A result of Label Studio
    is named after its control, `annotations.*.result.quality.value.rating`.
    """
    for name, cell in row.items():
        if not set(name.split(".")) & NO_ANSWERS:
            yield from _leaves(name, _answered(cell, row.get(f"{name}.status")), False, 0)


def _answered(cell: object, states: object) -> object:
    """Remove from a cell of Argilla's flat export the answers that do not count.

    Their statuses are in a column of their own.
    """
    cell, states = parsed(cell), parsed(states)
    if not (isinstance(cell, list) and isinstance(states, list) and len(cell) == len(states)):
        return cell
    pairs = zip(cell, states, strict=True)
    return [answer for answer, state in pairs if not status_of({"status": state})]


def _leaves(name: str, cell: object, starred: bool, depth: int) -> Iterator[tuple[str, object]]:
    """Yield the leaves below a path; `starred`: it has passed the list of raters."""
    cell = parsed(cell)
    if depth >= MAX_DEPTH or is_turns(cell) or not cell:
        yield name, cell
    elif isinstance(cell, dict):
        for key, inner in cell.items():
            yield from _leaves(f"{name}.{key}", inner, starred, depth + 1)
    elif starred and name.endswith(".result") and isinstance(cell, list):
        for answer in cell:
            control = str(answer.get("from_name") or 0) if isinstance(answer, dict) else "0"
            yield from _leaves(f"{name}.{control}", answer, starred, depth + 1)
    elif starred and isinstance(cell, list):  # a list of one rater: its first item
        yield from _leaves(f"{name}.0", cell[0], starred, depth + 1)
    elif isinstance(cell, list) and all(isinstance(answer, dict) for answer in cell):
        # The first list on a path: one item per rater, whose leaves are joined.
        together: dict[str, list[object]] = {}
        for answer in (answer for answer in cell if not status_of(answer)):
            for path, inner in _leaves(f"{name}.*", answer, True, depth + 1):
                together.setdefault(path, []).append(inner)
        yield from together.items()
    else:
        yield name, cell


def is_turns(cell: object) -> TypeGuard[list[dict[str, object]]]:
    """Return whether a cell is a conversation: turns of role and content, or of from and value."""
    if not isinstance(cell, list) or not cell:
        return False
    turns = [set(turn) if isinstance(turn, dict) else set() for turn in cell]
    return all({"role", "content"} <= turn or {"from", "value"} <= turn for turn in turns)
