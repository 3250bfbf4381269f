"""The data card: README.md beside every dataset, made from dataset.json and the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.core.formatting import estimate
from pt_app.core.records import JudgeExample
from pt_app.core.results import Metric
from pt_app.core.verdicts import Scale
from pt_app.evidence import people

MAX_LABELS = 21
ONESELF = "Agreement with oneself"


def data_card(
    about: Mapping[str, Any],
    splits: Mapping[str, Sequence[JudgeExample]],
    scale: Scale,
    sections: Sequence[str] = (),
    title: str = "Judge data",
) -> str:
    """Write the card as Markdown: a leak, if there is one, in its first line.

    `about` is dataset.json; `sections` are further parts, before the hashes.
    """
    checks = about.get("checks", {})
    parts = [f"# {title}"]
    if checks.get("by_row") or checks.get("leaks"):
        parts.insert(0, _leak_line(checks))
    parts.append(_facts(about))
    parts += ["## Rows", _sizes(splits), _labels(splits, scale)]
    if about.get("agreement") and (label_rule := about.get("label_rule")):
        parts.append(f"Several people's labels become one by {label_rule}.")
    parts += _imports(about)
    if agreement := about.get("agreement"):
        parts += ["## Agreement among people", table(people.ROW, people.table(agreement))]
    parts += sections
    if again := about.get("self_agreement"):
        parts += [f"## {ONESELF}", table(people.ROW, people.self_table(again))]
    parts += ["## Checks", _checks(checks)]
    hashes = [[f"`{name}`", f"`{digest}`"] for name, digest in about.get("sha256", {}).items()]
    parts += ["## Files", table(["file", "sha256"], hashes)]
    return "\n\n".join(parts) + "\n"


def with_section(card: str, title: str, body: str) -> str:
    """Put a section into a card, before its checks, in place of one of that title."""
    head = f"## {title}\n\n"
    before, found, after = card.partition(head)
    if found:
        after = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    else:
        before, checks, after = card.partition("## Checks\n")
        after = checks + after
    return f"{before}{head}{body}\n\n{after}"


def _leak_line(checks: Mapping[str, Any]) -> str:
    if checks.get("by_row"):
        return "**LEAKS: split by row. Rows of one group stand on several sides of the split.**"
    return f"**LEAKS: {checks['leaks']} texts stand on several sides of the split.**"


def _facts(about: Mapping[str, Any]) -> str:
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
    """Count the labels of each split; of a fine scale in twenty-one equal parts."""
    counts = {
        split: Counter(example.label.verdict for example in examples if example.label)
        for split, examples in splits.items()
    }
    values = list(scale.values)
    step = -(-len(values) // MAX_LABELS)
    lines = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        name = str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}"
        lines.append([name, *(sum(count[v] for v in part) for count in counts.values())])
    return table(["label", *splits], lines)


def _imports(about: Mapping[str, Any]) -> list[str]:
    parts = []
    for one in about.get("imports", ()):
        dropped = [f"{count:,} {reason}" for reason, count in one["dropped"].items()]
        parts.append(
            f"Imported from {', '.join(one['files'])}: read {one['read']:,} rows, kept "
            f"{one['kept']:,}"
            + (f", dropped {'; '.join(dropped)}." if dropped else ", dropped none.")
        )
    return parts


def _checks(checks: Mapping[str, Any]) -> str:
    if not checks:
        return "Not checked."
    found = checks["leaks"] or "No"
    lines = [
        f"- {found} leaks between splits (exact, but for case, accents and punctuation, and near: "
        f"{checks['near']:.0%} of the words alike)."
    ]
    if lengths := checks.get("lengths"):
        rho = Metric.model_validate(lengths)
        lines.append(f"- Length and label: {lengths['name']} {estimate(rho)}, {rho.n:,} groups.")
    return "\n".join(lines + [f"- {_cell(warning)}." for warning in checks.get("warnings", ())])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _plain(value: object) -> str:
    return "/".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
