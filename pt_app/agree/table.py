"""A file of anybody's verdicts and labels as prediction rows: what `judge agree` reads."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pt_app.errors import UserError
from pt_app.eval_model.records import Place
from pt_app.eval_model.verdicts import NAMED, Scale, Verdict
from pt_app.judge_data.reading.tables import Reading, Table, open_table

ONLY = "judge"  # the name of the one judge of a file without a column of judges
TEXTS = ("candidate", "reference", "source")


@dataclass(frozen=True)
class Columns:
    """Which columns of the file hold what; "" or empty: none does."""

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

    def check(self, table: Table) -> None:
        """Raise UserError for a column that the file does not have."""
        named = {f"--{name}": getattr(self, name) for name in self.__dataclass_fields__}
        for flag, names in named.items():
            for name in (names,) if isinstance(names, str) else names:
                if name and name not in table.columns:
                    raise UserError(
                        f"{table.name} has no column {name} ({flag} {name}): its columns are "
                        f"{', '.join(table.columns)}"
                    )


@dataclass(frozen=True)
class VerdictTable:
    """The rows of each judge, on one scale, in one order; what was left out, in words.

    `population` has each judge's verdicts on the rows without a label.
    """

    scale: Scale
    judges: Mapping[str, list[dict[str, Any]]]
    population: Mapping[str, list[Verdict | None]]
    notes: Sequence[str] = field(default_factory=list)


def read_verdicts(file: str, columns: Columns, scale: str = "", encoding: str = "") -> VerdictTable:
    """Read `file`; the scale is that of its labels and verdicts unless it is named.

    Raises UserError, with file, row and column, for what cannot be read: a verdict off the scale,
    a column that is not there, judges that judged different rows.
    """
    table = open_table(file, Reading(encoding))
    columns.check(table)
    rows = list(table.rows())
    chosen = Scale.from_name(scale) if scale else guessed_scale(rows, columns, file)
    notes = [] if scale else [f"scale {chosen.name}, by labels and verdicts (--scale overrules)"]
    judges: dict[str, list[dict[str, Any]]] = {}
    population: dict[str, list[Verdict | None]] = {}
    for place, value in rows:
        name = str(value[columns.judge]) if columns.judge else ONLY
        verdict = _verdict(value[columns.verdict], chosen, place, columns.verdict)
        label = _verdict(value[columns.label], chosen, place, columns.label)
        if label is None:
            population.setdefault(name, []).append(verdict)
            continue
        of_judge = judges.setdefault(name, [])
        key = str(value[columns.id]) if columns.id else f"row {len(of_judge) + 1}"
        group = str(value[columns.group]) if columns.group else key
        row = {"model": name, "id": key, "group": group, "label": label, "verdict": verdict}
        row |= {"constrained": None, "status": "ok" if verdict is not None else "parse_failure"}
        of_judge.append(row | _more(value, columns, chosen, place))
    if not judges:
        raise UserError(f"{file}: no row has a label in column {columns.label}: name another")
    if missing := sum(map(len, population.values())):
        notes.append(f"{missing} rows have no label")
    return VerdictTable(chosen, aligned(judges, columns, file), population, notes)


def _more(value: Mapping[str, Any], columns: Columns, scale: Scale, place: Place) -> dict[str, Any]:
    """The optional fields of a prediction row."""
    found: dict[str, Any] = {}
    if columns.probabilities:
        found["probabilities"] = _numbers(
            value[columns.probabilities], place, columns.probabilities
        )
        if found["probabilities"] is not None:
            found["constrained"] = _likeliest(found["probabilities"], scale, place)
    if columns.swapped:
        found["swapped"] = _verdict(value[columns.swapped], scale, place, columns.swapped)
    if columns.annotators:
        said = _listed(value[columns.annotators])
        verdicts = [_verdict(one, scale, place, columns.annotators) for one in said]
        found["annotators"] = [
            {"rater": str(i), "verdict": one}
            for i, one in enumerate(verdicts, start=1)
            if one is not None
        ]
    return found | more_of(value, columns)


def more_of(value: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The texts of a row, its system and slices."""
    found: dict[str, Any] = {}
    if columns.candidates:
        found["candidates"] = [_text(value[name]) for name in columns.candidates]
    for name in TEXTS:
        if column := getattr(columns, name):
            found[name] = _text(value[column])
    if columns.system:
        found["system"] = str(value[columns.system])
    if columns.slices:
        found["slices"] = {name: value[name] for name in columns.slices}
    return found


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def is_empty(cell: Any) -> bool:
    """Whether a cell says nothing: null, blank, or not a number."""
    return cell is None or (isinstance(cell, str) and not cell.strip()) or cell != cell


def _verdict(cell: Any, scale: Scale, place: Place, column: str) -> Verdict | None:
    """A cell as a verdict of the scale, None where it is empty."""
    if is_empty(cell):
        return None
    found = _as_verdict(cell, scale)
    if found is None:
        raise place.error(
            column, f"{cell!r} is off the scale {scale.name}", f"{scale.says()}; empty: none"
        )
    return found


def _as_verdict(cell: Any, scale: Scale) -> Verdict | None:
    if scale.task != "score":
        by_name = {str(value).casefold(): value for value in scale.values}
        return by_name.get(str(cell).strip().casefold())
    try:
        return scale.normalise(float(cell))
    except (TypeError, ValueError):
        return None


def _listed(cell: Any) -> list[Any]:
    """A list, or its text in JSON, or one value a word."""
    if isinstance(cell, list):
        return cell
    if is_empty(cell):
        return []
    text = str(cell).strip()
    if text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, list):
            return found
    return text.replace(",", " ").replace(";", " ").split()


def _numbers(cell: Any, place: Place, column: str) -> list[float] | None:
    found = _listed(cell)
    if not found:
        return None
    try:
        return [float(one) for one in found]
    except (TypeError, ValueError) as error:
        remedy = "write one number for each verdict of the scale, [0.1, 0.9]"
        raise place.error(column, f"{cell!r} is no list of numbers", remedy) from error


def _likeliest(chances: Sequence[float], scale: Scale, place: Place) -> Verdict | None:
    from pt_app.evidence.calibration import checked

    checked([chances], scale, f"{place}: the probabilities")
    return scale.values[max(range(len(chances)), key=lambda i: chances[i])]


def guessed_scale(
    rows: Sequence[tuple[Place, Mapping[str, Any]]], columns: Columns, file: str
) -> Scale:
    """The scale whose verdicts the labels and verdicts are. Raises UserError where none fits."""
    cells = [
        value[name]
        for _, value in rows
        for name in (columns.label, columns.verdict)
        if not is_empty(value[name])
    ]
    names = {str(cell).strip().casefold() for cell in cells}
    for task, values in NAMED.items():
        if names and names <= {str(value).casefold() for value in values}:
            return Scale.from_name(task)
    try:
        numbers = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        numbers = []
    if not numbers:
        known = ", ".join(sorted(names)[:5])
        raise UserError(f"{file}: no scale is known for labels such as {known}: name it, --scale")
    return scale_of(numbers, file)


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


def aligned(
    judges: Mapping[str, list[dict[str, Any]]], columns: Columns, file: str
) -> Mapping[str, list[dict[str, Any]]]:
    """Bring all judges' rows into the first one's order; raises UserError where rows differ."""
    first = next(iter(judges))
    keys = _unique([row["id"] for row in judges[first]], first, file)
    found = {}
    for name, rows in judges.items():
        by_id = dict(zip(_unique([row["id"] for row in rows], name, file), rows, strict=True))
        if by_id.keys() != keys.keys():
            odd = next(iter(by_id.keys() ^ keys.keys()))
            holder, other = (name, first) if odd in by_id else (first, name)
            remedy = "" if columns.id else ", or name the column that tells rows apart (--id)"
            raise UserError(
                f'{file}: judge "{holder}" judged {odd}, "{other}" did not: give all judges the '
                f"same rows{remedy}"
            )
        found[name] = [by_id[key] for key in keys]
        for mine, theirs in zip(judges[first], found[name], strict=True):
            if (mine["label"], mine["group"]) != (theirs["label"], theirs["group"]):
                raise UserError(
                    f'{file}: {mine["id"]} has label {mine["label"]} with judge "{first}" and '
                    f'{theirs["label"]} with "{name}" (or another group): rows are told apart by '
                    f"{'--id ' + columns.id if columns.id else 'their order; name --id'}"
                )
    return found


def _unique(ids: Iterable[str], judge: str, file: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for one in ids:
        if one in found:
            raise UserError(
                f'{file}: judge "{judge}" judged {one} twice: correct --id, or name --judge'
            )
        found[one] = None
    return found
