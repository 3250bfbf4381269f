"""Files of labels as rows: CSV, TSV, JSON, JSON Lines, Parquet, packed or not, or a Hub dataset.

What was recognised (delimiter, byte-order mark, quoting) is noted; what cannot be read to the
letter is refused with its place.
"""

import codecs
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pt_app.core.errors import UserError
from pt_app.core.files import shown
from pt_app.core.records import Place
from pt_app.judge_data.reading.archives import open_bytes, split_member
from pt_app.judge_data.reading.content import refuse_other_content
from pt_app.judge_data.reading.delimited import recognise, records

Quoting = Literal["auto", "on", "off"]
Rows = Iterator[tuple[Place, dict[str, Any]]]

TABLES = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
KNOWN = (*TABLES, ".json", *LINES, ".parquet", *SPREADSHEETS, ".gz", ".zip", ".tar", ".tgz")
# Under these names programs wrap a list of rows in an object.
WRAPPERS = ("data", "rows", "examples", "instances", "items", "records", "samples")
FIRST_ROWS = 50
# The longer mark first: that of UTF-16 is the start of UTF-32's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, where that is not recognised: see `judge data import --help`.

    `stand_in` gives what stands for a row that cannot be read; without it such a row is an error.
    """

    encoding: str = ""
    delimiter: str = ""
    quoting: Quoting = "auto"
    header: Sequence[str] = ()
    decimal: str = ""
    hub_split: str = "train"
    stand_in: Callable[[UserError], dict[str, Any]] | None = None

    def refuse(self, error: UserError) -> dict[str, Any]:
        """Raise the error of a row that cannot be read, or give its stand-in."""
        if self.stand_in is None:
            raise error
        return self.stand_in(error)


def names_of(header: str) -> tuple[str, ...]:
    """Split the names of --header, by commas."""
    return tuple(name for name in header.split(",") if name)


@dataclass(frozen=True)
class Table:
    """Rows of a file. `notes` say what was recognised; `rows` reads them anew, each with its place.

    `columns` of JSON are the keys of its first rows. `delimiter` is that of a CSV file, `decimal`
    the decimal sign that was named ("point" or "comma"): see `numbers.Numbers`.
    """

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Rows]
    notes: tuple[str, ...] = ()
    delimiter: str = ""
    decimal: str = ""


def open_table(source: str, reading: Reading | None = None) -> Table:
    """Open a file by its ending, a member of an archive (`archive.tar.gz::*.tsv`), or a Hub id.

    A Hub id is `owner/name`, or `owner/name::config`. Values of CSV files are texts, those of the
    others what they are there. JSON Lines, CSV and Parquet stream; a JSON list is read whole.
    Raises UserError for what cannot be read; here, or from `rows` where the fault lies further on.
    """
    reading = reading or Reading()
    if reading.decimal not in ("", "point", "comma"):
        raise UserError(f"--decimal {reading.decimal}: write point (7.5) or comma (7,5)")
    return _stripped(replace(_opened(source, reading), decimal=reading.decimal))


def _stripped(table: Table) -> Table:
    """Read the names of columns without blanks around them, whatever the kind of file.

    Nobody sees such a blank, and no flag can name it. Raises UserError where two become one name.
    """
    names = tuple(name.strip() or name for name in table.columns)
    if names == table.columns:
        return table
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{table.name}: two columns are called {twice[0]}, but for blanks around the name: "
            "rename one"
        )

    def rows() -> Rows:
        for place, value in table.rows():
            yield place, {name.strip() or name: cell for name, cell in value.items()}

    return replace(table, columns=names, rows=rows)


def _opened(source: str, reading: Reading) -> Table:
    path, member = split_member(source)
    if not path.exists():
        if _may_be_hub_id(str(path)) and source[0] not in "./~":
            return _hub_table(source, reading)
        raise UserError(
            f"{path} is not there: correct the path (a Hub dataset is named owner/name)"
        )
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{path} is a folder: name one or more of its files ({names})")
    name = (member or path.name).lower().removesuffix(".gz")
    ending = Path(name).suffix
    if ending in SPREADSHEETS:
        raise UserError(f"{path} is a spreadsheet: save it as CSV (UTF-8) and import that")
    refuse_other_content(path, member, ending, reading.encoding)
    if ending == ".parquet":
        return _parquet_table(path, member)
    if ending in (".json", *LINES):
        return _json_table(path, member, reading)
    if ending in TABLES:
        return _csv_table(path, member, reading, tab=ending == ".tsv")
    raise UserError(
        f"{path}: unknown ending {ending or '(none)'}: use .csv, .tsv, .json, .jsonl, .parquet, "
        ".gz of these, or archive.tar.gz::member"
    )


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and Path(name).suffix.lower() not in KNOWN


# --- text ---


def _lines(path: Path, member: str, encoding: str) -> Iterator[str]:
    """Yield the text's lines, each with its own line end: \\n alone ends one."""
    with open_bytes(path, member) as binary:
        if encoding.startswith(("utf-16", "utf-32")):  # their line ends are not the byte \n
            yield from io.StringIO(_decoded(binary.read(), path, encoding, 0), newline="\n")
            return
        at = 0
        for line in binary:
            yield _decoded(line, path, encoding if at == 0 else encoding.removesuffix("-sig"), at)
            at += len(line)


def _decoded(piece: bytes, path: Path, encoding: str, at: int) -> str:
    try:
        return piece.decode(encoding)
    except UnicodeDecodeError as error:
        byte = at + error.start
        raise UserError(
            f"{path} is not {encoding.upper()} at byte {byte} (0x{piece[error.start]:02x}): save "
            "it as UTF-8, or name its encoding, such as --encoding cp1252"
        ) from error


def _encoding(path: Path, member: str, given: str) -> tuple[str, tuple[str, ...]]:
    """Choose the encoding, a byte-order mark before what was given, and say it."""
    with open_bytes(path, member) as binary:
        start = binary.read(4)
    if not start:
        raise UserError(f"{path} is empty: name a file with rows")
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding, (f"byte-order mark of {encoding.removesuffix('-sig').upper()}",)
    if not given:
        return "utf-8", ()
    try:
        "".encode(given)  # refuses what is no encoding of texts, such as base64
        name = codecs.lookup(given).name
    except (LookupError, ValueError) as error:
        raise UserError(f"--encoding {given} is not known: try utf-8, cp1252 or latin-1") from error
    return name, (f"encoding {given}",)


# --- CSV ---


def _csv_table(path: Path, member: str, reading: Reading, tab: bool) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)

    def lines() -> Iterator[str]:
        return _lines(path, member, encoding)

    dialect = recognise(path, lines, reading.delimiter, reading.quoting, tab)
    said = " and ".join(dialect.notes())
    first = next(records(path, lines(), dialect), (0, []))
    names = [name.strip() for name in reading.header or first[1]]
    _check_header(path, names, first[0])

    def rows() -> Rows:
        numbered = records(path, lines(), dialect)
        for line, values in itertools.islice(numbered, 0 if reading.header else 1, None):
            row: dict[str, Any] = dict(zip(names, values, strict=False))
            if len(values) != len(names):
                error = UserError(
                    f"{path}, line {line}: {len(values)} fields, but {len(names)} columns: correct "
                    f"it, or overrule {said} with --delimiter or --quoting"
                )
                row = reading.refuse(error)
            yield Place(path, line, lines=True), row

    if next(rows(), None) is None:
        raise UserError(f"{path} holds no rows: name a file with a header line and rows")
    notes = (*notes, *dialect.notes())
    return Table(shown(path.name), tuple(names), rows, notes, delimiter=dialect.delimiter)


def _check_header(path: Path, names: Sequence[str], line: int) -> None:
    seen = set()
    for place, name in enumerate(names, start=1):
        if not name:
            raise UserError(
                f"{path}, line {line}: column {place} has no name: give it one, or all with "
                "--header if the file has no header line"
            )
        if name in seen:
            raise UserError(
                f"{path}, line {line}: two columns are called {name}: rename one, or name all with "
                "--header if the file has no header line"
            )
        seen.add(name)


# --- JSON ---


def _json_table(path: Path, member: str, reading: Reading) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)
    filled = (line for line in _lines(path, member, encoding) if line.strip())
    start = list(itertools.islice(filled, 2))
    if not start:
        raise UserError(f"{path} holds no rows: name a file with rows")
    whole = _is_whole(start)
    values = _json_list(path, "".join(_lines(path, member, encoding))) if whole else []

    def numbered() -> Iterator[tuple[int, Any]]:
        if whole:
            return iter(enumerate(values, start=1))
        return _json_lines(path, _lines(path, member, encoding), reading)

    def rows() -> Rows:
        for number, value in numbered():
            place = Place(path, number, lines=not whole)
            if not isinstance(value, dict):
                remedy = "write {...} for each row"
                value = reading.refuse(place.error("", "a row must be an object", remedy))
            yield place, value

    columns = dict.fromkeys(key for _, row in itertools.islice(rows(), FIRST_ROWS) for key in row)
    if not columns:
        raise UserError(f"{path} holds no rows: name a file with rows")
    return Table(
        shown(path.name), tuple(columns), rows, (*notes, "JSON" if whole else "JSON Lines")
    )


def _is_whole(start: Sequence[str]) -> bool:
    """Whether the file is one JSON value, by its first two lines that are not blank."""
    if start[0].lstrip().startswith("["):
        return True
    try:
        first = json.loads(start[0])
    except (ValueError, RecursionError):
        return True
    return len(start) == 1 and bool(_wrapped(first))


def _json_list(path: Path, text: str) -> list[Any]:
    value = _parsed(text, path, 1)
    if isinstance(value, list):
        return value
    lists = _wrapped(value)
    if len(lists) == 1:
        return lists[0]
    if isinstance(value, dict) and not lists:
        return [value]
    raise UserError(f"{path} holds no one list of rows: write [{{...}}, ...] or JSON Lines")


def _wrapped(value: Any) -> list[list[Any]]:
    if not isinstance(value, dict):
        return []
    return [value[name] for name in WRAPPERS if isinstance(value.get(name), list)]


def _json_lines(path: Path, lines: Iterator[str], reading: Reading) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = _parsed(line.rstrip("\r\n"), path, number)
        except UserError as error:
            value = reading.refuse(error)
        yield number, value


def _parsed(text: str, path: Path, line: int) -> Any:
    """Parse JSON that starts at `line`; refuses what no other program could read again."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{path} is not JSON at {at}: {error.msg}: correct it there") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, from line {line}: a \\ud... escape is half a character: remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, from line {line}: {error}: correct it") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON, write null")


# --- Parquet and the Hub ---


def _parquet_table(path: Path, member: str) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    if member or path.suffix.lower() == ".gz":
        raise UserError(f"{path}: Parquet is packed as it is: unpack it first, and name the file")
    broken = (arrow.ArrowException, OSError, UnicodeDecodeError)
    try:
        with open(path, "rb") as raw, parquet.ParquetFile(raw) as file:
            names, count = file.schema_arrow.names, file.metadata.num_rows
    except broken as error:
        raise UserError(f"{path} is not a whole Parquet file ({error}): fetch it again") from error
    if not count:
        raise UserError(f"{path} holds no rows: name a file with rows")

    def rows() -> Rows:
        number = 0
        try:
            with open(path, "rb") as raw, parquet.ParquetFile(raw) as file:
                for batch in file.iter_batches(batch_size=1024):
                    for value in batch.to_pylist():
                        number += 1
                        yield Place(path, number, lines=False), _decoded_cells(value)
        except broken as error:
            raise UserError(
                f"{path}, after row {number}: not a whole Parquet file ({error}): fetch it again"
            ) from error

    return Table(shown(path.name), tuple(names), rows, ("Parquet",))


def _decoded_cells(value: Any) -> Any:
    """Decode bytes as UTF-8, however deep: Hive, Impala and old Spark write texts as binary.

    Bytes that are no UTF-8, such as images, stay: whoever reads such a cell refuses it.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {name: _decoded_cells(cell) for name, cell in value.items()}
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return [_decoded_cells(cell) for cell in value]
    return value


def _hub_table(source: str, reading: Reading) -> Table:
    import datasets

    name, _, config = source.partition("::")
    try:
        stream = datasets.load_dataset(
            name, config or None, split=reading.hub_split, streaming=True
        )
        first = next(iter(stream), None)
    except Exception as error:  # the hub's client raises errors of every kind
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is neither a file nor a Hub dataset that can be read ({problem}): correct the "
            "name or --hub_split, or download its Parquet file and import that"
        ) from error
    if first is None:
        raise UserError(f"{name}, split {reading.hub_split}, holds no rows: choose another")

    def rows() -> Rows:
        for number, value in enumerate(stream, start=1):
            yield Place(Path(name), number, lines=False), _decoded_cells(dict(value))

    return Table(name, tuple(first), rows, (f"Hub dataset, split {reading.hub_split}",))
