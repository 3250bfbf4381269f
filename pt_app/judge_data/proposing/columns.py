"""Describes the columns of an unknown file in one pass: their kinds, ranges and examples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import gcd
from typing import Any, Literal

from pt_app.core.words import units
from pt_app.judge_data.answers import status_of
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


@dataclass
class Column:
    """One column, or one path into nested JSON as --map names it (`a.b`, `a.*.b`).

    Attributes:
        written: Reads the numbers of the column.
        unclear: Whether a number can be read in two ways, and nothing tells which.
        rows: Rows in which the column says something.
        filled: Values in these rows.
        most: The most values in one cell; over 1 in a column of lists.
        ticks: The largest step of all numbers in millionths; None if they are finer.
        values: The first different values.
        seen: The hashes of all values.
    """

    name: str
    written: Numbers = field(default_factory=Numbers)
    unclear: bool = False
    rows: int = 0
    filled: int = 0
    most: int = 0
    turns: int = 0
    numbers: int = 0
    other: int = 0
    words: int = 0
    low: Decimal = Decimal("Infinity")
    high: Decimal = Decimal("-Infinity")
    ticks: int | None = 0
    values: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, cell: Any) -> None:
        """Add the cell of one row: a value, a list of values, or turns of a conversation."""
        cell = parsed(cell)
        if is_turns(cell):
            self.rows, self.turns, self.filled = self.rows + 1, self.turns + 1, self.filled + 1
            self._count(str(cell[-1].get("content", cell[-1].get("value"))))
            return
        cells = cell if isinstance(cell, list) else [cell]
        values = [value for value in cells if not is_empty(value)]
        self.rows += bool(values)
        self.most = max(self.most, len(values))
        self.filled += len(values)
        for value in values:
            if isinstance(value, list | dict | bytes):
                self.other += 1
            else:
                self._add_value(value)

    def _add_value(self, value: Any) -> None:
        text = str(value)
        self._count(text)
        self.words += len(units(text))
        try:
            number = self.written.read(value)
        except AmbiguousNumberError:
            self.unclear = True
            number = readings(text)[0]
        if number is None or number.adjusted() >= MAX_DIGITS:
            return
        self.numbers += 1
        self.low, self.high = min(self.low, number), max(self.high, number)
        scaled = number * _TICKS
        exact = self.ticks is not None and scaled == scaled.to_integral_value()
        self.ticks = gcd(self.ticks or 0, int(scaled)) if exact else None

    def _count(self, text: str) -> None:
        before = self.distinct
        self.seen.add(hash(text))
        if self.distinct > before and len(self.values) <= MAX_CHOICES:
            self.values.append(text)

    @property
    def kind(self) -> Kind:
        """The kind of its cells: numbers, a few short values, texts, conversations, or other."""
        if not self.filled:
            return "empty"
        if self.turns == self.filled:
            return "turns"
        if self.other:
            return "other"
        if self.numbers == self.filled:
            return "number"
        return "choice" if self.few and self.distinct < self.filled else "text"

    @property
    def few(self) -> bool:
        """Whether it holds a few short values, as a column of labels does."""
        return self.distinct <= MAX_CHOICES and max(map(len, self.values)) <= MAX_CHOICE_LENGTH

    @property
    def step(self) -> Decimal | None:
        """The largest step of which all numbers are multiples; None if finer than a millionth."""
        return None if self.ticks is None else Decimal(self.ticks) / _TICKS

    @property
    def distinct(self) -> int:
        """The number of different values."""
        return len(self.seen)

    @property
    def mean_words(self) -> float:
        return self.words / max(1, self.filled)


def columns_of(table: Table) -> tuple[dict[str, Column], int]:
    """Describe the columns of a table and count its rows; nested objects become paths of --map."""

    def written(name: str) -> Numbers:
        def cells() -> Iterator[Any]:
            for _, row in table.rows():
                for cell in (cell for leaf, cell in flattened(row) if leaf == name):
                    yield from parsed(cell) if isinstance(parsed(cell), list) else [cell]

        return Numbers(cells, table.delimiter, table.decimal)

    columns: dict[str, Column] = {}
    count = 0
    for _, row in table.rows():
        count += 1
        for name, cell in flattened(row):
            if name not in columns:
                columns[name] = Column(name, written(name))
            columns[name].add(cell)
    return columns, count


def flattened(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a row: `a.b` of objects, `a.*.b` of a list of them, then `a.*.b.0.c`.

    Answers that were cancelled, discarded or not given yet are left out. A result of Label Studio
    is named after its control, `annotations.*.result.quality.value.rating`.
    """
    for name, cell in row.items():
        if not set(name.split(".")) & NO_ANSWERS:
            yield from _leaves(name, _answered(cell, row.get(f"{name}.status")), False, 0)


def _answered(cell: Any, states: Any) -> Any:
    """Remove from a cell of Argilla's flat export the answers that do not count.

    Their statuses stand in a column of their own.
    """
    cell, states = parsed(cell), parsed(states)
    if not (isinstance(cell, list) and isinstance(states, list) and len(cell) == len(states)):
        return cell
    pairs = zip(cell, states, strict=True)
    return [answer for answer, state in pairs if not status_of({"status": state})]


def _leaves(name: str, cell: Any, starred: bool, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the leaves below a path; `starred` tells that it already passed the list of raters."""
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
        together: dict[str, list[Any]] = {}
        for answer in (answer for answer in cell if not status_of(answer)):
            for path, inner in _leaves(f"{name}.*", answer, True, depth + 1):
                together.setdefault(path, []).append(inner)
        yield from together.items()
    else:
        yield name, cell


def is_turns(cell: Any) -> bool:
    """Return whether a cell is a conversation: turns of role and content, or of from and value."""
    if not isinstance(cell, list) or not cell:
        return False
    turns = [set(turn) if isinstance(turn, dict) else set() for turn in cell]
    return all({"role", "content"} <= turn or {"from", "value"} <= turn for turn in turns)
