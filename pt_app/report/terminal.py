"""The results as a table for a terminal of 80 columns: numbers down, judges across."""

from typing import TYPE_CHECKING, Any

from pt_app.core.formatting import (
    NAMES,
    best_baseline,
    columns_of,
    estimate,
    leak_line,
    metrics_of,
)

if TYPE_CHECKING:
    from rich.table import Table

WIDTH, NAME_WIDTH = 80, 14
SHORT_NAMES = {
    "kappa_quadratic": "quadr. kappa",
    "accuracy_no_ties": "acc. no ties",
    "accuracy_swapped": "acc. swapped",
    "accuracy_both_orders": "acc. both",
    "order_consistency": "same swapped",
    "first_preference": "first position",
    "precision_fail": "precision FAIL",
    "kendall": "Kendall tau-b",
}
CAPTION = (
    "constrained: the most likely allowed verdict, on every row; own answer: as written, without "
    "parse failures; strict: parse failures counted as wrong"
)
Lines = list[tuple[str, list[str]]]


def terminal_table(results: dict[str, Any]) -> "Table":
    """Build the table of every judge's numbers with interval and n; three fit 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    baseline = best_baseline(results)
    judges = [*results["models"], *([baseline] if baseline else [])]
    data = results["data"]
    leaks = leak_line(results)
    title = f"{leaks}\n" if leaks else ""
    title += f"{data['n']} rows of {data['groups']} groups, scale {results['scale']}; "
    title += "95 % intervals by group"
    table = Table(title=title, caption=CAPTION, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.collapse_padding = True
    table.add_column("")
    for judge in judges:
        # Text, not markup: a judge's name may hold brackets.
        table.add_column(Text(judge["name"]), justify="right")
    room = (WIDTH - NAME_WIDTH) // len(judges) - 2
    for section, lines in _sections(results, judges):
        table.add_row(Text(section, style="bold"))
        for name, cells in lines:
            table.add_row(name, *(Text(_folded(cell, room)) for cell in cells))
        table.add_section()
    return table


def _sections(results: dict[str, Any], judges: list[dict[str, Any]]) -> list[tuple[str, Lines]]:
    columns = list(columns_of(results))
    constrained = list(map(metrics_of, judges))
    if results["task"] == "metric":  # scores are not answers
        return [("scores", _lines(columns, constrained))]
    models = results["models"]  # without the baseline, which writes no answers
    own = [model["metrics"] for model in models] + [{}] * (len(judges) - len(models))
    failures = [str(model["parse_failures"]) for model in models]
    failures += [""] * (len(judges) - len(models))
    strict = f"{columns[0]}_strict"
    first = _lines([name for name in columns if name != "rouge_l"], constrained)
    last = [
        ("parse failures", failures),
        ("strict kappa", [estimate(numbers[strict]) if numbers else "" for numbers in own]),
    ]
    if not any("constrained" in judge for judge in judges):
        return [("own answer", [*first, *last])]
    last.append(("n", _counts(strict, own)))
    return [("constrained", first), ("own answer", [*_lines(columns, own), *last])]


def _lines(names: list[str], numbers: list[dict[str, Any]]) -> Lines:
    """Return a line for each number, and one of n after those that share it."""
    lines: Lines = []
    names = [name for name in names if any(name in one for one in numbers)]
    for place, name in enumerate(names):
        title = SHORT_NAMES.get(name, NAMES[name])
        lines.append((title, [estimate(one.get(name)) if one else "" for one in numbers]))
        following = names[place + 1] if place + 1 < len(names) else None
        if following is None or _counts(following, numbers) != _counts(name, numbers):
            lines.append(("n", _counts(name, numbers)))
    return lines


def _folded(cell: str, room: int) -> str:
    """Put the interval below its number if both do not fit: a break inside of it misleads."""
    return cell if len(cell) <= room else cell.replace(" [", "\n[")


def _counts(name: str, numbers: list[dict[str, Any]]) -> list[str]:
    return [str(one[name]["n"]) if name in one else "" for one in numbers]


def attack_table(attacks: dict[str, Any]) -> "Table":
    """Build the table of what each family of attacks does, which fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from pt_app.report.sections import attack_rows, control_line

    title = (
        f"{attacks['data']['rows']} test rows attacked; raised: by more than {attacks['step']:g}"
    )
    caption = control_line(attacks)
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("", "shift", "raised", "n"):
        table.add_column(name, justify="right" if name else "left")
    for name, (shift, raised, *_, count) in attack_rows(attacks):
        table.add_row(Text(name), shift, raised, count)
    return table
