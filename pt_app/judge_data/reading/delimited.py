"""Reads CSV and its variants as records: which delimiter, whether quotes enclose fields, where.

Everything is recognised from the lines themselves and reported, so that the user can overrule it.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pt_app.core.errors import UserError

Lines = Callable[[], Iterator[str]]
"""Opens the file again and returns its lines, each with its line end."""

DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
SNIFFED_LINES = 50
MAX_FIELD = 1 << 30  # characters; the default of csv, 128 KiB, is less than a long document
_ENCLOSED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
# Spreadsheets in countries with a decimal comma name their delimiter in a line of its own.
_NAMED = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
# Parts of the messages of Python's reader, and what they mean for the file.
_PROBLEMS = {
    "end of data": "a quote is opened and never closed",
    "new-line character": "a carriage return is outside quotes",
    "expected after": "text follows a closing quote",
}


@dataclass(frozen=True)
class Dialect:
    """How the records of a file are written. `skip` lines precede the header."""

    delimiter: str
    quoted: bool
    line_end: str = "\n"
    skip: int = 0

    def notes(self) -> tuple[str, str]:
        """Describe what was recognised."""
        shown = "tab" if self.delimiter == "\t" else self.delimiter
        return f"delimiter {shown}", f"quoting {'on' if self.quoted else 'off'}"


def recognise(path: Path, lines: Lines, delimiter: str, quoting: str, tab: bool) -> Dialect:
    """Recognise the dialect of a file from its lines; `delimiter` and `quoting` overrule them.

    Raises UserError for a delimiter of several characters, and for lines that end in carriage
    returns alone.
    """
    delimiter = DELIMITERS.get(delimiter, delimiter)
    if len(delimiter) > 1:
        raise UserError(f"--delimiter {delimiter!r} is not one character: use , ; | or tab")
    sample = list(itertools.islice(lines(), SNIFFED_LINES))
    if len(sample) == 1 and "\r" in sample[0].rstrip("\r\n"):
        raise UserError(f"{path}: its lines end in carriage returns alone: save it with line feeds")
    named = _NAMED.fullmatch(sample[0]) if sample else None
    skip = 1 if named else 0
    if not delimiter:
        delimiter = named[1] if named else "\t" if tab else _sniffed(sample)
    line_end = "\r\n" if sample[skip : skip + 1] and sample[skip].endswith("\r\n") else "\n"

    def kept() -> Iterator[str]:
        return itertools.islice(lines(), skip, None)

    quoted = quoting == "on" or (quoting == "auto" and _quotes_enclose(kept, delimiter))
    return Dialect(delimiter, quoted, line_end, skip)


def records(path: Path, lines: Iterator[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each record with the line at which it starts; an empty line is none.

    Raises UserError, with that line, for a quote left open and for text after a closing one.
    """
    kept = itertools.islice(lines, dialect.skip, None)
    if not dialect.quoted:
        for number, line in enumerate(kept, start=dialect.skip + 1):
            if text := line.removesuffix(dialect.line_end).removesuffix("\n"):
                yield number, text.split(dialect.delimiter)
        return
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(kept, delimiter=dialect.delimiter, strict=True)
    start = dialect.skip + 1
    try:
        for values in reader:
            if values:
                yield start, values
            start = dialect.skip + reader.line_num + 1
    except csv.Error as error:
        text = str(error)
        problem = next((meaning for part, meaning in _PROBLEMS.items() if part in text), text)
        remedy = "correct it, or say --quoting off if quote marks are text"
        raise UserError(f"{path}, line {start}: {problem}: {remedy}") from error


def _sniffed(lines: Sequence[str]) -> str:
    """Return the delimiter with which most lines have as many fields as the first one.

    Quotes may enclose fields or be text, whichever fits better. Among equally good delimiters the
    one with the most fields is taken; a file of one column has a comma.
    """

    def fitness(delimiter: str) -> tuple[float, int]:
        fits = (_fit(lines, delimiter, quoted) for quoted in (False, True))
        return max((fit.share, fit.width) if fit.width > 1 else (0.0, 0) for fit in fits)

    return max(DELIMITERS.values(), key=fitness)


def _quotes_enclose(lines: Lines, delimiter: str) -> bool:
    """Return whether quotes enclose fields, rather than being part of their texts.

    In comma and semicolon files they do (RFC 4180), and under a quoted header. Other files are
    written either way: the reading by which more records are as wide as the first one is right.
    Where both fit, quotes are text if they would join lines that are whole rows, or if one stands
    in a field that is not enclosed; else they enclose if a program had a reason to write them.
    """
    header = next(_plain(lines(), delimiter), [])
    if delimiter in ",;" or all(map(_ENCLOSED.fullmatch, header)):
        return True
    plain, quoted = (_fit(lines(), delimiter, quoted) for quoted in (False, True))
    if quoted.share != plain.share or quoted.records != plain.records:
        return quoted.share > plain.share
    marked = [field for fields in _plain(lines(), delimiter) for field in fields if '"' in field]
    if not all(map(_ENCLOSED.fullmatch, marked)):
        return False
    return any('""' in field[1:-1] or "," in field for field in marked)


class _Fit(NamedTuple):
    """How well a reading fits: the share of records as wide as the first, that width, records."""

    share: float
    width: int
    records: int


def _fit(lines: Iterable[str], delimiter: str, quoted: bool) -> _Fit:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    widths, broken = list[int](), 0
    try:
        widths.extend(len(row) for row in (reader if quoted else _plain(lines, delimiter)) if row)
    except csv.Error:
        broken = 1
    if not widths:
        return _Fit(0.0, 0, 0)
    count = len(widths) + broken
    return _Fit(widths.count(widths[0]) / count, widths[0], count)


def _plain(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    for line in lines:
        if text := line.rstrip("\r\n"):
            yield text.split(delimiter)
