"""Make the data card: README.md beside every dataset, from dataset.json and the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.core.formatting import estimate
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people

MAX_LABELS = 21  # lines of the table of labels
TITLE = "Judge data"
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
    checks = about.get("checks", {})
    parts = [f"# {title}"]
    if checks.get("by_row"):
        parts.insert(0, "**LEAKS: split by row. Rows of one group are in several splits.**")
    elif checks.get("leaks"):
        parts.insert(0, f"**LEAKS: {checks['leaks']} texts are in several splits.**")
    parts += [_facts(about), "## Rows", _sizes(splits), _labels(splits, scale)]
    agreement = about.get("agreement")
    if agreement and (label_rule := about.get("label_rule")):
        parts.append(f"The labels of several annotators become one by {label_rule}.")
    parts += [_import(imported) for imported in about.get("imports", ())]
    if agreement:
        parts += ["## Agreement among annotators", table(people.ROW, people.table(agreement))]
    parts += sections
    if self_agreement := about.get("self_agreement"):
        parts += [f"## {ONESELF}", table(people.ROW, people.self_table(self_agreement))]
    hashes = [[f"`{name}`", f"`{digest}`"] for name, digest in about.get("sha256", {}).items()]
    parts += ["## Checks", _checks(checks), "## Files", table(["file", "sha256"], hashes)]
    return "\n\n".join(parts) + "\n"


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


def _facts(about: Card) -> str:
    names = ("task", "scale", "template", "rubric", "origin", "licence", "fold")
    facts = [[name, _cell(about[name])] for name in names if about.get(name)]
    if how := about.get("split"):
        facts.append(["split", ", ".join(f"{name} {_plain(value)}" for name, value in how.items())])
    return table(["", ""], facts)


def _sizes(splits: Mapping[str, Sequence[JudgeExample]]) -> str:
    rows = [
        [split, len(examples), len({example.group for example in examples})]
        for split, examples in splits.items()
    ]
    return table(["split", "rows", "groups"], rows)


def _labels(splits: Mapping[str, Sequence[JudgeExample]], scale: Scale) -> str:
    """Count the labels of each split; those of a fine scale in at most MAX_LABELS equal parts."""
    counts = label_counts(splits).values()
    values = list(scale.values)
    step = -(-len(values) // MAX_LABELS)  # rounded up
    lines: list[list[object]] = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        name = str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}"
        lines.append([name, *(sum(count[value] for value in part) for count in counts)])
    return table(["label", *splits], lines)


def _import(imported: Card) -> str:
    dropped = [f"{count:,} {reason}" for reason, count in imported["dropped"].items()]
    return (
        f"Imported from {', '.join(imported['files'])}: read {imported['read']:,} rows, kept "
        f"{imported['kept']:,}, dropped {'; '.join(dropped) or 'none'}."
    )


def _checks(checks: Card) -> str:
    if not checks:
        return "Not checked."
    lines = [
        f"- {checks['leaks'] or 'No'} leaks between splits (exact, but for case, accents and "
        f"punctuation, and near: {checks['near']:.0%} of the words alike)."
    ]
    if lengths := checks.get("lengths"):
        lines.append(
            f"- Length and label: {lengths['name']} {estimate(lengths)}, {lengths['n']:,} groups."
        )
    return "\n".join(lines + [f"- {_cell(warning)}." for warning in checks.get("warnings", ())])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _plain(value: object) -> str:
    return "/".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
