"""What a page is made of, before it is Markdown or HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# How a foreign name is written into a line, so that it reads as these characters and no markup.
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
    """A picture that only HTML shows: how its SVG is made, and what it says in words."""

    draw: Callable[[], str]
    says: str


@dataclass(frozen=True)
class Texts:
    """A row's own texts, by name, below a line that says which row it is."""

    name: str
    says: str
    fields: Sequence[tuple[str, str]]


Block = Words | Lines | Grid | Chart | Texts


@dataclass(frozen=True)
class Section:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
