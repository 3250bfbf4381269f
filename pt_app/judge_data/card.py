"""Make the data card: README.md beside every dataset, from dataset.json and the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pt_app.core.formatting import estimate
from pt_app.core.questions import Asked, scales_of
from pt_app.core.records import JudgeExample
from pt_app.core.results import Metric
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people

MAX_LABELS = 21  # lines of the table of labels
TEMPLATE = Path(__file__).with_name("card.md.jinja")
Card = dict[str, Any]
"""What dataset.json holds, or a part of it: JSON."""


def data_card(
    about: Card,
    splits: Mapping[str, Sequence[JudgeExample]],
    asked: Asked,
    generated: Mapping[str, object] | None = None,
) -> str:
    """Write the card as Markdown; a leak, if there is one, is in its first line.

    `about` is dataset.json; `generated` says what the generator put into the rows and left out.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.globals.update(table=table, people=people)
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    environment.filters["estimate"] = lambda json: estimate(Metric.model_validate(json))
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    labels = _labels_of(splits, asked)
    return template.render(about=about, splits=splits, labels=labels, generated=generated)


def label_counts(
    splits: Mapping[str, Sequence[JudgeExample]],
) -> dict[str, Counter[Verdict | None]]:
    """Count the labels of each split; rows without one are counted under None."""
    return {
        split: Counter(row.label.verdict if row.label else None for row in rows)
        for split, rows in splits.items()
    }


def _labels_of(splits: Mapping[str, Sequence[JudgeExample]], asked: Asked) -> list[list[object]]:
    """Count the labels of each split, those of several questions by the names of these."""
    lines: list[list[object]] = []
    for name, scale in scales_of(asked):
        own = {split: [r for r in rows if r.asks == name] for split, rows in splits.items()}
        of = f"{name}: " if name else ""
        lines += [[f"{of}{label}", *counts] for label, *counts in _labels(own, scale)]
    return lines


def _labels(splits: Mapping[str, Sequence[JudgeExample]], scale: Scale) -> list[list[object]]:
    """Count the labels of each split; those of a fine scale in at most MAX_LABELS equal parts."""
    counts = label_counts(splits).values()
    step = -(-len(scale.values) // MAX_LABELS)  # rounded up
    lines: list[list[object]] = []
    for start in range(0, len(scale.values), step):
        part = scale.values[start : start + step]
        name = f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0])
        lines.append([name, *(sum(count[value] for value in part) for count in counts)])
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
