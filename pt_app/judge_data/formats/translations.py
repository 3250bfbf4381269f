"""Formats of single translations: MLQE-PE, ParaCrawl's human evaluation, DEMETR."""

import json
from collections.abc import Iterator
from hashlib import sha256

from pt_app.core.verdicts import Scale
from pt_app.judge_data.annotators import reduce
from pt_app.judge_data.formats.format import FileRows, Format, FormatOptions, stem
from pt_app.judge_data.reading.tables import Reading
from pt_app.judge_data.rows import Converted

# README of paracrawl/human-evaluations.
_PARACRAWL = {
    "V": ("PASS", ""),
    "F": ("PASS", "free translation"),
    "E": ("FAIL", "translation error"),
    "MT": ("FAIL", "machine translation"),
    "A": ("FAIL", "misaligned"),
    "L": ("FAIL", "wrong language"),
    "T": ("FAIL", "wrong tokenisation"),
}


def _mlqe_pe(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        try:
            scores = [int(x) if float(x).is_integer() else x for x in json.loads(value["scores"])]
        except (ValueError, TypeError) as error:
            raise place.error("scores", "is no list of numbers", "correct it") from error
        if not scores:
            yield Converted(place, None, "no label")
            continue
        row = {
            "id": f"{stem(place)}-{value['index']}",
            "source": value["original"],
            "candidate": value["translation"],
            "label": {"verdict": reduce(scores, scale, options.reduce)},
            "annotators": scores,
            "meta": {"part": stem(place)},
        }
        yield Converted(place, row)


def _paracrawl(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        if value["label"] not in _PARACRAWL:
            raise place.error(
                "label", f"{value['label']!r} is none of {', '.join(_PARACRAWL)}", "correct it"
            )
        verdict, issue = _PARACRAWL[value["label"]]
        row = {
            "id": f"paracrawl-{place.row}",
            "source": value["src"],
            "candidate": value["trg"],
            "label": {
                "verdict": verdict,
                "issues": [issue] if issue else [],
                "feedback": value["comments"],
            },
            "meta": {"label": value["label"]},
        }
        yield Converted(place, row)


def _demetr(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        if not value["pert_check"]:
            yield Converted(place, None, "the perturbation was not checked")
        elif value["severity"] == "base":
            yield Converted(place, None, "a baseline without a perturbation to find")
        elif value["pert_sent"] == value["mt_sent"]:
            yield Converted(place, None, "the perturbation changed nothing")
        else:
            yield Converted(place, _demetr_row(value))


def _demetr_row(value: dict[str, object]) -> dict[str, object]:
    """Lay out a pair: the translation, better, and its perturbation, in an order by chance."""
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


MLQE_PE = Format(
    name="mlqe-pe",
    about="direct assessments of translations, 0-100, by six people",
    columns=("index", "original", "translation", "scores", "mean", "z_mean"),
    scale="0-100",
    convert=_mlqe_pe,
    template="translation_any",
    origin="MLQE-PE direct assessments, sheffieldnlp/mlqe-pe",
    licence="CC0-1.0",
    member="*.df.short.tsv",
    reading=Reading(delimiter="tab", quoting="off"),
)
PARACRAWL = Format(
    name="paracrawl-human",
    about="sentence pairs of a web corpus, valid or not",
    columns=("url1", "url2", "src", "trg", "hunalign", "zipporah", "bicleaner", "label"),
    scale="pass_fail",
    convert=_paracrawl,
    template="translation_any",
    rubric="PASS is a valid or free translation. FAIL is a translation error, machine "
    "translation, a misaligned pair, a wrong language or wrong tokenisation.",
    origin="ParaCrawl human evaluations, release 3, paracrawl/human-evaluations",
    licence="CC-BY-SA-4.0",
    reading=Reading(
        delimiter="tab",
        quoting="off",
        header=(
            *("url1", "url2", "src", "trg", "hunalign", "zipporah", "bicleaner", "label"),
            "comments",
        ),
    ),
)
DEMETR = Format(
    name="demetr",
    about="a translation and the same with a known error put in",
    columns=("src_sent", "eng_sent", "mt_sent", "pert_sent", "pert_check", "severity"),
    scale="pairwise",
    convert=_demetr,
    template="translation_any",
    origin="DEMETR, marzenakrp/demetr",
    licence="MIT",
)
