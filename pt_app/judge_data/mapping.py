"""`--map source=src,label=score --labels good=PASS`: columns of any file as the fields of a row."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import AliasChoices, BaseModel, Field, StrictStr, TypeAdapter, ValidationError

from pt_app.core.errors import UserError
from pt_app.core.records import Place, RowError
from pt_app.core.verdicts import NAMED, Scale, Verdict
from pt_app.judge_data.labels import Answer, LabelReader, Reasons, answers_of, key_of, reduce
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import Converted, Row, check_column, find, parsed, refuse_bytes

TEXTS = ("group", "source", "context", "reference", "candidate", "rubric")
META = ("system", "document", "time")
TARGETS = (
    *("id", *TEXTS, "candidate_a", "candidate_b", "conversation"),
    *("label", "rater", "issues", "feedback", *META),
)
LISTS = ("context", "issues", "feedback")
"""Fields whose cell may be a list: of passages, or of remarks."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


class _Turn(BaseModel):
    """A turn of a conversation, also as ShareGPT names its parts."""

    role: StrictStr = Field(validation_alias=AliasChoices("role", "from"))
    content: StrictStr = Field(validation_alias=AliasChoices("content", "value"))


_TURNS = TypeAdapter(Annotated[list[_Turn], Field(min_length=1)])


@dataclass(frozen=True)
class ColumnMap:
    """Which columns make which field, and what the labels in them mean."""

    columns: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]

    @staticmethod
    def from_flags(map: Sequence[str], labels: str = "") -> "ColumnMap":
        """Parse `field=column` pairs, separated by commas; `+` joins several columns of a field.

        A backslash before `,`, `=` or `+` makes it part of a name.

        Raises:
            UserError: A part is not a pair, a field is unknown, or a name has two values.
        """
        columns: dict[str, tuple[str, ...]] = {}
        for target, column in pairs(",".join(map), "--map").items():
            if target not in TARGETS and not target.startswith("meta."):
                near = difflib.get_close_matches(target, TARGETS, n=1, cutoff=0.0)[0]
                problem = f"no field is called {target}, the nearest is {near}"
                use = f"use {', '.join(TARGETS)} or meta.NAME"
                raise UserError(f"--map {target}={column}: {problem}: {use}")
            columns[target] = tuple(plain(name) for name in split_at(column, "+"))
        return ColumnMap(columns, pairs(labels, "--labels"))

    @property
    def one_per_rater(self) -> bool:
        """Whether the file has a row for each rater of a candidate."""
        return {"id", "rater"} <= self.columns.keys()

    @property
    def pair(self) -> bool:
        """Whether a row has two candidates."""
        return "candidate_a" in self.columns or "candidate_b" in self.columns

    def task(self) -> str:
        """Return the task that the fields and the meanings of the labels imply."""
        if self.pair:
            return "pairwise"
        meant = set(filter(None, self.labels.values()))
        return "pass_fail" if meant and meant <= set(NAMED["pass_fail"]) else "score"

    def check(self, columns: Sequence[str], file: str) -> None:
        """Raise UserError for a column that the file does not have, listing those it has."""
        for target, names in self.columns.items():
            for name in names:
                check_column(columns, name, file, f"--map {target}={name}")

    def convert(self, place: Place, value: Row, reader: LabelReader, prefix: str = "") -> Converted:
        """Make a row of fields with its label from a row of the file.

        Answers that do not count are counted in `reader`.

        Args:
            prefix: What a generated id starts with before the line; default: the file's name.

        Raises:
            RowError: A value cannot be used, or --labels does not name a label.
        """
        row = self.fields(place, value, prefix)
        answers = answers_of(value, self.columns.get("label", ()), place)
        several = len(answers) > 1
        votes = _votes(answers, reader, place, self.one_per_rater or several)
        if not votes:
            return Converted(place, None, "no label")
        if several or answers[0].rater:
            row["annotators"] = [vote.as_row() for vote in votes]
        verdicts = [vote.verdict for vote in votes]
        issues = parsed(self._one("issues", value, place))
        remarks = issues if isinstance(issues, list) else str(issues or "").split(";")
        row["label"] = {
            "verdict": reduce(verdicts, reader.scale, reader.how) if several else verdicts[0],
            "issues": [text for remark in remarks if (text := str(remark).strip())],
            "feedback": self._text("feedback", value, place) or "",
        }
        return Converted(place, row)

    def fields(self, place: Place, value: Row, prefix: str = "") -> Row:
        """Make a row of fields without a label; raise RowError where a value cannot be used."""
        name = self._text("id", value, place)
        row: Row = {"id": name or f"{prefix or place.stem}-{place.row}"}
        row |= {n: text for n in TEXTS if (text := self._text(n, value, place)) is not None}
        if self.pair:
            row["candidates"] = [self._text(f"candidate_{x}", value, place) for x in "ab"]
        if (turns := self._one("conversation", value, place)) not in (None, ""):
            row["conversation"] = _conversation(turns, place)
        names = [*META, "rater", *(name for name in self.columns if name.startswith("meta."))]
        meta = {name.removeprefix("meta."): self._one(name, value, place) for name in names}
        meta = {name: cell for name, cell in meta.items() if cell not in (None, "")}
        return row | ({"meta": meta} if meta else {})

    def _one(self, target: str, value: Row, place: Place) -> object:
        return cell_of(self.columns.get(target, ()), value, place)

    def _text(self, target: str, value: Row, place: Place) -> str | None:
        cells = _cells(self.columns.get(target, ()), value, place)
        for cell in cells:
            if isinstance(cell, bool):  # YAML and pandas read the text "True" as a truth value
                raise place.error(target, f"{cell} is not text", "write it in quotes")
            if isinstance(cell, list) and target not in LISTS and len(cell) != 1:
                name = self.columns[target][0]
                remedy = f"name one item, {target}={name}.0"
                if target == "candidate":
                    remedy += f", or both of a pair, candidate_a={name}.0,candidate_b={name}.1"
                raise place.error(target, f"it is a list of {len(cell)}", remedy)
        return "\n\n".join(filter(None, map(_as_text, cells))) if cells else None


def cell_of(names: Sequence[str], value: Row, place: Place) -> object:
    """Return the cell of a field; those of several columns are joined as texts.

    Returns:
        The cell; None where nothing was written.

    Raises:
        RowError: A cell holds binary data.
    """
    cells = _cells(names, value, place)
    return cells[0] if len(cells) == 1 else ("\n\n".join(map(_as_text, cells)) or None)


def _cells(names: Sequence[str], value: Row, place: Place) -> list[object]:
    """Return the cells of columns that hold something; raise RowError for binary data."""
    cells = [find(value, name) for name in names]
    for name, cell in zip(names, cells, strict=True):
        refuse_bytes(cell, place, name)
    # NaN, which differs from itself, is what pandas leaves where nothing was written.
    return [cell for cell in cells if cell is not None and cell == cell]


class Vote(NamedTuple):
    """The label of one annotator, a verdict or the cell of one, and where it was read."""

    rater: str
    verdict: Any
    place: Place

    def as_row(self) -> Row:
        return {"rater": self.rater, "verdict": self.verdict}


def _votes(
    answers: Sequence[Answer], reader: LabelReader, place: Place, several: bool
) -> list[Vote]:
    """Read the answers of one row; those that do not count are counted in `reader`.

    Raises:
        RowError: An answer cannot be read, unless `reader.drop_bad` and another answer can.
    """
    votes: list[Vote] = []
    bad: list[RowError] = []
    for rater, answer in zip(named([a.rater for a in answers]), answers, strict=True):
        if answer.out:
            reader.left_out.add(answer.out)
            continue
        reader.unstated |= answer.unstated
        try:
            verdict = reader.read(answer.cell, place)
            if several:
                _check_range(verdict, reader.scale, place)
        except RowError as error:
            bad.append(error)
            continue
        if verdict is not None:
            votes.append(Vote(rater, verdict, place))
    return _counted(votes, bad, reader)


def _counted(votes: Sequence[Vote], bad: Sequence[RowError], reader: LabelReader) -> list[Vote]:
    """Count each annotator of a row once, and with `drop_bad` leave out answers that are bad.

    Args:
        bad: The errors of answers that cannot be read.

    Raises:
        RowError: An answer cannot be read, unless `drop_bad` and another answer can; an annotator
            gave two different labels, unless `drop_bad`.
    """
    kept = one_each(votes, reader.left_out, reader.drop_bad)
    if bad and not (kept and reader.drop_bad):
        raise bad[0]
    for problem in bad:
        reader.left_out.add("it cannot be read", str(problem))
    return kept


def named(raters: Sequence[str]) -> list[str]:
    """Name the annotators who have no name by their number."""
    unnamed = "answer " if any(raters) else ""
    return [rater or f"{unnamed}{number}" for number, rater in enumerate(raters, start=1)]


def _check_range(verdict: Verdict | None, scale: Scale, place: Place) -> None:
    """Raise RowError for a number beyond the scale's ends, which the mean of several would hide."""
    if scale.task != "score" or verdict is None:
        return
    if not float(scale.values[0]) <= float(verdict) <= float(scale.values[-1]):
        raise place.error("label", f"{verdict} is off the scale {scale.name}", scale.says())


def one_each(
    votes: Sequence[Vote], left_out: Reasons, drop_bad: bool, field: str = "label"
) -> list[Vote]:
    """Count each annotator once; the other answers are counted in `left_out`.

    Raises:
        RowError: An annotator gave two different labels, unless `drop_bad`.
    """
    first: dict[str, Vote] = {}
    disagreeing: set[str] = set()
    for vote in votes:
        earlier = first.setdefault(vote.rater, vote)
        if earlier.verdict != vote.verdict:
            before = f"{earlier.verdict} ({earlier.place.where})"
            problem = f"annotator {vote.rater} says {before} and {vote.verdict}"
            error = vote.place.error(field, problem, "keep one answer of each annotator")
            if not drop_bad:
                raise error
            left_out.add("its annotator contradicts themself", str(error))
            disagreeing.add(vote.rater)
        elif earlier is not vote:
            left_out.add("the same annotator's answer once more")
    return [vote for vote in first.values() if vote.rater not in disagreeing]


def merge_raters(
    rows: Iterable[Converted], reader: LabelReader, refuse: Callable[[RowError, int], None]
) -> Iterator[Converted]:
    """Join the rows of one id, one row per rater, into one row with annotators.

    Args:
        refuse: Takes the error of rows that cannot be joined, and how many they are: rows of one
            id with different texts, or with two answers of one annotator.
    """
    labelled: list[tuple[Place, Row]] = []
    for converted in rows:
        if converted.row is None:
            yield converted
        else:
            labelled.append((converted.place, converted.row))
    for group in by_id(labelled, ("source", "candidate", "candidates", "conversation"), refuse):
        try:
            yield _merged(group, reader)
        except RowError as error:
            refuse(error, len(group))


def by_id(
    rows: Iterable[tuple[Place, Row]],
    fields: Sequence[str],
    refuse: Callable[[RowError, int], None],
) -> Iterator[list[tuple[Place, Row]]]:
    """Yield the rows of each id.

    Args:
        fields: Those in which the rows of an id must be the same.
        refuse: Takes the error of a row in which one differs from the first row of its id.
    """
    groups: dict[str, list[tuple[Place, Row]]] = {}
    for place, row in rows:
        group = groups.setdefault(str(row["id"]), [])
        earlier, first = group[0] if group else (place, row)
        if other := [field for field in fields if row.get(field) != first.get(field)]:
            problem = f'differs from that of {earlier.where}, both of id "{row["id"]}"'
            refuse(place.error(other[0], problem, "give different texts different ids"), 1)
        else:
            group.append((place, row))
    yield from groups.values()


def _merged(group: Sequence[tuple[Place, Row]], reader: LabelReader) -> Converted:
    """Make one row of the rows of one id; raise RowError for two answers of one annotator."""
    raters = named([str(row.get("meta", {}).pop("rater", "")) for _, row in group])
    given = zip(raters, group, strict=True)
    votes = [Vote(r, row["label"]["verdict"], p) for r, (p, row) in given]
    votes = one_each(votes, reader.left_out, reader.drop_bad)
    place, row = group[0]
    if not votes:
        return Converted(place, None, "no label", rows_read=len(group))
    said = [own["label"] for _, own in group]
    row["label"] = {
        "verdict": reduce([vote.verdict for vote in votes], reader.scale, reader.how),
        "issues": [*dict.fromkeys(issue for label in said for issue in label["issues"])],
        "feedback": " ".join(dict.fromkeys(filter(None, (label["feedback"] for label in said)))),
    }
    row["annotators"] = [vote.as_row() for vote in votes]
    return Converted(place, row, rows_read=len(group))


def _conversation(cell: object, place: Place) -> list[dict[str, str]]:
    try:
        turns = _TURNS.validate_python(parsed(cell))
    except ValidationError as error:
        remedy = 'write [{"role": "user", "content": "..."}, ...] (or "from" and "value")'
        raise place.error("conversation", "it is not a list of turns", remedy) from error
    return [{"role": _ROLES.get(turn.role, turn.role), "content": turn.content} for turn in turns]


def _as_text(cell: object) -> str:
    if isinstance(cell, list) and all(isinstance(item, str) for item in cell):
        return "\n\n".join(cell)
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)


def wanted_values(only: Sequence[str], table: Table) -> dict[str, str]:
    """Parse `--only column=value`; raise UserError for a column that the file does not have."""
    wanted = pairs(",".join(only), "--only")
    for name, text in wanted.items():
        check_column(table.columns, name, table.name, f"--only {name}={text}")
    return wanted


def unwanted(value: Row, wanted: Mapping[str, str]) -> str:
    """Return why --only leaves a row out; "" where it does not."""
    other = [name for name, text in wanted.items() if str(find(value, name)) != text]
    return f"{other[0]} is not {wanted[other[0]]}" if other else ""


def pairs(text: str, flag: str) -> dict[str, str]:
    """Parse `name=value` pairs, separated by commas; the names of --labels become their `key_of`.

    The value may be empty in --labels alone: such a label is none. That of --map keeps its
    backslashes, because `+` separates its columns.

    Raises:
        UserError: A part is not a pair, or a name has two values.
    """
    values: dict[str, str] = {}
    for pair in filter(None, split_at(text, ",")):
        parts = split_at(pair, "=")
        needed = parts[:1] if flag == "--labels" else parts
        if len(parts) != 2 or not all(part.strip() for part in needed):
            raise UserError(f"{flag} {pair!r} is not a pair: write name=name, by commas")
        name, value = plain(parts[0]), parts[1].strip() if flag == "--map" else plain(parts[1])
        key = key_of(name) if flag == "--labels" else name
        if values.setdefault(key, value) != value:
            remedy = "join columns with +" if flag == "--map" else "keep one of them"
            raise UserError(f"{flag} says {name} is {values[key]!r} and {value!r}: {remedy}")
    return values


def split_at(text: str, by: str) -> list[str]:
    """Split at `by` where no backslash precedes it; backslashes are kept."""
    return re.split(rf"(?<!\\){re.escape(by)}", text)


def plain(text: str) -> str:
    """Return a name without the backslashes that made `,`, `=` or `+` parts of it."""
    return re.sub(r"\\([,=+])", r"\1", text.strip())
