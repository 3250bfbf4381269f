"""Formats of two answers to one instruction: PandaLM and LLMBar."""

from collections.abc import Iterator

from pt_app.core.verdicts import Scale
from pt_app.judge_data.annotators import reduce
from pt_app.judge_data.formats.format import FileRows, Format, FormatOptions, stem
from pt_app.judge_data.rows import Converted

_PANDALM = {0: "tie", 1: "A", 2: "B"}
_LLMBAR = {"1": "A", "2": "B"}


def _pandalm(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        answers = [value["response1"], value["response2"]]
        if not all(isinstance(answer, str) for answer in answers):
            # The file's maker let YAML or pandas read "True." as a truth value.
            yield Converted(place, None, "a response is not text")
            continue
        verdicts = []
        for rater in ("annotator1", "annotator2", "annotator3"):
            if value[rater] not in _PANDALM:
                raise place.error(rater, f"{value[rater]!r} is none of 0, 1, 2", "correct it")
            verdicts.append(_PANDALM[value[rater]])
        texts = [text for text in (value["instruction"], value["input"]) if text]
        row = {
            "id": f"pandalm-{value['idx']}",
            "source": "\n\n".join(texts),
            "candidates": answers,
            "label": {"verdict": reduce(verdicts, scale, options.reduce)},
            "annotators": verdicts,
            "meta": {"system": value["cmp_key"], "application": value["motivation_app"]},
        }
        yield Converted(place, row)


def _llmbar(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        label = str(value["label"])
        if label not in _LLMBAR:
            raise place.error("label", f"{label!r} is neither 1 nor 2", "correct it")
        row = {
            "id": f"llmbar-{stem(place)}-{place.row}",
            "source": value["input"],
            "candidates": [value["output_1"], value["output_2"]],
            "label": {"verdict": _LLMBAR[label]},
            "meta": {"part": stem(place)},
        }
        yield Converted(place, row)


PANDALM = Format(
    name="pandalm",
    about="two responses, three annotators (PandaLM's human test set)",
    columns=("instruction", "response1", "response2", "annotator1", "annotator2", "annotator3"),
    scale="pairwise",
    convert=_pandalm,
    template="response",
    origin="PandaLM test set, WeOpenML/PandaLM",
    licence="Apache-2.0",
)
LLMBAR = Format(
    name="llmbar",
    about="two outputs, one of which follows the instruction (LLMBar)",
    columns=("input", "output_1", "output_2", "label"),
    scale="pairwise",
    convert=_llmbar,
    template="response",
    origin="LLMBar, princeton-nlp/LLMBar",
    licence="MIT",
)
