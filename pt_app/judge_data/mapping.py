"""`--map source=src,label=score --labels good=PASS`: a stranger's columns as a judge's rows."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place, RowError
from pt_app.core.verdicts import NAMED, Scale, Verdict
from pt_app.judge_data.annotators import reduce
from pt_app.judge_data.answers import Answer, answers_of
from pt_app.judge_data.cells import MISSING, check_column, find, parsed, refuse_bytes
from pt_app.judge_data.labels import LabelReader, key_of
from pt_app.judge_data.reading.tables import Table
from pt_app.judge_data.rows import Converted, Row

TEXTS = ("group", "source", "context", "reference", "candidate", "rubric")
META = ("system", "document", "time")
TARGETS = (
    *("id", *TEXTS, "candidate_a", "candidate_b", "conversation"),
    *("label", "rater", "issues", "feedback", *META),
)
LISTS = ("context", "issues", "feedback")
"""Fields whose cell may be a list: of passages, or of remarks."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class ColumnMap:
    """Which columns make which field, and what the labels in them mean."""

    columns: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]

    @staticmethod
    def from_flags(map: Sequence[str], labels: str = "") -> "ColumnMap":
        """Read `field=column` pairs, by commas; several columns of a field are joined by `+`.

        A backslash before `,`, `=` or `+` makes it part of a name. Raises UserError for a pair that
        is none, an unknown field and one field named twice.
        """
        columns: dict[str, tuple[str, ...]] = {}
        for target, column in pairs(",".join(map), "--map"):
            if target not in TARGETS and not target.startswith("meta."):
                near = difflib.get_close_matches(target, TARGETS, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"--map {target}={column}: no field is called {target}, the nearest is {near}: "
                    f"use {', '.join(TARGETS)} or meta.NAME"
                )
            if target in columns:
                raise UserError(f"--map names the field {target} twice: join columns with +")
            columns[target] = tuple(_split(column, "+"))
        meanings = {key_of(key): value for key, value in pairs(labels, "--labels")}
        return ColumnMap(columns, meanings)

    def task(self) -> str:
        """Tell the task from the fields and the labels' meanings."""
        if "candidate_a" in self.columns or "candidate_b" in self.columns:
            return "pairwise"
        meant = set(filter(None, self.labels.values()))
        return "pass_fail" if meant and meant <= set(NAMED["pass_fail"]) else "score"

    def check(self, columns: Sequence[str], file: str) -> None:
        """Raise UserError for a column that the file does not have; the line lists those it has."""
        for target, names in self.columns.items():
            for name in names:
                check_column(columns, name, file, f"--map {target}={name}")

    def reader(self, table: Table, scale: Scale, drop_bad: bool = False) -> LabelReader:
        """Make the reader of the label's cells of a file."""
        return LabelReader.of(table, self.columns.get("label", ()), scale, self.labels, drop_bad)

    def convert(
        self,
        place: Place,
        value: Mapping[str, Any],
        reader: LabelReader,
        how: str,
        prefix: str = "",
    ) -> Converted:
        """Make a row of fields, with its label, from a row of the file.

        A row without an id is called after its line, behind `prefix` or the file's name. Answers
        that do not count are counted in `reader`. Raises RowError where a value cannot be used, or
        a label is not in --labels.
        """
        row = self.fields(place, value, prefix)
        answers = answers_of(value, self.columns.get("label", ()), place)
        said = _said(answers, reader, place)
        if not said:
            return Converted(place, None, "no label")
        verdicts = [verdict for _, verdict, _ in said]
        several = len(answers) > 1 or bool(answers[0].rater)
        if several:
            row["annotators"] = [{"rater": rater, "verdict": v} for rater, v, _ in said]
        row["label"] = {
            "verdict": reduce(verdicts, reader.scale, how) if len(answers) > 1 else verdicts[0],
            "issues": _issues(self._one("issues", value, place)),
            "feedback": self._text("feedback", value, place) or "",
        }
        return Converted(place, row)

    def fields(self, place: Place, value: Mapping[str, Any], prefix: str = "") -> Row:
        """Make a row of fields without a label; raises RowError where a value cannot be used."""
        name = self._text("id", value, place)
        row: Row = {"id": name or f"{prefix or place.stem}-{place.row}"}
        for name in TEXTS:
            if (text := self._text(name, value, place)) is not None:
                row[name] = text
        if "candidate_a" in self.columns or "candidate_b" in self.columns:
            row["candidates"] = [self._text(f"candidate_{x}", value, place) for x in "ab"]
        if (turns := self._one("conversation", value, place)) not in (None, ""):
            row["conversation"] = _conversation(turns, place)
        meta = {name: self._one(name, value, place) for name in (*META, "rater")}
        meta |= {n[5:]: self._one(n, value, place) for n in self.columns if n.startswith("meta.")}
        if meta := {name: kept for name, kept in meta.items() if kept not in (None, "")}:
            row["meta"] = meta
        return row

    def _cells(self, target: str, value: Mapping[str, Any], place: Place) -> list[Any]:
        """Find the cells of a field; raises RowError for one that holds no text but bytes."""
        found = [(name, find(value, name)) for name in self.columns.get(target, ())]
        for name, cell in found:
            refuse_bytes(cell, place, name)
        return [cell for _, cell in found if cell is not MISSING]

    def _one(self, target: str, value: Mapping[str, Any], place: Place) -> Any:
        found = self._cells(target, value, place)
        return found[0] if len(found) == 1 else ("\n\n".join(map(_as_text, found)) or None)

    def _text(self, target: str, value: Mapping[str, Any], place: Place) -> str | None:
        # NaN is what a table holds where nothing was written.
        cells = [c for c in self._cells(target, value, place) if c is not None and c == c]
        if not cells:
            return None
        for cell in cells:
            if isinstance(cell, bool):  # YAML and pandas read the text "True" so
                raise place.error(target, f"{cell} is no text", "write it in quotes")
            if isinstance(cell, list) and target not in LISTS and len(cell) != 1:
                raise place.error(target, f"it is a list of {len(cell)}", self._of_list(target))
        texts = [_as_text(cell) for cell in cells]
        return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text)

    def _of_list(self, target: str) -> str:
        """Say how one item of a list is named, or both candidates of a pair."""
        name = self.columns[target][0]
        if target == "candidate":
            pair = f"candidate_a={name}.0,candidate_b={name}.1"
            return f"name one item, candidate={name}.0, or both of a pair, {pair}"
        return f"name one item, {target}={name}.0"


Said = tuple[str, Verdict, Place]
"""An annotator, what they said, and where."""


def _said(answers: Sequence[Answer], reader: LabelReader, place: Place) -> list[Said]:
    """Read the answers of one row; what is none is counted in `reader`.

    Raises RowError for an answer that cannot be read, unless `reader.drop_bad` and another can.
    """
    named = any(answer.rater for answer in answers)
    said: list[Said] = []
    bad: list[RowError] = []
    for number, answer in enumerate(answers, start=1):
        if answer.out:
            reader.leave_out(answer.out)
            continue
        reader.unstated |= answer.unstated
        try:
            verdict = reader.read(answer.cell, place)
            if verdict is not None and len(answers) > 1:
                _check_reach(verdict, reader.scale, place)
        except RowError as error:
            if not reader.drop_bad:
                raise
            bad.append(error)
            continue
        if verdict is not None:
            unnamed = f"answer {number}" if named else str(number)
            said.append((answer.rater or unnamed, verdict, place))
    said = _one_each(said, reader)
    if bad and not said:
        raise bad[0]
    for problem in bad:
        reader.leave_out("it cannot be read", str(problem))
    return said


def _check_reach(verdict: Verdict, scale: Scale, place: Place) -> None:
    """Raise RowError for a number beyond the scale's ends, which a mean of several would hide."""
    if scale.task == "score" and not (
        float(scale.values[0]) <= float(verdict) <= float(scale.values[-1])
    ):
        raise place.error("label", f"{verdict} is off the scale {scale.name}", scale.says())


def _one_each(said: Sequence[Said], reader: LabelReader) -> list[Said]:
    """Count each annotator once; answers without a name are all counted.

    Raises RowError where one annotator said two things, unless `reader.drop_bad`.
    """
    first: dict[str, Said] = {}
    kept: list[Said] = []
    disagreeing: set[str] = set()
    for one in said:
        rater, verdict, place = one
        known = first.setdefault(rater, one) if rater else one
        if known is one:
            kept.append(one)
        elif known[1] == verdict:
            reader.leave_out("the same annotator's answer once more")
        else:
            problem = f"annotator {rater} says {known[1]} ({known[2].where}) and {verdict}"
            error = place.error("label", problem, "keep one answer of each annotator")
            if not reader.drop_bad:
                raise error
            reader.leave_out("its annotator contradicts themself", str(error))
            disagreeing.add(rater)
    return [one for one in kept if one[0] not in disagreeing]


def merge_raters(
    converted: Iterable[Converted],
    reader: LabelReader,
    how: str,
    refuse: Callable[[RowError, int], None],
) -> Iterator[Converted]:
    """Join rows of one id and several raters (one row a rater) into one row with annotators.

    `refuse` gets the error of rows that cannot be joined, and how many they are: rows of one id
    with different texts, or with two answers of one annotator.
    """
    by_id: dict[str, list[Converted]] = {}
    for one in converted:
        if one.row is None:
            yield one
            continue
        group = by_id.setdefault(str(one.row["id"]), [])
        if group and (error := _differing(group[0], one)):
            refuse(error, 1)
            continue
        group.append(one)
    for group in by_id.values():
        try:
            yield _merged(group, reader, how)
        except RowError as error:
            refuse(error, len(group))


def _differing(first: Converted, other: Converted) -> RowError | None:
    """Say in which text two rows of one id differ."""
    one, another = first.row or {}, other.row or {}
    for field in ("source", "candidate", "candidates", "conversation"):
        if one.get(field) != another.get(field):
            return other.place.error(
                field,
                f'differs from that of {first.place.where}, both of id "{one["id"]}"',
                "give two candidates two ids",
            )
    return None


def _merged(group: Sequence[Converted], reader: LabelReader, how: str) -> Converted:
    """Make one row of those of one id; raises RowError for two answers of one annotator."""
    row = dict(group[0].row or {})
    rows = [one.row for one in group if one.row]
    said = [
        (str(row.get("meta", {}).get("rater", "")), row["label"]["verdict"], one.place)
        for row, one in zip(rows, group, strict=True)
    ]
    kept = _one_each(said, reader)
    if not kept:
        return Converted(group[0].place, None, "no label", rows_read=len(group))
    verdict = reduce([verdict for _, verdict, _ in kept], reader.scale, how)
    meta = {key: cell for key, cell in row.pop("meta", {}).items() if key != "rater"}
    row |= {
        "label": {**row["label"], "verdict": verdict},
        "annotators": [{"rater": rater, "verdict": verdict} for rater, verdict, _ in kept],
    }
    return Converted(group[0].place, row | ({"meta": meta} if meta else {}), rows_read=len(group))


def _conversation(cell: Any, place: Place) -> list[dict[str, str]]:
    turns = parsed(cell)
    remedy = 'write [{"role": "user", "content": "..."}, ...] (or "from" and "value")'
    if not isinstance(turns, list) or not turns:
        raise place.error("conversation", "is no list of turns", remedy)
    read = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise place.error("conversation", "a turn has no role or no text", remedy)
        read.append({"role": _ROLES.get(role, role), "content": content})
    return read


def _issues(cell: Any) -> list[str]:
    cell = parsed(cell)
    parts = cell if isinstance(cell, list) else str(cell or "").split(";")
    return [str(part).strip() for part in parts if str(part).strip()]


def _as_text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list) and all(isinstance(one, str) for one in cell):
        return "\n\n".join(cell)
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)


def pairs(text: str, flag: str) -> Iterator[tuple[str, str]]:
    """Read `name=value` pairs, by commas; raises UserError for one that is none.

    The value may be empty in --labels alone: such a label is none.
    """
    for pair in filter(None, _split(text, ",", keep=True)):
        parts = _split(pair, "=", keep=True)
        needed = parts[:1] if flag == "--labels" else parts
        if len(parts) != 2 or not all(part.strip() for part in needed):
            raise UserError(f"{flag} {pair!r} is no pair: write name=name, by commas")
        yield _plain(parts[0]), _plain(parts[1]) if flag != "--map" else parts[1].strip()


def _split(text: str, by: str, keep: bool = False) -> list[str]:
    """Split at `by` where no backslash stands before it; `keep` leaves backslashes in."""
    parts = re.split(rf"(?<!\\){re.escape(by)}", text)
    return parts if keep else [_plain(part) for part in parts]


def _plain(text: str) -> str:
    return re.sub(r"\\([,=+])", r"\1", text.strip())
