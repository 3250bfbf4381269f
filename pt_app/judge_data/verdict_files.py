"""A file of anybody's verdicts and labels as prediction rows: what `judge agree` reads.

Cells, columns and numbers are read as `judge data import` reads them; what is left out, or read in
one of two ways, is said.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place
from pt_app.core.verdicts import NAMED, Scale, Verdict
from pt_app.evidence.calibration import wrong_with
from pt_app.judge_data.answers import answers_of
from pt_app.judge_data.cells import MISSING, check_column, find, is_empty, parsed, refuse_bytes
from pt_app.judge_data.importing import wanted_values
from pt_app.judge_data.labels import TWO_VALUES, LabelReader, flat, key_of
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers
from pt_app.judge_data.reading.tables import Reading, Table, open_table

ONLY = "judge"  # the name of the one judge of a file without a column of judges
TEXTS = ("candidate", "reference", "source")
FAILED = "-1"  # what programs write where a judge gave no verdict
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Columns:
    """Which columns of the file, or paths into them, hold what; "" or empty: none does."""

    label: str
    verdict: str
    id: str = ""
    group: str = ""
    judge: str = ""
    system: str = ""
    probabilities: str = ""
    annotators: str = ""
    swapped: str = ""
    candidate: str = ""
    candidates: tuple[str, ...] = ()
    reference: str = ""
    source: str = ""
    slices: tuple[str, ...] = ()

    def stripped(self) -> "Columns":
        """Give the names without blanks around them, as the columns of a file are read."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed: Any = {
            name: one.strip() if isinstance(one, str) else tuple(part.strip() for part in one)
            for name, one in named.items()
        }
        return replace(self, **changed)

    def check(self, table: Table) -> None:
        """Raise UserError for a column that the file does not have."""
        for flag in self.__dataclass_fields__:
            names = getattr(self, flag)
            for name in (names,) if isinstance(names, str) else names:
                if name:
                    check_column(table.columns, name, table.name, f"--{flag} {name}")


@dataclass(frozen=True)
class FileOptions:
    """How a file of verdicts is read: see `judge agree --help`."""

    encoding: str = ""
    labels: str = ""
    only: tuple[str, ...] = ()
    decimal: str = ""


@dataclass(frozen=True)
class FileRow:
    """A row of the file: its place, its cells, the judge, and what tells it and its group."""

    place: Place
    value: Mapping[str, Any]
    judge: str
    id: str
    group: str

    def cell(self, column: str) -> Any:
        """The cell of a column, or of a path into one; raises RowError for binary data."""
        found = find(self.value, column)
        refuse_bytes(found, self.place, column)
        return found

    def text(self, column: str) -> str:
        """A cell of a text; that of a list of one is its item. Raises RowError for a longer one."""
        found = self.cell(column)
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if isinstance(found, list | dict):
            inner = 0 if isinstance(found, list) else next(iter(found), "")
            remedy = f"name one of its {len(found)} items, such as {column}.{inner}"
            raise self.place.error(column, "it is a list or an object", remedy)
        return _text(found)


class VerdictFile:
    """An open file of verdicts. `notes` say what was left out of it, and which rows are alone."""

    def __init__(self, file: str, columns: Columns, options: FileOptions) -> None:
        """Raise UserError for a file that cannot be read, and for columns that are not there."""
        self.columns = columns.stripped()
        self.table = open_table(file, Reading(options.encoding, decimal=options.decimal))
        self.columns.check(self.table)
        meanings = ColumnMap.from_flags((), options.labels).labels
        # The other column may hold verdicts as they are.
        plain = {key_of(meant): meant for meant in meanings.values() if meant}
        self.meanings: Mapping[str, str] = plain | dict(meanings)
        self._only = wanted_values(options.only, self.table)

    @cached_property
    def rows(self) -> Sequence[FileRow]:
        """The rows that --only keeps."""
        return list(self._rows())

    def _rows(self) -> Iterator[FileRow]:
        counts: Counter[str] = Counter()
        columns = self.columns
        for place, value in self.table.rows():
            if any(str(value.get(name)) != text for name, text in self._only.items()):
                continue
            judge = _name(value, columns.judge, place) if columns.judge else ONLY
            counts[judge] += 1
            # Rows of several judges are told apart by their order, those of one by their place.
            number = str(counts[judge]) if columns.judge else str(place.row)
            unnamed = f"{'line' if place.lines and not columns.judge else 'row'} {number}"
            name = _name(value, columns.id, place) if columns.id else unnamed
            cell = find(value, columns.group) if columns.group else name
            group = f"(no group) {name}" if is_empty(cell) else str(cell).strip()
            yield FileRow(place, value, judge, name, group)

    def notes(self) -> list[str]:
        """Say which rows --only leaves out, and which have no group."""
        told = []
        if self._only:
            kept, read = len(self.rows), sum(1 for _ in self.table.rows())
            wanted = ", ".join(f"{name} is {text}" for name, text in self._only.items())
            told.append(f"{kept:,} of {read:,} rows are measured: {wanted}")
        if self.columns.group:
            alone = sum(is_empty(row.cell(self.columns.group)) for row in self.rows)
            if alone:
                column = self.columns.group
                told.append(f"{alone:,} rows have an empty {column}: each is a group of its own")
        return told

    def cells(self, column: str) -> Iterator[Any]:
        """All values in a column's cells, those of lists one by one."""
        for row in self.rows:
            yield from flat(row.cell(column))

    def more_of(self, row: FileRow) -> dict[str, Any]:
        """The texts of a row, its system and slices."""
        columns, found = self.columns, dict[str, Any]()
        if columns.candidates:
            found["candidates"] = [row.text(name) for name in columns.candidates]
        for name in TEXTS:
            if column := getattr(columns, name):
                found[name] = row.text(column)
        if columns.system:
            found["system"] = _text(row.cell(columns.system))
        if columns.slices:
            found["slices"] = {name: _text(row.cell(name)) for name in columns.slices}
        return found


@dataclass(frozen=True)
class VerdictTable:
    """The rows of each judge, on one scale, in one order; what was left out, in words.

    `population` has each judge's verdicts on the rows without a label.
    """

    scale: Scale
    judges: Mapping[str, Rows]
    population: Mapping[str, list[Verdict | None]]
    notes: Sequence[str] = field(default_factory=list)


def read_verdicts(
    file: str, columns: Columns, scale: str = "", options: FileOptions | None = None
) -> VerdictTable:
    """Read `file`; the scale is that of its labels and verdicts unless it is named.

    Raises UserError, with file, row and column, for what cannot be read: a verdict off the scale,
    a column that is not there, judges that judged different rows.
    """
    source = VerdictFile(file, columns, options or FileOptions())
    chosen = Scale.from_name(scale) if scale else guessed_scale(source, file)
    notes = [] if scale else [f"scale {chosen.name}, by labels and verdicts (--scale overrules)"]
    cells = _Cells(source, chosen)
    judges: dict[str, Rows] = {}
    population: dict[str, list[Verdict | None]] = {}
    for row in source.rows:
        label = cells.verdict(row, source.columns.label)
        verdict = cells.verdict(row, source.columns.verdict)
        if label is None:
            population.setdefault(row.judge, []).append(verdict)
            continue
        found: dict[str, Any] = {"model": row.judge, "id": row.id, "group": row.group}
        found |= {"label": label, "verdict": verdict, "constrained": None}
        found["status"] = "ok" if verdict is not None else "parse_failure"
        judges.setdefault(row.judge, []).append(found | cells.more_of(row))
    if not judges:
        raise UserError(
            f"{file}: no row has a label in column {source.columns.label}: name another"
        )
    notes += [*source.notes(), *cells.notes()]
    if missing := sum(map(len, population.values())):
        notes.append(f"{missing} rows have no label")
    return VerdictTable(chosen, aligned(judges, source, file), population, notes)


class _Cells:
    """Reads the cells of a file for a scale; each column is written in a way of its own."""

    def __init__(self, source: VerdictFile, scale: Scale) -> None:
        self.source, self.columns, self.scale = source, source.columns, scale
        self._failed: Counter[str] = Counter()
        self._two = 0  # rows whose probabilities leave the tie out
        self._readers: dict[str, LabelReader] = {}
        # A file whose scale holds -1 means it.
        self._means_failed = FAILED not in source.meanings and scale.normalise(int(FAILED)) is None

    def verdict(self, row: FileRow, column: str) -> Verdict | None:
        """A cell as a verdict of the scale, None where it is empty or says that there is none."""
        return self._read(row.cell(column), row.place, column)

    def _read(self, cell: Any, place: Place, column: str) -> Verdict | None:
        if self._means_failed and not is_empty(cell) and key_of(cell) == FAILED:
            self._failed[column] += 1
            return None
        if column not in self._readers:
            table, meanings = self.source.table, self.source.meanings
            self._readers[column] = LabelReader.of(table, [column], self.scale, meanings)
        return self._readers[column].verdict(cell, place, column)

    def more_of(self, row: FileRow) -> dict[str, Any]:
        """The optional fields of a prediction row."""
        columns, found = self.columns, dict[str, Any]()
        if columns.probabilities:
            chances = self._probabilities(row)
            found["probabilities"] = chances
            if chances is not None:
                place = max(range(len(chances)), key=chances.__getitem__)
                found["constrained"] = self.scale.values[place]
        if columns.swapped:
            found["swapped"] = self.verdict(row, columns.swapped)
        if columns.annotators:
            found["annotators"] = self._annotators(row)
        return found | self.source.more_of(row)

    def _probabilities(self, row: FileRow) -> list[float] | None:
        column = self.columns.probabilities
        cell = row.cell(column)
        listed = _listed(cell)
        if not listed:
            return None
        numbers = Numbers(decimal=self.source.table.decimal or "point")
        if not self.source.table.decimal and not any("." in str(one) for one in listed):
            numbers = Numbers(decimal="comma")
        read = [numbers.read(one) for one in listed]
        remedy = f"write the probability of each verdict of {self.scale.name}, in its order"
        if None in read:
            raise row.place.error(column, f"{cell!r} is no list of numbers", remedy)
        chances = [float(one) for one in read if one is not None]
        if self.scale.task == "pairwise" and len(chances) == 2:  # of A and B
            self._two += 1
            chances.append(0.0)
        if problem := wrong_with(chances, self.scale):
            raise row.place.error(column, problem, remedy)
        return chances

    def _annotators(self, row: FileRow) -> list[dict[str, Any]]:
        column = self.columns.annotators
        cell = row.cell(column)
        value = row.value if isinstance(parsed(cell), list) else {column: _listed(cell)}
        found: dict[str, Verdict] = {}
        for number, answer in enumerate(answers_of(value, [column], row.place), start=1):
            verdict = None if answer.out else self._read(answer.cell, row.place, column)
            if verdict is not None:
                found.setdefault(answer.rater or str(number), verdict)
        return [{"rater": rater, "verdict": verdict} for rater, verdict in found.items()]

    def notes(self) -> list[str]:
        """Say what was decided about the cells."""
        told = [
            f"{column}: {note}" for column, one in self._readers.items() for note in one.notes()
        ]
        for column, count in self._failed.items():
            what = "no label" if column == self.columns.label else "no verdict"
            told.append(
                f"{column}: {count:,} of {FAILED}, {what} (a --scale that holds it counts it)"
            )
        if self._two:
            told.append(
                f"{self.columns.probabilities}: two numbers in {self._two:,} rows, of A and B"
            )
        return told


def _name(value: Mapping[str, Any], column: str, place: Place) -> str:
    cell = find(value, column)
    if is_empty(cell):
        raise place.error(column, "it is empty", "name the row, or leave that flag out")
    return str(cell).strip()


def _text(cell: Any) -> str:
    return "" if cell is MISSING or cell is None or cell != cell else str(cell)


def _listed(cell: Any) -> list[Any]:
    """A list, or its text in JSON, or text of values apart by blanks or ;, else by commas."""
    cell = parsed(cell)
    if isinstance(cell, list):
        return cell
    if is_empty(cell):
        return []
    parts = [part.strip(",") for part in re.split(r"[;\s]+", str(cell).strip())]
    return [part for part in (parts if len(parts) > 1 else parts[0].split(",")) if part]


def guessed_scale(source: VerdictFile, file: str) -> Scale:
    """The scale whose verdicts the labels and verdicts are. Raises UserError where none fits."""
    names = [source.columns.label, source.columns.verdict]
    given = [cell for name in names for cell in source.cells(name) if not is_empty(cell)]
    keys = {key_of(cell) for cell in given}
    keys = {key_of(source.meanings.get(key, key)) for key in keys} - {""}
    said = keys - {FAILED}
    if FAILED in keys and said and said <= {"0", "1"}:
        raise UserError(
            f"{file}: labels and verdicts are {', '.join(sorted(keys))}: say what they mean, with "
            "--scale or such as --labels 1=PASS,0=FAIL,-1= (nothing behind = is no verdict)"
        )
    for task, values in NAMED.items():
        own = {str(value).casefold() for value in values}
        two = TWO_VALUES.keys() if task == "pass_fail" else set()
        if said and said <= own | two and said not in ({"0"}, {"1"}):
            return Scale.from_name(task)
    numbers = [number for name in names for number in _numbers(source, name)]
    if not numbers:
        known = ", ".join(sorted(keys)[:5]) or "none at all"
        raise UserError(f"{file}: no scale is known for labels such as {known}: name it, --scale")
    least = min(numbers)
    return scale_of([n for n in numbers if n != -1 or least < -1] or numbers, file)


def _numbers(source: VerdictFile, column: str) -> Iterator[float]:
    """The numbers of a column; what is none is refused where it is read, with its row."""
    reader = Numbers(
        lambda: source.cells(column),
        delimiter=source.table.delimiter,
        decimal=source.table.decimal,
    )
    for cell in source.cells(column):
        if is_empty(cell):
            continue
        try:
            number = reader.read(source.meanings.get(key_of(cell), cell))
        except AmbiguousNumberError:
            continue
        if number is not None:
            yield float(number)


def scale_of(numbers: Collection[float], file: str) -> Scale:
    """The usual scale that holds these whole numbers. Raises UserError where one is not whole."""
    odd = [number for number in numbers if number != round(number)]
    if odd:
        raise UserError(
            f"{file}: no scale is known for labels such as {odd[0]:g}: name it, --scale"
        )
    low, high = int(min(numbers)), int(max(numbers))
    usual = [name for name in ("1-5", "0-10", "1-10", "0-100") if _holds(name, low, high)]
    return Scale.from_name(usual[0] if usual else f"{low}-{high}")


def _holds(name: str, low: int, high: int) -> bool:
    values = Scale.from_name(name).values
    return float(values[0]) <= low and high <= float(values[-1])


def aligned(judges: Mapping[str, Rows], source: VerdictFile, file: str) -> Mapping[str, Rows]:
    """Bring all judges' rows into the first one's order; raises UserError where rows differ."""
    first = next(iter(judges))
    by_id = {name: _by_id(name, rows, source, file) for name, rows in judges.items()}
    keys = by_id[first]
    found = {}
    for name, rows in by_id.items():
        if rows.keys() != keys.keys():
            odd = next(iter(rows.keys() ^ keys.keys()))
            holder, other = (name, first) if odd in rows else (first, name)
            remedy = (
                "" if source.columns.id else ", or name the column that tells rows apart (--id)"
            )
            raise UserError(
                f'{_where(source, holder, odd)}: judge "{holder}" judged {odd}, "{other}" did not: '
                f"give all judges the same rows{remedy}"
            )
        found[name] = [rows[key] for key in keys]
        for mine, theirs in zip(judges[first], found[name], strict=True):
            if (mine["label"], mine["group"]) != (theirs["label"], theirs["group"]):
                here, there = (_where(source, judge, mine["id"]) for judge in (first, name))
                by = f"--id {source.columns.id}" if source.columns.id else "their order; name --id"
                raise UserError(
                    f'{here}: {mine["id"]} has label {mine["label"]} with judge "{first}" and '
                    f'{theirs["label"]} with "{name}" ({there}; or another group): rows are told '
                    f"apart by {by}"
                )
    return found


def _by_id(judge: str, rows: Rows, source: VerdictFile, file: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if found.setdefault(row["id"], row) is not row:
            raise UserError(
                f'{file}: judge "{judge}" judged {row["id"]} twice '
                f"({_where(source, judge, row['id'])}): correct --id, or name --judge"
            )
    return found


def _where(source: VerdictFile, judge: str, name: str) -> str:
    """Where a judge's row of that id stands, for messages."""
    rows = (row for row in source.rows if (row.judge, row.id) == (judge, name))
    return " and ".join(row.place.where for row in rows)
