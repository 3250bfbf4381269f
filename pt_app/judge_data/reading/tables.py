"""Files of labels as rows: CSV, TSV, JSON, JSON Lines, Parquet, packed or not, or a Hub dataset.

What was recognised (delimiter, byte-order mark, quoting) is noted. What cannot be read exactly is
refused with its place.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pt_app.core.errors import UserError
from pt_app.core.files import AS_ROWS, parse_json, shown
from pt_app.core.records import Place, one_line
from pt_app.judge_data.options import Reading
from pt_app.judge_data.reading.files import open_bytes, refuse_other_content, split_member
from pt_app.judge_data.rows import Row

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Rows = Iterator[tuple[Place, Row]]
Lines = Callable[[], Iterator[str]]
"""Opens the file again and returns its lines, each with its line end."""

TABLES = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
ENDINGS = (*TABLES, ".json", *LINES, ".parquet", *SPREADSHEETS, ".gz", ".zip", ".tar", ".tgz")
# Names under which programs wrap a list of rows in an object.
WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples")
DELIMITERS = {",": ",", ";": ";", "tab": "\t", "|": "|"}
SNIFFED_LINES = 50
MAX_FIELD = 1 << 30  # characters; the default of csv, 128 KiB, is less than a long document
_ENCLOSED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
# Spreadsheets in countries with a decimal comma name their delimiter in a line of its own.
_NAMED = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
# Parts of the messages of Python's reader, and what they mean for the file.
_CSV_PROBLEMS = {
    "end of data": "a quote is opened and never closed",
    "new-line character": "a carriage return is outside quotes",
    "expected after": "text follows a closing quote",
}


@dataclass(frozen=True)
class Table:
    """Rows of a file; `rows` reads them again from the start, each with its place.

    `columns` of JSON are the keys of its first rows. `notes` describe what was recognised.
    `delimiter` is that of a CSV file. `decimal` is the decimal sign that was named, "point" or
    "comma": see `numbers.Numbers`.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Rows]
    notes: tuple[str, ...] = ()
    delimiter: str = ""
    decimal: str = ""


def open_table(source: str, reading: Reading | None = None) -> Table:
    """Open a file by its ending, a member of an archive (`archive.tar.gz::*.tsv`), or a Hub id.

    A Hub id is `owner/name` or `owner/name::config`. Values of CSV files are texts, those of other
    files keep their types. JSON Lines, CSV and Parquet stream; a JSON list is read whole.

    Raises:
        UserError: The file cannot be read. `rows` raises it where the problem is further on.
    """
    reading = reading or Reading()
    path, member = split_member(source)
    named = str(path).count("/") == 1 and path.suffix.lower() not in ENDINGS
    if path.exists():
        table = _file_table(path, member, reading)
    elif named and source[0] not in "./~":
        table = _hub_table(source, reading)
    else:
        raise UserError(f"{path} is not there: correct it (a Hub dataset is named owner/name)")
    return _stripped(replace(table, decimal=reading.decimal))


def _file_table(path: Path, member: str, reading: Reading) -> Table:
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{path} is a folder: name one or more of its files ({names})")
    ending = Path((member or path.name).lower().removesuffix(".gz")).suffix
    if ending in SPREADSHEETS:
        raise UserError(f"{path} is a spreadsheet: save it as CSV (UTF-8) and import that")
    refuse_other_content(path, member, ending, reading.encoding)
    if ending == ".parquet":
        table = _parquet_table(path, member)
    elif ending in (".json", *LINES):
        table = _json_table(path, member, reading)
    elif ending in TABLES:
        table = _csv_table(path, member, reading, tab=ending == ".tsv")
    else:
        use = "use .csv, .tsv, .json, .jsonl, .parquet, .gz of these, or archive.tar.gz::member"
        raise UserError(f"{path}: unknown ending {ending or '(none)'}: {use}")
    if not table.columns or next(table.rows(), None) is None:
        raise UserError(f"{path} holds no rows: name a file with rows")
    return table


def _stripped(table: Table) -> Table:
    """Remove spaces around column names, whatever the kind of file.

    Nobody sees such a space, and no flag can name it. Raises UserError for two columns of one name:
    a row would hold the cell of one of them.
    """
    names = tuple(name.strip() or name for name in table.columns)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problem = f"two columns are called {twice[0]}, but for spaces around the name"
        raise UserError(f"{table.name}: {problem}: rename one")
    if names == table.columns:
        return table

    def rows() -> Rows:
        for place, value in table.rows():
            yield place, {name.strip() or name: cell for name, cell in value.items()}

    return replace(table, columns=names, rows=rows)


# --- text ---


def _lines(path: Path, member: str, encoding: str) -> Iterator[str]:
    """Yield the lines of a text, each with its own line end: \\n alone ends one."""
    try:
        with open_bytes(path, member) as binary:
            yield from io.TextIOWrapper(binary, encoding, newline="\n")
    except UnicodeError as error:
        with open_bytes(path, member) as binary:
            content = binary.read()
        where = f"({error})"  # such as UTF-16 without its mark, which names no byte
        try:
            content.decode(encoding)
        except UnicodeDecodeError as whole:  # the place of `error` is one within a chunk
            where = f"at byte {whole.start} (0x{content[whole.start]:02x})"
        except UnicodeError:
            pass
        remedy = "save it as UTF-8, or name its encoding, such as --encoding cp1252"
        raise UserError(f"{path} is not {encoding.upper()} {where}: {remedy}") from error


def _encoding(path: Path, member: str, given: str) -> tuple[str, tuple[str, ...]]:
    """Return the encoding, a byte-order mark before the given one, and the note about it."""
    with open_bytes(path, member) as binary:
        start = binary.read(4)
    if not start:
        raise UserError(f"{path} is empty: name a file with rows")
    if (marked := json.detect_encoding(start)) in ("utf-8-sig", "utf-16", "utf-32"):
        return marked, (f"byte-order mark of {marked.removesuffix('-sig').upper()}",)
    if not given:
        return "utf-8", ()
    try:
        "".encode(given)  # refuses a codec that does not encode text, such as base64
        name = codecs.lookup(given).name
    except (LookupError, ValueError) as error:
        raise UserError(f"--encoding {given} is not known: try utf-8, cp1252 or latin-1") from error
    return name, (f"encoding {given}",)


# --- CSV and its variants ---


def _csv_table(path: Path, member: str, reading: Reading, tab: bool) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)

    def lines() -> Iterator[str]:
        return _lines(path, member, encoding)

    dialect = recognise(path, lines, reading.delimiter, reading.quoting, tab)
    recognised = " and ".join(dialect.notes())
    head, first = next(records(path, lines(), dialect), (0, []))
    given = [name for name in reading.header.split(",") if name]
    names = [name.strip() for name in given or first]
    for number, name in enumerate(names):
        if name and name not in names[:number]:
            continue
        problem = f"two columns are called {name}" if name else f"column {number + 1} has no name"
        remedy = "give each its own name, or name all with --header if there is no header line"
        raise UserError(f"{path}, line {head}: {problem}: {remedy}")

    def rows() -> Rows:
        numbered = records(path, lines(), dialect)
        for line, values in itertools.islice(numbered, 0 if given else 1, None):
            row: Row = dict(zip(names, values, strict=False))
            if len(values) != len(names):
                problem = f"{len(values)} fields, but {len(names)} columns"
                remedy = f"correct it, or overrule {recognised} with --delimiter or --quoting"
                row = reading.refuse(UserError(f"{path}, line {line}: {problem}: {remedy}"))
            yield Place(path, line, lines=True), row

    notes = (*notes, *dialect.notes())
    return Table(shown(path.name), tuple(names), rows, notes, delimiter=dialect.delimiter)


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
        problem = next((meaning for part, meaning in _CSV_PROBLEMS.items() if part in text), text)
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


# --- JSON ---


def _json_table(path: Path, member: str, reading: Reading) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)
    filled = (line for line in _lines(path, member, encoding) if line.strip())
    whole = _is_whole(list(itertools.islice(filled, 2)))
    values = _json_list(path, "".join(_lines(path, member, encoding))) if whole else []

    def rows() -> Rows:
        lines = _json_lines(path, _lines(path, member, encoding), reading)
        for number, value in enumerate(values, start=1) if whole else lines:
            place = Place(path, number, lines=not whole)
            if not isinstance(value, dict):
                remedy = "write {...} for each row"
                value = reading.refuse(place.error("", "a row must be an object", remedy))
            yield place, value

    # A row may be the first to have a column, so that all rows are read for their names.
    columns = dict.fromkeys(key for _, row in rows() for key in row)
    notes = (*notes, "JSON" if whole else "JSON Lines")
    return Table(shown(path.name), tuple(columns), rows, notes)


def _is_whole(start: Sequence[str]) -> bool:
    """Return whether a file is one JSON value, by its first two lines that are not blank."""
    if not start or start[0].lstrip().startswith("["):
        return bool(start)
    try:
        first = json.loads(start[0])
    except (ValueError, RecursionError):
        return True
    return len(start) == 1 and bool(_wrapped(first))


def _json_list(path: Path, text: str) -> list[object]:
    value: object = parse_json(text, path, **AS_ROWS)
    lists = [value] if isinstance(value, list) else _wrapped(value)
    if isinstance(value, dict) and not lists:
        return [value]
    if len(lists) != 1:
        raise UserError(
            f"{path} does not hold one list of rows: write [{{...}}, ...] or JSON Lines"
        )
    return lists[0]


def _wrapped(value: object) -> list[list[object]]:
    """Return the lists of rows in an object around them."""
    inner = [value.get(name) for name in WRAPPERS] if isinstance(value, dict) else []
    return [rows for rows in inner if isinstance(rows, list)]


def _json_lines(path: Path, lines: Iterator[str], reading: Reading) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line.rstrip("\r\n"), path, number, **AS_ROWS)
        except UserError as error:
            yield number, reading.refuse(error)


# --- Parquet and the Hub ---


@contextmanager
def _parquet_file(path: Path) -> Iterator["ParquetFile"]:
    """Open a Parquet file; raise UserError where it is truncated or damaged."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        # Python opens the file, because Arrow takes no path that is not UTF-8.
        with open(path, "rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}): fetch it again") from error
    except OverflowError as error:  # Python's dates end with the year 9999
        remedy = "write its dates within the years 1 to 9999, or as text"
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


def _parquet_table(path: Path, member: str) -> Table:
    if member or path.suffix.lower() == ".gz":
        raise UserError(f"{path}: Parquet is packed as it is: unpack it first, and name the file")

    def rows() -> Rows:
        with _parquet_file(path) as file:
            batches = file.iter_batches(batch_size=1024)
            values = (value for batch in batches for value in batch.to_pylist())
            for number, value in enumerate(values, start=1):
                yield Place(path, number, lines=False), _decoded(value)

    with _parquet_file(path) as file:
        names = file.schema_arrow.names
    return Table(shown(path.name), tuple(names), rows, ("Parquet",))


def _decoded(row: Row) -> Row:
    """Decode bytes as UTF-8 at any depth: Hive, Impala and old Spark write texts as binary.

    Bytes that are not UTF-8, such as images, stay: whoever reads such a cell refuses it.
    """

    def decoded(cell: object) -> object:
        if isinstance(cell, bytes):
            with suppress(UnicodeDecodeError):
                return cell.decode("utf-8")
        if isinstance(cell, list | tuple):  # a map is a list of pairs
            return [decoded(inner) for inner in cell]
        return _decoded(cell) if isinstance(cell, dict) else cell

    return {name: decoded(cell) for name, cell in row.items()}


def _hub_table(source: str, reading: Reading) -> Table:
    import datasets

    split, (name, _, config) = reading.hub_split, source.partition("::")

    @contextmanager
    def reached() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the client of the Hub raises errors of every kind
            problem = f"a Hub dataset with rows that can be read ({one_line(str(error))[:200]})"
            remedy = "correct the name or --hub_split, or download its Parquet file and import that"
            raise UserError(f"{name} is neither a file nor {problem}: {remedy}") from error

    with reached():
        stream = datasets.load_dataset(name, config or None, split=split, streaming=True)
        first = next(iter(stream))

    def rows() -> Rows:
        with reached():  # the network may fail at any row
            for number, value in enumerate(stream, start=1):
                yield Place(Path(name), number, lines=False), _decoded(value)

    return Table(name, tuple(first), rows, (f"Hub dataset, split {split}",))
