"""The blocks of a page, before they are written as Markdown or HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Escapes a foreign name for a line, so that it reads as these characters and not as markup.
Safe = Callable[[object], str]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Lines:
    """A list of short lines."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table whose first column names the rows. `heat`: its numbers are counts of a matrix."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture that only HTML shows: how its SVG is drawn, and what it shows in words."""

    draw: Callable[[], str]
    says: str


@dataclass(frozen=True)
class Texts:
    """A row's own texts by name, below a line with its name and verdicts."""

    name: str
    says: str
    fields: Sequence[tuple[str, str]]


Block = Words | Lines | Grid | Chart | Texts


@dataclass(frozen=True)
class Section:
    """A title and the blocks below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
