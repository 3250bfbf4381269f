"""Make the data card: README.md beside every dataset, from dataset.json and the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pt_app.core.formatting import estimate
from pt_app.core.records import JudgeExample
from pt_app.core.results import Metric
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people

MAX_LABELS = 21  # lines of the table of labels
TITLE = "Judge data"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
ONESELF = "Agreement with oneself"
Card = dict[str, Any]
"""What dataset.json holds, or a part of it: JSON."""


def data_card(
    about: Card,
    splits: Mapping[str, Sequence[JudgeExample]],
    scale: Scale,
    sections: Sequence[str] = (),
    title: str = TITLE,
) -> str:
    """Write the card as Markdown; a leak, if there is one, is in its first line.

    `about` is dataset.json; `sections` are further parts, before the checks.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.globals.update(table=table, cell=_cell, estimate=_estimate, people=people)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    sizes = [[name, len(rows), len({row.group for row in rows})] for name, rows in splits.items()]
    return template.render(
        about=about,
        checks=about.get("checks", {}),
        facts=_facts(about),
        files=[[f"`{file}`", f"`{digest}`"] for file, digest in about.get("sha256", {}).items()],
        labels=_labels(splits, scale),
        names=list(splits),
        oneself=ONESELF,
        sections=sections,
        sizes=sizes,
        title=title,
    )


def label_counts(
    splits: Mapping[str, Sequence[JudgeExample]],
) -> dict[str, Counter[Verdict | None]]:
    """Count the labels of each split; rows without one are counted under None."""
    return {
        split: Counter(row.label.verdict if row.label else None for row in rows)
        for split, rows in splits.items()
    }


def with_section(card: str, title: str, body: str) -> str:
    """Put a section into a card: in place of the section of that title, else before its checks."""
    head = f"## {title}\n\n"
    before, old, after = card.partition(head)
    if old:
        after = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    else:
        before, checks, after = card.partition("## Checks\n")
        after = checks + after
    return f"{before}{head}{body}\n\n{after}"


def _facts(about: Card) -> list[list[str]]:
    names = ("task", "scale", "template", "rubric", "origin", "licence", "fold")
    facts = [[name, _cell(about[name])] for name in names if about.get(name)]
    if how := about.get("split"):
        facts.append(["split", ", ".join(f"{name} {_plain(value)}" for name, value in how.items())])
    return facts


def _labels(splits: Mapping[str, Sequence[JudgeExample]], scale: Scale) -> list[list[object]]:
    """Count the labels of each split; those of a fine scale in at most MAX_LABELS equal parts."""
    counts = label_counts(splits).values()
    values = list(scale.values)
    step = -(-len(values) // MAX_LABELS)  # rounded up
    lines: list[list[object]] = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        name = str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}"
        lines.append([name, *(sum(count[value] for value in part) for count in counts)])
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _estimate(metric: Card) -> str:
    return estimate(Metric.model_validate(metric))


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _plain(value: object) -> str:
    return "/".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
