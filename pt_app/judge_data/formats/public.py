"""Converts public sets whose rows stand for themselves: translations, and pairs of answers."""

import json
from hashlib import sha256
from typing import Any

from pt_app.core.records import Place
from pt_app.judge_data.formats.format import Combine, meaning, row_by_row, stem
from pt_app.judge_data.rows import Row

_PANDALM = {"0": "tie", "1": "A", "2": "B"}
_LLMBAR = {"1": "A", "2": "B"}
# README of paracrawl/human-evaluations.
_PARACRAWL = {
    "V": ("PASS", []),
    "F": ("PASS", ["free translation"]),
    "E": ("FAIL", ["translation error"]),
    "MT": ("FAIL", ["machine translation"]),
    "A": ("FAIL", ["misaligned"]),
    "L": ("FAIL", ["wrong language"]),
    "T": ("FAIL", ["wrong tokenisation"]),
}


@row_by_row
def mlqe_pe(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
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
def paracrawl(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
    verdict, issues = meaning(value, "label", _PARACRAWL, place)
    return {
        "id": f"paracrawl-{place.row}",
        "source": value["src"],
        "candidate": value["trg"],
        "label": {"verdict": verdict, "issues": issues, "feedback": value["comments"]},
        "meta": {"label": value["label"]},
    }


@row_by_row
def demetr(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
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
def pandalm(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
    answers = [value["response1"], value["response2"]]
    if not all(isinstance(answer, str) for answer in answers):
        # Whoever made the file let YAML or pandas read "True." as a truth value.
        return "a response is not text"
    verdicts = [meaning(value, f"annotator{i}", _PANDALM, place) for i in (1, 2, 3)]
    return {
        "id": f"pandalm-{value['idx']}",
        "source": "\n\n".join(text for text in (value["instruction"], value["input"]) if text),
        "candidates": answers,
        "label": {"verdict": combine(verdicts)},
        "annotators": verdicts,
        "meta": {"system": value["cmp_key"], "application": value["motivation_app"]},
    }


@row_by_row
def llmbar(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
    return {
        "id": f"llmbar-{stem(place)}-{place.row}",
        "source": value["input"],
        "candidates": [value["output_1"], value["output_2"]],
        "label": {"verdict": meaning(value, "label", _LLMBAR, place)},
        "meta": {"part": stem(place)},
    }


@row_by_row
def as_they_are(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
    """Take rows as they are."""
    return value
