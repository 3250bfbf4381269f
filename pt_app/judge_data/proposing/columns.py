"""What stands in the columns of a stranger's file: kinds, ranges, examples, in one pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import gcd
from typing import Any, Literal

from pt_app.core.words import units
from pt_app.judge_data.answers import status_of
from pt_app.judge_data.cells import is_empty, parsed
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers, readings
from pt_app.judge_data.reading.tables import Table

Kind = Literal["empty", "number", "choice", "text", "turns", "other"]

# A column of more different values, or of longer ones, holds no labels but texts.
MOST_CHOICES = 24
LONGEST_CHOICE = 40
DEEPEST = 6
_TICKS = 10**6
MAX_DIGITS = 15  # of a label before its decimals; longer ones are identifiers
# What annotation tools keep beside the answers: machines' guesses, and answers not given yet.
NO_ANSWERS = ("predictions", "drafts", "suggestions", "suggestion")


@dataclass
class Column:
    """One column, or one path into nested JSON as --map names it (`a.b`, `a.*.b`).

    `rows` say something in it, with `filled` values, at most `most` in a cell: over 1 in a list.
    `values` are the first different ones; `seen` are the hashes of all. `written` reads its
    numbers; `unclear` says that some read in two ways and nothing tells which.
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
    low: Decimal = field(default_factory=lambda: Decimal("Infinity"))
    high: Decimal = field(default_factory=lambda: Decimal("-Infinity"))
    ticks: int | None = 0
    values: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, cell: Any) -> None:
        """Take in the cell of one row: a value, a list of them, or turns of a conversation."""
        cell = parsed(cell)
        if is_turns(cell):
            self.rows, self.turns, self.filled = self.rows + 1, self.turns + 1, self.filled + 1
            self._count(str(cell[-1].get("content", cell[-1].get("value"))))
            return
        values = [one for one in (cell if isinstance(cell, list) else [cell]) if not is_empty(one)]
        self.rows += bool(values)
        self.most = max(self.most, len(values))
        for one in values:
            self.filled += 1
            self._add_value(one)

    def _add_value(self, value: Any) -> None:
        if isinstance(value, list | dict | bytes):
            self.other += 1
            return
        text = str(value)
        self._count(text)
        self.words += len(units(text))
        number = self._read(value)
        if number is None or number.adjusted() >= MAX_DIGITS:
            return
        self.numbers += 1
        self.low, self.high = min(self.low, number), max(self.high, number)
        scaled = number * _TICKS
        exact = self.ticks is not None and scaled == scaled.to_integral_value()
        self.ticks = gcd(self.ticks or 0, int(scaled)) if exact else None

    def _read(self, value: Any) -> Decimal | None:
        try:
            return self.written.read(value)
        except AmbiguousNumberError:
            self.unclear = True
            return readings(str(value))[0]

    def _count(self, text: str) -> None:
        known = len(self.seen)
        self.seen.add(hash(text))
        if len(self.seen) > known and len(self.values) <= MOST_CHOICES:
            self.values.append(text)

    @property
    def kind(self) -> Kind:
        """Of its cells: numbers, a few short values, texts, conversations, or something else."""
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
        """Whether it holds a few short values, as labels are."""
        return self.distinct <= MOST_CHOICES and max(map(len, self.values)) <= LONGEST_CHOICE

    @property
    def step(self) -> Decimal | None:
        """The largest step of which all numbers are multiples; None if finer than a millionth."""
        return None if self.ticks is None else Decimal(self.ticks) / _TICKS

    @property
    def distinct(self) -> int:
        """How many different values there are."""
        return len(self.seen)

    @property
    def mean_words(self) -> float:
        return self.words / max(1, self.filled)


def columns_of(table: Table) -> tuple[dict[str, Column], int]:
    """Take in all rows, in one pass, and count them; nested objects become paths as of --map."""

    def written(name: str) -> Numbers:
        def cells() -> Iterator[Any]:
            for _, row in table.rows():
                for cell in (cell for leaf, cell in flattened(row) if leaf == name):
                    yield from parsed(cell) if isinstance(parsed(cell), list) else [cell]

        return Numbers(cells, delimiter=table.delimiter, decimal=table.decimal)

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
    """Give the leaves of a row: `a.b` of objects, `a.*.b` of a list of them, then `a.*.b.0.c`.

    Answers that were cancelled, discarded or not given yet are left out; a result of Label Studio
    is called after its control, `annotations.*.result.quality.value.rating`.
    """
    for name, cell in row.items():
        if not set(name.split(".")) & set(NO_ANSWERS):
            yield from _leaves(name, _answered(cell, row.get(f"{name}.status")), False, 0)


def _answered(cell: Any, states: Any) -> Any:
    """Leave out the answers of Argilla's flat export whose status, in a column beside, is none."""
    cell, states = parsed(cell), parsed(states)
    if not (isinstance(cell, list) and isinstance(states, list) and len(cell) == len(states)):
        return cell
    pairs = zip(cell, states, strict=True)
    return [one for one, state in pairs if not status_of({"status": state})]


def _leaves(name: str, cell: Any, starred: bool, depth: int) -> Iterator[tuple[str, Any]]:
    cell = parsed(cell)
    if depth >= DEEPEST or is_turns(cell) or not cell:
        yield name, cell
    elif isinstance(cell, dict):
        for key, inner in cell.items():
            yield from _leaves(f"{name}.{key}", inner, starred, depth + 1)
    elif starred and name.endswith(".result") and isinstance(cell, list):
        for one in cell:
            control = str(one.get("from_name") or 0) if isinstance(one, dict) else "0"
            yield from _leaves(f"{name}.{control}", one, starred, depth + 1)
    elif isinstance(cell, list) and (starred or all(isinstance(one, dict) for one in cell)):
        # A rater's own list: its first item. The first list on a path: one item a rater.
        if starred:
            yield from _leaves(f"{name}.0", cell[0], starred, depth + 1)
            return
        together: dict[str, list[Any]] = {}
        for one in cell:
            for path, inner in () if status_of(one) else _leaves(f"{name}.*", one, True, depth + 1):
                together.setdefault(path, []).append(inner)
        yield from together.items()
    else:
        yield name, cell


def is_turns(cell: Any) -> bool:
    """Whether a cell is a conversation: turns of role and content, or of from and value."""
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(
            isinstance(one, dict)
            and ({"role", "content"} <= set(one) or {"from", "value"} <= set(one))
            for one in cell
        )
    )


def as_number(text: str) -> Decimal | None:
    """Read a number with decimal point, else with a comma; None for any other text."""
    point, comma = readings(text)
    return comma if point is None else point
