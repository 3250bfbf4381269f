"""The overview of a judge of several questions: a row for each, and below it other judges'."""

from typing import TYPE_CHECKING

from pt_app.core.formatting import NAMES, UNDEFINED, estimate, inline, number
from pt_app.core.questions import NAME

if TYPE_CHECKING:
    from pt_app.core.results import Metric, QuestionSummary, Results

HEADER = [
    "question",
    "n",
    "agreement",
    "base",
    "best baseline",
    "one annotator",
    "ECE",
    "kept",
    "order",
]


def overview_table(results: "Results", pages: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and the cells of each question.

    Args:
        results: the overview.
        pages: names are links to the pages of the questions, in Markdown.
    """
    lines = []
    for name, own in results.questions.items():
        cells = _cells(own)
        linked = own.n and NAME.fullmatch(name)  # such a name needs no escapes
        link = f"[{name}]({name}/report.html)" if linked else inline(name)
        lines.append([link, *map(inline, cells)] if pages else [name, *cells])
        for judge, metric in own.others.items():
            cells = [
                f"by {judge}",
                *_padded([str(own.n), f"{NAMES[own.metric]} {estimate(metric)}"]),
            ]
            lines.append(list(map(inline, cells)) if pages else cells)
    return HEADER, lines


def compared(results: "Results") -> str:
    """Return the name of the judge that others are compared with; "" if there is one judge."""
    return next((own.judge for own in results.questions.values() if own.others), "")


def _padded(cells: list[str]) -> list[str]:
    """Return the cells behind the name, with those that are not there."""
    return cells + [UNDEFINED] * (len(HEADER) - 1 - len(cells))


def _cells(own: "QuestionSummary") -> list[str]:
    if own.few:
        return _padded([str(own.n), own.few])
    noise, kept = own.ece_if_calibrated, "none"
    if own.threshold is not None:
        kept = f"{_value(own.kept, own.n)}, {_value(own.right, own.n)} right"
        if "chosen_on" in own.model_fields_set and not own.chosen_on:
            kept += " *"
    ece = _value(own.ece, own.n)
    return [
        str(own.n),
        f"{NAMES[own.metric]} {estimate(own.agreement)}",
        _value(own.of_base, own.n),
        f"{own.baseline} {_value(own.of_baseline, own.n)}",
        _value(own.ceiling, own.n),
        f"{ece} (noise {number(noise.mean)})" if noise else ece,
        kept,
        _value(own.option_order, own.n),
    ]


def _value(metric: "Metric | None", n: int) -> str:
    """Write a number, with its n where that is another one than the question's."""
    if metric is None or metric.value is None:
        return UNDEFINED
    return number(metric.value) + (f" (n = {metric.n})" if metric.n != n else "")
