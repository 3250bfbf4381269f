"""A file of anybody's verdicts and labels as prediction rows: what `judge agree` reads.

Cells, columns and numbers are read as `judge data import` reads them. What is left out, or can be
read in two ways, is reported.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from pt_app.core.errors import UserError
from pt_app.core.questions import MAX_OPTIONS
from pt_app.core.records import Place
from pt_app.core.verdicts import CHOICE, NAMED, Scale, Verdict
from pt_app.evidence.calibration import wrong_with
from pt_app.judge_data.labels import TWO_VALUES, LabelReader, answers_of, flat, key_of
from pt_app.judge_data.mapping import ColumnMap, unwanted, wanted_values
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers
from pt_app.judge_data.options import Columns, FileOptions, Reading
from pt_app.judge_data.reading.tables import open_table
from pt_app.judge_data.rows import Row, check_column, find, is_empty, parsed, refuse_bytes

TEXTS = ("candidate", "reference", "source")
MAX_SHOWN = 12  # options that a message writes out
FAILED = "-1"  # what programs write where a judge gave no verdict
Rows = list[Row]


@dataclass(frozen=True)
class FileRow:
    """A row of the file: its place and cells, its judge, its id and its group."""

    place: Place
    value: Row
    judge: str
    id: str
    group: str

    def cell(self, column: str) -> object:
        """Return the cell of a column, or of a path; raise RowError for binary data."""
        cell = find(self.value, column)
        refuse_bytes(cell, self.place, column)
        return cell

    def text(self, column: str) -> str:
        """Return the text in a cell, or in a list of one; raise RowError for a longer list."""
        cell = self.cell(column)
        if isinstance(cell, list) and len(cell) == 1:
            cell = cell[0]
        if isinstance(cell, list | dict):
            inner = 0 if isinstance(cell, list) else next(iter(cell), "")
            remedy = f"name one of its {len(cell)} items, such as {column}.{inner}"
            raise self.place.error(column, "it is a list or an object", remedy)
        return _text(cell)


Judged = dict[str, tuple[FileRow, Row]]
"""Rows of a judge by id: the row of the file, and the prediction row that was made of it."""


class VerdictFile:
    """An open file of verdicts; `unnamed` is the judge of a file without a column of judges."""

    def __init__(
        self, file: str, columns: Columns, options: FileOptions, unnamed: str = "judge"
    ) -> None:
        """Raise UserError for a file that cannot be read, and for columns that do not exist."""
        self.file, self.columns, self.unnamed = file, columns, unnamed
        self.table = open_table(file, Reading(options.encoding, decimal=options.decimal))
        for field, names in vars(columns).items():
            flag = {"slices": "slice", "candidates": "candidate"}.get(field, field)
            for name in filter(None, (names,) if isinstance(names, str) else names):
                check_column(self.table.columns, name, self.table.name, f"--{flag} {name}")
        meanings = ColumnMap.from_flags((), options.labels).labels
        # The other of the two columns may hold the verdicts themselves.
        themselves = {key_of(meant): meant for meant in meanings.values() if meant}
        self.meanings: Mapping[str, str] = themselves | dict(meanings)
        self._only = wanted_values(options.only, self.table)

    @cached_property
    def rows(self) -> Sequence[FileRow]:
        """The rows that --only keeps."""
        rows, counts, columns = list[FileRow](), Counter[str](), self.columns
        for place, value in self.table.rows():
            if unwanted(value, self._only):
                continue
            judge = _name(value, columns.judge, place) if columns.judge else self.unnamed
            counts[judge] += 1
            # Rows of several judges are matched by their order, those of one by their place.
            number = str(counts[judge]) if columns.judge else str(place.row)
            unnamed = f"{'line' if place.lines and not columns.judge else 'row'} {number}"
            name = _name(value, columns.id, place) if columns.id else unnamed
            cell = find(value, columns.group) if columns.group else name
            group = f"(no group) {name}" if is_empty(cell) else str(cell).strip()
            rows.append(FileRow(place, value, judge, name, group))
        return rows

    def notes(self) -> list[str]:
        """Describe which rows --only leaves out, and which have no group."""
        notes = []
        if self._only:
            kept, read = len(self.rows), sum(1 for _ in self.table.rows())
            wanted = ", ".join(f"{name} is {text}" for name, text in self._only.items())
            notes.append(f"{kept:,} of {read:,} rows are measured: {wanted}")
        column = self.columns.group
        if column and (alone := sum(is_empty(row.cell(column)) for row in self.rows)):
            notes.append(f"{alone:,} rows have an empty {column}: each is a group of its own")
        return notes

    def cells(self, column: str) -> Iterator[object]:
        """Yield all values in the cells of a column, those of lists one by one."""
        for row in self.rows:
            yield from flat(row.cell(column))

    def meant(self, cell: object) -> object:
        """Return what --labels says that a cell means, else the cell itself."""
        return cell if is_empty(cell) else self.meanings.get(key_of(cell), cell)

    def numbers(self, column: str) -> Numbers:
        """Return what reads the numbers of a column, of whatever scale."""
        return Numbers(partial(self.cells, column), self.table.delimiter, self.table.decimal)

    def judged(self, read: Callable[[FileRow], Row | None]) -> dict[str, Judged]:
        """Make prediction rows by judge, each with its texts, its system and its slices.

        Args:
            read: Returns what a row says about its label and its verdict, or None to skip it.

        Raises:
            UserError: No row is left, or a judge judged one twice.
        """
        columns, judges = self.columns, dict[str, Judged]()
        for row in self.rows:
            if (cells := read(row)) is None:
                continue
            judged = Row(model=row.judge, id=row.id, group=row.group) | cells
            if columns.candidates:
                judged["candidates"] = [row.text(name) for name in columns.candidates]
            texts = {name: column for name in TEXTS if (column := getattr(columns, name))}
            judged |= {name: row.text(column) for name, column in texts.items()}
            if columns.system:
                judged["system"] = _text(row.cell(columns.system))
            if columns.slices:
                judged["slices"] = {name: _text(row.cell(name)) for name in columns.slices}
            first, _ = judges.setdefault(row.judge, {}).setdefault(row.id, (row, judged))
            if first is not row:
                places = f"{first.place.where} and {row.place.where}"
                problem = f'judge "{row.judge}" judged {row.id} twice ({places})'
                raise UserError(f"{self.file}: {problem}: correct --id, or name --judge")
        if not judges:
            problem = f"no row has a label in column {columns.label}"
            raise UserError(f"{self.file}: {problem}: name another")
        return judges


@dataclass(frozen=True)
class VerdictTable:
    """The rows of each judge on one scale and in one order, with notes about what was left out.

    `population` holds the verdicts of each judge on the rows without a label.
    """

    scale: Scale
    judges: Mapping[str, Rows]
    population: Mapping[str, list[Verdict | None]]
    notes: Sequence[str]


def read_verdicts(
    file: str, columns: Columns, scale: str = "", options: FileOptions | None = None
) -> VerdictTable:
    """Read `file`; unless a scale is named, it is that of the labels and verdicts.

    Raises:
        UserError: With file, row and column: a verdict off the scale, a column that does not
            exist, judges that judged different rows.
    """
    source = VerdictFile(file, columns, options or FileOptions())
    chosen = Scale.from_name(scale) if scale else _guessed_scale(source)
    cells = _Cells(source, chosen)
    population: dict[str, list[Verdict | None]] = {}

    def read(row: FileRow) -> Row | None:
        names = (columns.label, columns.verdict)
        label, verdict = (cells.verdict(row.cell(name), row.place, name) for name in names)
        if label is None:
            population.setdefault(row.judge, []).append(verdict)
            return None
        status = "ok" if verdict is not None else "parse_failure"
        judged = Row(label=label, verdict=verdict, status=status)
        return judged | cells.more_of(row)

    judges = aligned(source.judged(read), source)
    notes = [] if scale else [f"scale {chosen.name}, by labels and verdicts (--scale overrules)"]
    notes += [*source.notes(), *cells.notes()]
    if missing := sum(map(len, population.values())):
        notes.append(f"{missing} rows have no label")
    return VerdictTable(chosen, judges, population, notes)


class _Cells:
    """Reads the cells of a file for a scale; each column may be written in a way of its own."""

    def __init__(self, source: VerdictFile, scale: Scale) -> None:
        self.source, self.columns, self.scale = source, source.columns, scale
        self._pairs = 0  # rows whose probabilities omit the tie
        self._readers: dict[str, LabelReader] = {}
        # In a file whose scale holds -1, it is a verdict.
        means_none = {} if scale.normalise(int(FAILED)) is not None else {FAILED: ""}
        self._meanings = means_none | dict(source.meanings)

    def verdict(self, cell: object, place: Place, column: str) -> Verdict | None:
        """Read a cell of a column as a verdict of the scale; None where it holds none."""
        if column not in self._readers:
            reader = LabelReader(self.scale, self._meanings)
            self._readers[column] = reader.on(self.source.table, [column])
        return self._readers[column].verdict(cell, place, column)

    def more_of(self, row: FileRow) -> Row:
        """Return a row's probabilities, its verdict on the swapped pair, and its annotators."""
        columns, more = self.columns, Row()
        if name := columns.probabilities:
            more["probabilities"] = self._probabilities(row, name)
        if name := columns.swapped:
            more["swapped"] = self.verdict(row.cell(name), row.place, name)
        if name := columns.annotators:
            more["annotators"] = self._annotators(row, name)
        return more

    def _probabilities(self, row: FileRow, column: str) -> list[float] | None:
        cell, decimal = row.cell(column), self.source.table.decimal
        listed = _listed(cell)
        if not listed:
            return None
        usual = "point" if any("." in str(item) for item in listed) else "comma"
        numbers = map(Numbers(decimal=decimal or usual).read, listed)
        probabilities = [float(number) for number in numbers if number is not None]
        if self.scale.task == "pairwise" and len(probabilities) == len(listed) == 2:  # of A and B
            self._pairs += 1
            probabilities.append(0.0)
        problem = wrong_with(probabilities, self.scale)
        if len(probabilities) < len(listed):
            problem = f"{cell!r} is not a list of numbers"
        if problem:
            remedy = f"write the probability of each verdict of {self.scale.name}, in its order"
            raise row.place.error(column, problem, remedy)
        return probabilities

    def _annotators(self, row: FileRow, column: str) -> Rows:
        cell = row.cell(column)
        value = row.value if isinstance(parsed(cell), list) else {column: _listed(cell)}
        verdicts: dict[str, Verdict] = {}
        for number, answer in enumerate(answers_of(value, [column], row.place), start=1):
            verdict = None if answer.out else self.verdict(answer.cell, row.place, column)
            if verdict is not None:
                verdicts.setdefault(answer.rater or str(number), verdict)
        return [{"rater": rater, "verdict": verdict} for rater, verdict in verdicts.items()]

    def notes(self) -> list[str]:
        """Describe what was decided about the cells."""
        readers = self._readers.items()
        notes = [f"{name}: {note}" for name, reader in readers for note in reader.notes()]
        if self._pairs:
            column = self.columns.probabilities
            notes.append(f"{column}: two numbers in {self._pairs:,} rows, of A and B")
        return notes


def _name(value: Row, column: str, place: Place) -> str:
    cell = find(value, column)
    if is_empty(cell):
        raise place.error(column, "it is empty", "name the row, or leave that flag out")
    return str(cell).strip()


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell)  # NaN differs from itself


def _listed(cell: object) -> list[object]:
    """Return the items of a list, of its JSON, or of text with spaces, ";" or else commas."""
    cell = parsed(cell)
    if isinstance(cell, list):
        return cell
    if is_empty(cell):
        return []
    parts = [part.strip(",") for part in re.split(r"[;\s]+", str(cell).strip())]
    return [part for part in (parts if len(parts) > 1 else parts[0].split(",")) if part]


def _guessed_scale(source: VerdictFile) -> Scale:
    """Return the scale to which the labels and verdicts belong; raise UserError where none fits."""
    names = (source.columns.label, source.columns.verdict)
    cells = [cell for name in names for cell in source.cells(name) if not is_empty(cell)]
    keys = {key_of(source.meant(cell)) for cell in cells} - {""}
    verdicts = keys - {FAILED}
    if FAILED in keys and verdicts and verdicts <= {"0", "1"}:
        problem = f"labels and verdicts are {', '.join(sorted(keys))}"
        remedy = "with --scale or such as --labels 1=PASS,0=FAIL,-1= (-1= declares -1 no verdict)"
        raise UserError(f"{source.file}: {problem}: say what they mean, {remedy}")
    for task, values in NAMED.items():
        own = {str(value).casefold() for value in values}
        two = TWO_VALUES.keys() if task == "pass_fail" else set()
        if verdicts and verdicts <= own | two and verdicts not in ({"0"}, {"1"}):
            return Scale.from_name(task)
    numbers = []
    for name in names:
        read = source.numbers(name).read
        for cell in source.cells(name):
            # What is no number, or an unclear one, is refused where it is read, with its row.
            with suppress(AmbiguousNumberError):
                numbers.append(read(source.meant(cell)))
    written = [float(number) for number in numbers if number is not None]
    lowest = min(written, default=0)
    scored = [number for number in written if number != int(FAILED) or lowest < int(FAILED)]
    texts = sorted({str(source.meant(cell)).strip() for cell in cells})
    if not written and 2 <= len(texts) <= MAX_OPTIONS:
        raise UserError(f"{source.file}: no scale is known for labels such as {_choice_of(texts)}")
    return scale_of(scored or written, source.file, ", ".join(texts[:5]) or "none at all")


def _choice_of(texts: Sequence[str]) -> str:
    """Write texts for a message, with the flag that makes options of them."""
    shown = ", ".join(texts[:5])
    options = texts if len(texts) <= MAX_SHOWN else [*texts[:2], "..."]
    return f"{shown}: name it, --scale '{CHOICE}{json.dumps(options, ensure_ascii=False)}'"


def scale_of(numbers: Collection[float], file: str, example: str = "") -> Scale:
    """Return the usual scale of numbers; raise UserError if there are none, or one is not whole."""
    odd = [f"{number:g}" for number in numbers if number != round(number)]
    if odd or not numbers:
        problem = f"no scale is known for labels such as {odd[0] if odd else example}"
        raise UserError(f"{file}: {problem}: name it, --scale")
    low, high = int(min(numbers)), int(max(numbers))
    usual = ((1, 5), (0, 10), (1, 10), (0, 100))
    ends = next((ends for ends in usual if ends[0] <= low and high <= ends[1]), (low, high))
    return Scale.from_name("{}-{}".format(*ends))


def aligned(judges: Mapping[str, Judged], source: VerdictFile) -> dict[str, Rows]:
    """Bring the rows of all judges into the order of the first; raise UserError if they differ."""
    first, reference = next(iter(judges.items()))
    column = source.columns.id
    by = f"--id {column}" if column else "their order (--id names a column that identifies them)"
    remedy = f"give all judges the same rows, which are matched by {by}"
    for judge, rows in judges.items():
        for name in reference | rows:
            if name not in reference or name not in rows:
                judged, other = (first, judge) if name in reference else (judge, first)
                problem = f'judge "{judged}" judged {name}, "{other}" did not'
                raise UserError(f"{judges[judged][name][0].place.where}: {problem}: {remedy}")
            (here, own), (there, theirs) = reference[name], rows[name]
            if (own["label"], own["group"]) != (theirs["label"], theirs["group"]):
                other = f'{theirs["label"]} with "{judge}" ({there.place.where}; or other groups)'
                problem = f'{name} has label {own["label"]} with judge "{first}", {other}'
                raise UserError(f"{here.place.where}: {problem}: {remedy}")
    return {judge: [rows[name][1] for name in reference] for judge, rows in judges.items()}
