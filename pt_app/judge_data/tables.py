"""Files of labels as rows: CSV, TSV, JSON, JSON Lines, Parquet, packed or not, or a Hub dataset.

What was recognised (delimiter, byte-order mark, quoting) is noted; what cannot be read to the
letter is refused with its place.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pt_app.errors import UserError
from pt_app.eval_model.records import Place
from pt_app.judge_data.archives import open_bytes, split_member

Quoting = Literal["auto", "on", "off"]
DELIMITERS = {",": ",", "tab": "\t", ";": ";", "|": "|"}
SNIFFED_LINES = 50
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
TABLES = (".csv", ".tsv", ".txt")
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, where that is not recognised: see `judge data import --help`."""

    encoding: str = ""
    delimiter: str = ""
    quoting: Quoting = "auto"
    header: Sequence[str] = ()
    hub_split: str = "train"


@dataclass(frozen=True)
class Table:
    """Rows of a file. `notes` say what was recognised; `rows` yields each row with its place."""

    name: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[tuple[Place, dict[str, Any]]]]
    notes: tuple[str, ...] = field(default=())


def open_table(source: str, reading: Reading | None = None) -> Table:
    """Open a file by its ending, a member of an archive (`archive.tar.gz::*.tsv`), or a Hub id.

    Values of CSV files are texts, those of the others what they are there. JSON Lines, CSV and
    Parquet stream; a JSON list is read whole. Raises UserError for what cannot be read.
    """
    reading = reading or Reading()
    path, member = split_member(source)
    if not path.exists():
        if source.count("/") == 1 and not path.suffix and source[0] not in "./~":
            return _hub_table(source, reading)
        raise UserError(
            f"{path} is not there: correct the path (a Hub dataset is named owner/name)"
        )
    if path.is_dir():
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{path} is a folder: name one or more of its files ({names})")
    name = member or path.name.removesuffix(".gz")
    ending = Path(name).suffix.lower()
    if ending == ".parquet":
        return _parquet_table(path)
    if ending in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{path} is a spreadsheet: save it as CSV (UTF-8) and import that")
    if ending in (".json", *LINES):
        return _json_table(path, member, reading)
    if ending in TABLES:
        return _csv_table(path, member, reading, tab=ending == ".tsv")
    raise UserError(
        f"{path}: unknown ending {ending or '(none)'}: use .csv, .tsv, .json, .jsonl, .parquet, "
        ".gz of these, or archive.tar.gz::member"
    )


def _lines(path: Path, member: str, encoding: str) -> Iterator[str]:
    """Yield the text's lines, each with its own line end (\\n alone ends one)."""
    with open_bytes(path, member) as binary:
        at = 0
        if encoding.startswith("utf-16"):
            yield from io.StringIO(_decoded(binary.read(), path, encoding, 0), newline="\n")
            return
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
    except LookupError as error:
        raise UserError(
            f"--encoding {encoding} is not known: try utf-8, cp1252, latin-1"
        ) from error


def _encoding(path: Path, member: str, given: str) -> tuple[str, tuple[str, ...]]:
    with open_bytes(path, member) as binary:
        start = binary.read(4)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding, (f"byte-order mark of {encoding.removesuffix('-sig').upper()}",)
    if not start:
        raise UserError(f"{path} is empty: name a file with rows")
    return given or "utf-8", (f"encoding {given}",) if given else ()


# --- CSV ---


def _csv_table(path: Path, member: str, reading: Reading, tab: bool) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)
    sample = list(itertools.islice(_lines(path, member, encoding), SNIFFED_LINES))
    delimiter = DELIMITERS.get(reading.delimiter, reading.delimiter)
    if len(delimiter) > 1:
        raise UserError(f"--delimiter {delimiter!r} is not one character: use , ; | or tab")
    if not delimiter:
        delimiter = "\t" if tab else sniff_delimiter(sample)
    quoted = reading.quoting != "off"
    if reading.quoting == "auto":
        quoted = quotes_enclose(list(_lines(path, member, encoding)), delimiter)
    shown = "tab" if delimiter == "\t" else delimiter
    notes += (f"delimiter {shown}", f"quoting {'on' if quoted else 'off'}")

    def records() -> Iterator[tuple[int, list[str]]]:
        return _records(_lines(path, member, encoding), path, delimiter, quoted)

    names = list(reading.header) or next((values for _, values in records()), [])
    _check_header(path, names)

    def rows() -> Iterator[tuple[Place, dict[str, Any]]]:
        numbered = records()
        if not reading.header:
            next(numbered)
        for line, values in numbered:
            if not values:
                continue  # an empty line is no row
            if len(values) != len(names):
                raise UserError(
                    f"{path}, line {line}: {len(values)} fields, but {len(names)} columns: correct "
                    f"it, or set --delimiter (now {shown}) or --quoting (now "
                    f"{'on' if quoted else 'off'})"
                )
            yield Place(path, line, lines=True), dict(zip(names, values, strict=True))

    return Table(path.name, tuple(names), rows, notes)


def _records(
    lines: Iterator[str], path: Path, delimiter: str, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line it starts at; raises UserError for a quote left open."""
    csv.field_size_limit(1 << 30)
    if not quoted:
        for number, line in enumerate(lines, start=1):
            text = line.removesuffix("\n").removesuffix("\r")
            yield number, text.split(delimiter) if text else []
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = "a quote is opened and never closed" if "end of data" in str(error) else error
            raise UserError(
                f"{path}, line {start}: {problem}: correct it, or say --quoting off if quote "
                "marks are text"
            ) from error
        yield start, values


def sniff_delimiter(lines: Sequence[str]) -> str:
    """Choose the delimiter with which most lines have as many fields as the first, outside quotes.

    Of several the one with most fields. Raises nothing: one column has a comma.
    """

    def fields(delimiter: str) -> tuple[float, int]:
        try:
            counts = [len(values) for values in csv.reader(lines, delimiter=delimiter) if values]
        except csv.Error:
            return 0.0, 0
        if not counts or counts[0] < 2:
            return 0.0, 0
        return sum(count == counts[0] for count in counts) / len(counts), counts[0]

    return max(DELIMITERS.values(), key=fields)


def quotes_enclose(lines: Sequence[str], delimiter: str) -> bool:
    """Whether quote marks enclose fields, rather than being part of a text.

    They do if only so all lines have as many fields, and do not if only without. Where both come
    out even, a tab file is believed only if its header is quoted or marks are doubled.
    """
    plain = {len(line.split(delimiter)) for line in lines if line.strip("\r\n")}
    try:
        quoted = {len(v) for v in csv.reader(lines, delimiter=delimiter, strict=True) if v}
    except csv.Error:
        quoted = set()
    if len(quoted) != 1 or len(plain) != 1:
        return len(quoted) == 1 or len(plain) != 1
    return delimiter in ",;" or lines[0].startswith('"') or any('""' in line for line in lines)


def _check_header(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise UserError(f"{path} holds no rows: name a file with a header line and rows")
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise UserError(f"{path}, line 1: column {place} has no name: give it one, or --header")
        if names.count(name) > 1:
            raise UserError(f"{path}, line 1: two columns are called {name}: rename one of them")


# --- JSON ---


def _json_table(path: Path, member: str, reading: Reading) -> Table:
    encoding, notes = _encoding(path, member, reading.encoding)
    start = next((line for line in _lines(path, member, encoding) if line.strip()), "")
    whole = start.lstrip().startswith("[") or not _is_json(start)

    def rows() -> Iterator[tuple[Place, dict[str, Any]]]:
        values = _json_list if whole else _json_lines
        for number, value in values(path, _lines(path, member, encoding)):
            place = Place(path, number, lines=not whole)
            if not isinstance(value, dict):
                raise place.error("", "a row must be an object", "write {...} for each row")
            yield place, value

    first = next(iter(rows()), None)
    if first is None:
        raise UserError(f"{path} holds no rows: name a file with rows")
    return Table(path.name, tuple(first[1]), rows, (*notes, "JSON" if whole else "JSON Lines"))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json_list(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    value = _parsed("".join(lines), path, 1)
    if isinstance(value, dict):
        lists = {name: v for name, v in value.items() if isinstance(v, list)}
        if len(lists) != 1:
            raise UserError(f"{path} holds an object and no list of rows: write a list of rows")
        (value,) = lists.values()
    yield from enumerate(value, start=1)


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parsed(line, path, number)


def _parsed(text: str, path: Path, line: int) -> Any:
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
    raise ValueError(f"{name} is no JSON")


# --- Parquet and the Hub ---


def _parquet_table(path: Path) -> Table:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        names = tuple(parquet.ParquetFile(path).schema_arrow.names)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file: {error}: fetch it again") from error

    def rows() -> Iterator[tuple[Place, dict[str, Any]]]:
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Place(path, number, lines=False), value
        except (arrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}, after row {number}: not a whole Parquet file: {error}: fetch it again"
            ) from error

    return Table(path.name, names, rows, ("Parquet",))


def _hub_table(name: str, reading: Reading) -> Table:
    import datasets

    try:
        stream = datasets.load_dataset(name, split=reading.hub_split, streaming=True)
        first = next(iter(stream), None)
    except Exception as error:  # the hub's client raises of every kind
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is neither a file nor a Hub dataset that can be read ({problem}): correct the "
            "name or --hub_split, or download its Parquet file and import that"
        ) from error
    if first is None:
        raise UserError(f"{name}, split {reading.hub_split}, holds no rows: choose another")

    def rows() -> Iterator[tuple[Place, dict[str, Any]]]:
        for number, value in enumerate(stream, start=1):
            yield Place(Path(name), number, lines=False), dict(value)

    return Table(name, tuple(first), rows, (f"Hub dataset, split {reading.hub_split}",))
