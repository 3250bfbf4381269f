"""`--map source=src,label=score --labels good=PASS`: a stranger's columns as a judge's rows."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pt_app.errors import UserError
from pt_app.eval_model.records import Place
from pt_app.eval_model.verdicts import NAMED, Scale, Verdict
from pt_app.judge_data.annotators import reduce
from pt_app.judge_data.rows import Converted, Row

TEXTS = ("group", "source", "context", "reference", "candidate", "rubric")
META = ("system", "document", "time")
TARGETS = (
    *("id", *TEXTS, "candidate_a", "candidate_b", "conversation"),
    *("label", "rater", "issues", "feedback", *META),
)
_MISSING = object()
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
        meanings = {key.casefold(): value for key, value in pairs(labels, "--labels")}
        return ColumnMap(columns, meanings)

    def task(self) -> str:
        """Tell the task from the fields and the labels' meanings."""
        if "candidate_a" in self.columns or "candidate_b" in self.columns:
            return "pairwise"
        meant = set(self.labels.values())
        return "pass_fail" if meant and meant <= set(NAMED["pass_fail"]) else "score"

    def check(self, columns: Sequence[str], file: str) -> None:
        """Raise UserError for a column that the file does not have; the line lists those it has."""
        for target, names in self.columns.items():
            for name in names:
                if name not in columns and name.split(".")[0] not in columns:
                    shown = sorted(
                        columns, key=lambda c: -difflib.SequenceMatcher(None, c, name).ratio()
                    )
                    raise UserError(
                        f"{file} has no column {name} (--map {target}={name}): its columns are "
                        f"{', '.join(shown)}"
                    )

    def convert(
        self, place: Place, value: Mapping[str, Any], scale: Scale, how: str, prefix: str = ""
    ) -> Converted:
        """Make a row of fields, with its label, from a row of the file.

        A row without an id is called after its line, behind `prefix` or the file's name.

        Raises RowError where a value cannot be used, or a label is not in --labels.
        """
        row = self.fields(place, value, prefix)
        verdicts = self._verdicts(place, value, scale)
        given = [verdict for verdict in verdicts if verdict is not None]
        if not given:
            return Converted(place, None, "no label")
        if len(verdicts) > 1:
            named = enumerate(verdicts, start=1)
            row["annotators"] = [{"rater": str(i), "verdict": v} for i, v in named if v is not None]
        row["label"] = {
            "verdict": reduce(given, scale, how) if len(verdicts) > 1 else given[0],
            "issues": _issues(self._one("issues", value)),
            "feedback": self._text("feedback", value, place) or "",
        }
        return Converted(place, row)

    def fields(self, place: Place, value: Mapping[str, Any], prefix: str = "") -> Row:
        """Make a row of fields without a label; raises RowError where a value cannot be used."""
        name = self._text("id", value, place)
        row: Row = {"id": name or f"{prefix or place.file.stem}-{place.row}"}
        for name in TEXTS:
            if (text := self._text(name, value, place)) is not None:
                row[name] = text
        if "candidate_a" in self.columns or "candidate_b" in self.columns:
            row["candidates"] = [self._text(f"candidate_{x}", value, place) for x in "ab"]
        if (turns := self._one("conversation", value)) not in (None, ""):
            row["conversation"] = _conversation(turns, place)
        meta = {name: self._one(name, value) for name in (*META, "rater")}
        meta |= {n[5:]: self._one(n, value) for n in self.columns if n.startswith("meta.")}
        if meta := {name: kept for name, kept in meta.items() if kept not in (None, "")}:
            row["meta"] = meta
        return row

    def _verdicts(
        self, place: Place, value: Mapping[str, Any], scale: Scale
    ) -> list[Verdict | None]:
        """Read the label's columns; a list in one of them holds one label a rater."""
        found: list[Any] = []
        for name in self.columns.get("label", ()):
            cell = _parsed(_find(value, name))
            found += cell if isinstance(cell, list) else [cell]
        return [read_label(cell, scale, self.labels, place) for cell in found]

    def _one(self, target: str, value: Mapping[str, Any]) -> Any:
        names = self.columns.get(target, ())
        found = [cell for name in names if (cell := _find(value, name)) is not _MISSING]
        return found[0] if len(found) == 1 else ("\n\n".join(map(_as_text, found)) or None)

    def _text(self, target: str, value: Mapping[str, Any], place: Place) -> str | None:
        names = self.columns.get(target, ())
        cells = [cell for name in names if (cell := _find(value, name)) not in (_MISSING, None)]
        if not cells:
            return None
        for cell in cells:
            if isinstance(cell, bool):  # YAML and pandas read the text "True" so
                raise place.error(target, f"{cell} is no text", "write it in quotes")
        texts = [_as_text(cell) for cell in cells]
        return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text)


def read_label(cell: Any, scale: Scale, labels: Mapping[str, str], place: Place) -> Verdict | None:
    """Read one label to the letter: None where the cell is empty.

    A number may be text ("7", "7,5"); names are read in any case; true is PASS. Raises RowError for
    what is none, and for a value that --labels leaves out.
    """
    if cell is None or cell is _MISSING or cell != cell or str(cell).strip() == "":
        return None
    text = str(cell).strip()
    if labels:
        if text.casefold() not in labels:
            raise place.error(
                "label", f"{text!r} has no meaning", f"add it to --labels ({text}=...)"
            )
        text = labels[text.casefold()]
    if isinstance(cell, bool) and not labels:
        text = {"pass_fail": ("FAIL", "PASS")}.get(scale.task, (text, text))[cell]
    if scale.task != "score":
        for verdict in scale.values:
            if str(verdict).casefold() == text.casefold():
                return verdict
        remedy = f"say what it means, such as --labels {text}={scale.values[0]}"
        raise place.error("label", f"{text!r} is none of {_or(scale)}", remedy)
    number = re.fullmatch(r"[-+]?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?", text)
    if not number:
        raise place.error("label", f"{text!r} is no number", "say what it means with --labels")
    value = float(text.replace(",", "."))
    return int(value) if value.is_integer() else value


def merge_raters(converted: Iterable[Converted], scale: Scale, how: str) -> Iterator[Converted]:
    """Join rows of one id and several raters (one row a rater) into one row with annotators.

    Raises RowError where two rows of one id do not hold the same texts.
    """
    first: dict[str, Converted] = {}
    said: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, int] = {}
    for one in converted:
        if one.row is None:
            yield one
            continue
        name = str(one.row["id"])
        known = first.setdefault(name, one).row
        assert known is not None, "only rows are kept"
        for field in ("source", "candidate", "candidates", "conversation"):
            if known.get(field) != one.row.get(field):
                raise one.place.error(
                    field,
                    f'differs from that of {first[name].place.where}, both of id "{name}"',
                    "give two candidates two ids",
                )
        rater = str(one.row.get("meta", {}).get("rater", ""))
        said.setdefault(name, []).append({"rater": rater, "verdict": one.row["label"]["verdict"]})
        counts[name] = counts.get(name, 0) + 1
    for name, one in first.items():
        row = dict(one.row or {})
        meta = {key: kept for key, kept in row.pop("meta", {}).items() if key != "rater"}
        label = {**row["label"], "verdict": reduce([a["verdict"] for a in said[name]], scale, how)}
        row |= {"label": label, "annotators": said[name]} | ({"meta": meta} if meta else {})
        yield Converted(one.place, row, rows_read=counts[name])


def _find(value: Any, name: str) -> Any:
    """Look a column up: by its name, else as a path (`a.0.b`); `*` stands for each of a list."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, _, rest = name.partition(".")
    if head == "*" and isinstance(value, list):
        found = [_find(one, rest) if rest else one for one in value]
        return [None if one is _MISSING else one for one in found]
    if isinstance(value, Mapping) and head in value:
        inner = value[head]
    elif isinstance(value, list) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    else:
        return _MISSING
    return _find(_parsed(inner), rest) if rest else inner


def _parsed(cell: Any) -> Any:
    """Read a cell that holds a JSON list or object as text; any other as it is."""
    if isinstance(cell, str) and cell.strip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _conversation(cell: Any, place: Place) -> list[dict[str, str]]:
    turns = _parsed(cell)
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
    cell = _parsed(cell)
    parts = cell if isinstance(cell, list) else str(cell or "").split(";")
    return [str(part).strip() for part in parts if str(part).strip()]


def _as_text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)


def _or(scale: Scale) -> str:
    return ", ".join(map(str, scale.values))


def pairs(text: str, flag: str) -> Iterator[tuple[str, str]]:
    """Read `name=value` pairs, by commas; raises UserError for one that is none."""
    for pair in filter(None, _split(text, ",", keep=True)):
        parts = _split(pair, "=", keep=True)
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise UserError(f"{flag} {pair!r} is no pair: write name=name, by commas")
        yield _plain(parts[0]), _plain(parts[1]) if flag != "--map" else parts[1].strip()


def _split(text: str, by: str, keep: bool = False) -> list[str]:
    """Split at `by` where no backslash stands before it; `keep` leaves backslashes in."""
    parts = re.split(rf"(?<!\\){re.escape(by)}", text)
    return parts if keep else [_plain(part) for part in parts]


def _plain(text: str) -> str:
    return re.sub(r"\\([,=+])", r"\1", text.strip())
