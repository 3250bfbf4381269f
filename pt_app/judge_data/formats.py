"""Public formats by name: what `judge data import --format NAME` reads.

`formats.yaml` describes them, most of them whole: they are read as `--map` and `--labels` read a
file. Here are the conversions that need more: of DEMETR, and of MQM, which has one row per error.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from decimal import Decimal
from hashlib import sha256
from math import isfinite
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.dataclasses import dataclass as checked_dataclass

from pt_app.core.errors import UserError
from pt_app.core.records import Place, RowError, checked
from pt_app.core.verdicts import Scale, Verdict
from pt_app.core.yaml_files import read_yaml
from pt_app.judge_data.decision_rows import LABELS as DECISIONS
from pt_app.judge_data.labels import LabelReader, key_of, nearest, reduce
from pt_app.judge_data.mapping import ColumnMap
from pt_app.judge_data.options import FormatOptions, Reading
from pt_app.judge_data.reading.files import is_archive
from pt_app.judge_data.reading.tables import Rows, Table, open_table
from pt_app.judge_data.rows import Converted, Row, parsed

BY_WEIGHTS = "by mqm_weights"
WEIGHTS = Path(__file__).with_name("mqm_weights")
_SPAN = re.compile(r"<v>(.*?)</v>", re.DOTALL)

Rating = list[tuple[Place, Row]]
"""The rows of one rater for one translation."""


class SpecialWeight(BaseModel):
    """The penalty of errors whose category starts so; the severity `*` is any."""

    category: str
    severity: str
    weight: Decimal


class Weights(BaseModel):
    """Penalties of MQM errors. A score is the scale's top less their sum, at least its low end."""

    name: str = ""
    scale: str
    severities: dict[str, Decimal]
    exceptions: list[SpecialWeight] | None = None

    @staticmethod
    def load(name: str) -> "Weights":
        """Read weights by name, or from a YAML file of the same form.

        Raises UserError for a name or file that does not exist, and for a file of another form.
        """
        shipped = {file.stem: file for file in sorted(WEIGHTS.glob("*.yaml"))}
        path = shipped.get(name, Path(name))
        absent = f"is none of {', '.join(shipped)} and no YAML file: name one with --mqm_weights"
        remedy = f"write scale, severities and exceptions as in {WEIGHTS.name}/google.yaml"
        weights = checked(Weights, read_yaml(path, absent, remedy), path, remedy)
        Scale.from_name(weights.scale)  # refuses what is not a scale
        return weights.model_copy(update={"name": path.stem})

    def penalty(self, category: str, severity: str, place: Place) -> Decimal:
        """Return the penalty of one error; raise RowError for a severity without a weight."""
        for special in self.exceptions or ():
            if category.startswith(special.category) and special.severity in ("*", severity):
                return special.weight
        if severity not in self.severities:
            problem = f"{severity!r} has no weight in {self.name}"
            raise place.error("severity", problem, "add it to the weights")
        return self.severities[severity]

    def score(self, rating: Rating, scale: Scale) -> Verdict:
        """Return the score of one rater for one translation."""
        penalties = (self.penalty(v["category"], v["severity"], place) for place, v in rating)
        return nearest(float(Decimal(str(scale.values[-1])) - sum(penalties)), scale)


@checked_dataclass(frozen=True)
class Format:
    """A public format, as formats.yaml describes it.

    Attributes:
        columns: The columns by which it is recognised.
        scale: The name of its scale, or `BY_WEIGHTS`.
        map: The columns of its fields, as `--map` names them.
        labels: What its labels mean, as `--labels` says it.
        id: The id of a row, with the names of columns in braces.
        issues: The issue that a label names: the column `issue`.
        skip: The reason why rows that cannot be used are left out; "": they are an error.
        member: The member of an archive that holds the rows.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    scale: str
    template: str
    rubric: str = ""
    origin: str = ""
    licence: str = ""
    map: str = ""
    labels: str = ""
    id: str = ""
    issues: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    member: str = ""
    reading: Reading = Reading()

    def scale_of(self, options: FormatOptions) -> str:
        """Return the name of the scale; that of MQM scores depends on the weights."""
        by_weights = self.scale == BY_WEIGHTS
        return Weights.load(options.mqm_weights).scale if by_weights else self.scale

    def fits(self, columns: tuple[str, ...]) -> bool:
        """Return whether a file with these columns is of this format."""
        return set(self.columns) <= set(columns)

    def open(self, file: str, reading: Reading) -> Table:
        """Open a file of this format; the settings of `reading` overrule what is known of it."""
        if self.member and "::" not in file and is_archive(Path(file)):
            file = f"{file}::{self.member}"
        return open_table(file, replace(self.reading, **reading.given()))

    def convert(
        self,
        rows: Rows,
        scale: Scale,
        options: FormatOptions,
        refuse: Callable[[RowError], None],
    ) -> Iterator[Converted]:
        """Make rows of a dataset from the rows of one file, or say why not.

        `refuse` takes the error of a row that cannot be used.

        A map may also name the columns `stem`, the name of the file up to its first dot, `row`,
        the number of the row in it, `id` and `issue`.
        """
        rows = self._complete(rows, refuse)
        if self.name in CONVERT:
            yield from CONVERT[self.name](rows, scale, options)
            return
        map = ColumnMap.from_flags([f"id=id,{self.map}"], self.labels)
        reader = LabelReader(scale, map.labels, how=options.reduce)
        issues = {key_of(label): issue for label, issue in self.issues.items()}
        targets = ("candidate", "candidate_a", "candidate_b")
        judged = [name for target in targets for name in map.columns.get(target, ())]
        sources = map.columns["source"]
        for place, value in rows:
            cells: Row = value | {"stem": place.file.name.partition(".")[0], "row": place.row}
            cells["id"] = self.id.format(**cells)
            cells["issue"] = issues.get(key_of(value.get("label")))
            no_text = [name for name in judged if not isinstance(value.get(name), str)]
            if self.skip and no_text:
                yield Converted(place, None, self.skip)
                continue
            cells |= dict.fromkeys(no_text)
            for name in map.columns["label"]:
                self._check_label(name, value, place)
            try:
                if not all(isinstance(value.get(name), str | None) for name in sources):
                    raise place.error("source", "input should be a valid string", "correct it")
                yield map.convert(place, cells, reader)
            except RowError as error:
                refuse(error)

    def _complete(self, rows: Rows, refuse: Callable[[RowError], None]) -> Rows:
        """Yield the rows that have every column of the format: one of JSON may lack some."""
        for place, value in rows:
            if missing := [name for name in self.columns if name not in value]:
                refuse(place.error(missing[0], "the row has none", "correct it"))
            else:
                yield place, value

    def _check_label(self, name: str, value: Row, place: Place) -> None:
        """Raise RowError for a label that the format does not have; --labels is not for formats."""
        if name.endswith(".*"):
            if not _are_numbers(parsed(value.get(name[:-2]))):
                raise place.error(name[:-2], "it is not a list of numbers", "correct it")
            return
        names = [pair.partition("=")[0] for pair in self.labels.split(",")]
        if key_of(value.get(name)) not in map(key_of, names):
            problem = f"{str(value.get(name))!r} is none of {', '.join(names)}"
            raise place.error(name, problem, "correct it")


def _are_numbers(items: object) -> bool:
    try:
        return isinstance(items, list) and all(
            not isinstance(item, bool) and isfinite(float(item)) for item in items
        )
    except (TypeError, ValueError):
        return False


def demetr(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    """Make pairs of a translation, which is better, and its perturbation.

    A hash of the id decides the order of the two, so that neither position is the better one.
    """
    for place, value in rows:
        reasons = {
            "the perturbation was not checked": not value["pert_check"],
            "a baseline without a perturbation to find": value["severity"] == "base",
            "the perturbation changed nothing": value["pert_sent"] == value["mt_sent"],
        }
        if reason := next((reason for reason, applies in reasons.items() if applies), ""):
            yield Converted(place, None, reason)
            continue
        name = f"demetr-{value['pert_name']}-{value['id']}"
        pair = [value["mt_sent"], value["pert_sent"]]
        better_first = sha256(name.encode()).digest()[0] % 2 == 0
        row = {
            "id": name,
            "source": value["src_sent"],
            "reference": value["eng_sent"],
            "candidates": pair if better_first else pair[::-1],
            "label": {"verdict": "A" if better_first else "B", "issues": [value["pert_desc"]]},
            "errors": [str(value["pert_name"]).partition("_")[2].partition("_")[2]],
            "meta": {"severity": value["severity"], "language": value["lang_tag"]},
        }
        yield Converted(place, row)


def wmt_mqm(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    """Group the error spans by translation and rater; convert each translation."""
    weights = Weights.load(options.mqm_weights)
    translations: dict[tuple[str, ...], dict[str, Rating]] = {}
    for place, value in rows:
        key = (value["system"], value["doc"], value["seg_id"])
        translations.setdefault(key, {}).setdefault(value["rater"], []).append((place, value))
    for ratings in translations.values():
        scores = {rater: weights.score(rating, scale) for rater, rating in ratings.items()}
        errors = [row for rating in ratings.values() for row in rating]
        yield _translation(errors, scores, reduce([*scores.values()], scale, options.reduce))


def _translation(errors: Rating, scores: Mapping[str, Verdict], verdict: Verdict) -> Converted:
    """Make the row of one translation from the rows of its error spans."""
    place, first = errors[0]
    source, candidate = _texts(first)
    for where, value in errors:
        if _texts(value) != (source, candidate):
            problem = f"is not that of {place.where}, the same segment"
            raise where.error("target", problem, "correct one of them")
    row = {
        "id": f"{place.stem}-{first['system']}-{first['doc']}-{first['seg_id']}",
        "source": source,
        "candidate": candidate,
        "label": {
            "verdict": verdict,
            "issues": list(_issues(errors)),
            "feedback": " ".join(v["comment"] for _, v in errors if v.get("comment")),
        },
        "annotators": [{"rater": rater, "verdict": score} for rater, score in scores.items()],
        "meta": {"system": first["system"], "document": first["doc"], "segment": first["seg_id"]},
    }
    return Converted(place, row, rows_read=len(errors))


def _texts(value: Mapping[str, str]) -> tuple[str, str]:
    return re.sub(r"</?v>", "", value["source"]), re.sub(r"</?v>", "", value["target"])


def _issues(errors: Rating) -> Iterator[str]:
    for _, value in errors:
        if value["category"].casefold() in ("no-error", "no error"):
            continue
        spans = _SPAN.findall(value["target"]) or _SPAN.findall(value["source"])
        issue = f"{value['category']} {value['severity'].lower()}"
        yield issue + "".join(f' "{span.strip()}"' for span in spans)


def as_they_are(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    """Take rows as they are."""
    return (Converted(place, value) for place, value in rows)


CONVERT = {"wmt-mqm": wmt_mqm, "demetr": demetr, "chat": as_they_are}
_FILE = Path(__file__).with_name("formats.yaml")
_ABOUT = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
FORMATS = {name: Format(name, **about) for name, about in _ABOUT.items()}
CHAT = FORMATS["chat"]


def get(name: str) -> Format:
    """Return the format of that name; raise UserError for an unknown one."""
    if name not in FORMATS:
        known = (*FORMATS, *DECISIONS)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        use = f"use {', '.join(known)}, or --map"
        raise UserError(f"--format {name} is unknown, the nearest is {near}: {use}")
    return FORMATS[name]


def fitting(columns: tuple[str, ...]) -> list[Format]:
    """Return the formats that a file with these columns may be of."""
    return [fmt for fmt in FORMATS.values() if fmt.columns and fmt.fits(columns)]
