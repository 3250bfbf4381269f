"""Public formats by name: what `judge data import --format NAME` reads.

`formats.yaml` describes them. Here are the conversions of the sets whose rows stand for themselves
(translations, and pairs of answers); `mqm` has that of one row per error.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace
from hashlib import sha256
from pathlib import Path

import yaml
from pydantic.dataclasses import dataclass as checked_dataclass

from pt_app.core.errors import UserError
from pt_app.core.records import Place
from pt_app.core.verdicts import Scale, Verdict
from pt_app.judge_data.formats.mqm import Weights, wmt_mqm
from pt_app.judge_data.labels import reduce
from pt_app.judge_data.options import FormatOptions, Reading
from pt_app.judge_data.reading.files import is_archive
from pt_app.judge_data.reading.tables import Rows, Table, open_table
from pt_app.judge_data.rows import Converted, Row

BY_WEIGHTS = "by mqm_weights"

Convert = Callable[[Rows, Scale, FormatOptions], Iterator[Converted]]
Combine = Callable[[Sequence[Verdict]], Verdict]


@checked_dataclass(frozen=True)
class Format:
    """A public format, as formats.yaml describes it.

    Attributes:
        columns: The columns by which it is recognised.
        scale: The name of its scale, or `BY_WEIGHTS`.
        convert: Makes rows of a dataset from the rows of one file, or says why not.
        labels: What its labels mean.
        issues: The issue that a label names.
        member: The member of an archive that holds the rows.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    scale: str
    convert: Convert
    template: str
    rubric: str = ""
    origin: str = ""
    licence: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    issues: dict[str, str] = field(default_factory=dict)
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


def row_by_row(row_of: Callable[[Place, Row, Combine], Row | str]) -> Convert:
    """Make the `convert` of a format whose rows stand for themselves.

    Args:
        row_of: Returns a row of the dataset, or the reason for none. It gets the place and the
            cells of a row, and the function that combines the labels of several annotators.
    """

    def convert(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
        def combine(verdicts: Sequence[Verdict]) -> Verdict:
            return reduce(verdicts, scale, options.reduce)

        for place, value in rows:
            made = row_of(place, value, combine)
            yield Converted(place, None, made) if isinstance(made, str) else Converted(place, made)

    return convert


def meaning(name: str, value: Row, column: str, place: Place) -> str:
    """Return what a label of a format means; raise RowError for one that the format does not have.

    Labels are compared as texts, so that 1 and "1" are alike.
    """
    cell, labels = str(value[column]), FORMATS[name].labels
    if cell not in labels:
        raise place.error(column, f"{cell!r} is none of {', '.join(labels)}", "correct it")
    return labels[cell]


def stem(place: Place) -> str:
    """Return the name of a file up to its first dot, for ids."""
    return place.file.name.partition(".")[0]


@row_by_row
def mlqe_pe(place: Place, value: Row, combine: Combine) -> Row | str:
    try:
        scores = [int(x) if float(x).is_integer() else x for x in json.loads(value["scores"])]
    except (ValueError, TypeError) as error:
        raise place.error("scores", "it is not a list of numbers", "correct it") from error
    if not scores:
        return "no label"
    return {
        "id": f"{stem(place)}-{value['index']}",
        "source": value["original"],
        "candidate": value["translation"],
        "label": {"verdict": combine(scores)},
        "annotators": scores,
        "meta": {"part": stem(place)},
    }


@row_by_row
def paracrawl(place: Place, value: Row, combine: Combine) -> Row | str:
    label = {"verdict": meaning("paracrawl-human", value, "label", place)}
    issue = FORMATS["paracrawl-human"].issues.get(value["label"])
    return {
        "id": f"paracrawl-{place.row}",
        "source": value["src"],
        "candidate": value["trg"],
        "label": {**label, "issues": [issue] if issue else [], "feedback": value["comments"]},
        "meta": {"label": value["label"]},
    }


@row_by_row
def demetr(place: Place, value: Row, combine: Combine) -> Row | str:
    """Make a pair of the translation, which is better, and its perturbation.

    A hash of the id decides the order of the two, so that neither position is the better one.
    """
    if not value["pert_check"]:
        return "the perturbation was not checked"
    if value["severity"] == "base":
        return "a baseline without a perturbation to find"
    if value["pert_sent"] == value["mt_sent"]:
        return "the perturbation changed nothing"
    name = f"demetr-{value['pert_name']}-{value['id']}"
    pair = [value["mt_sent"], value["pert_sent"]]
    better_first = sha256(name.encode()).digest()[0] % 2 == 0
    return {
        "id": name,
        "source": value["src_sent"],
        "reference": value["eng_sent"],
        "candidates": pair if better_first else pair[::-1],
        "label": {"verdict": "A" if better_first else "B", "issues": [value["pert_desc"]]},
        "errors": [str(value["pert_name"]).partition("_")[2].partition("_")[2]],
        "meta": {"severity": value["severity"], "language": value["lang_tag"]},
    }


@row_by_row
def pandalm(place: Place, value: Row, combine: Combine) -> Row | str:
    answers = [value["response1"], value["response2"]]
    if not all(isinstance(answer, str) for answer in answers):
        # Whoever made the file let YAML or pandas read "True." as a truth value.
        return "a response is not text"
    verdicts = [meaning("pandalm", value, f"annotator{i}", place) for i in (1, 2, 3)]
    return {
        "id": f"pandalm-{value['idx']}",
        "source": "\n\n".join(text for text in (value["instruction"], value["input"]) if text),
        "candidates": answers,
        "label": {"verdict": combine(verdicts)},
        "annotators": verdicts,
        "meta": {"system": value["cmp_key"], "application": value["motivation_app"]},
    }


@row_by_row
def llmbar(place: Place, value: Row, combine: Combine) -> Row | str:
    return {
        "id": f"llmbar-{stem(place)}-{place.row}",
        "source": value["input"],
        "candidates": [value["output_1"], value["output_2"]],
        "label": {"verdict": meaning("llmbar", value, "label", place)},
        "meta": {"part": stem(place)},
    }


CONVERT = {
    "mlqe-pe": mlqe_pe,
    "wmt-mqm": wmt_mqm,
    "pandalm": pandalm,
    "llmbar": llmbar,
    "demetr": demetr,
    "paracrawl-human": paracrawl,
    "chat": row_by_row(lambda _place, value, _combine: value),
}
_FILE = Path(__file__).with_name("formats.yaml")
_ABOUT = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
FORMATS = {name: Format(name, convert=CONVERT[name], **about) for name, about in _ABOUT.items()}
CHAT = FORMATS["chat"]


def get(name: str) -> Format:
    """Return the format of that name; raise UserError for an unknown one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        use = f"use {', '.join(FORMATS)}, or --map"
        raise UserError(f"--format {name} is unknown, the nearest is {near}: {use}")
    return FORMATS[name]


def fitting(columns: tuple[str, ...]) -> list[Format]:
    """Return the formats that a file with these columns may be of."""
    return [fmt for fmt in FORMATS.values() if fmt.columns and fmt.fits(columns)]
