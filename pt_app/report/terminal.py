"""The results as a table for a terminal of 80 columns: numbers down, judges across."""

from typing import TYPE_CHECKING, Any

from pt_app.core.formatting import estimate
from pt_app.core.wording import NAMES, best_rule, columns_of, leak_line

if TYPE_CHECKING:
    from rich.table import Table

WIDTH, NAME_WIDTH = 80, 14
SHORT_NAMES = {
    "kappa_quadratic": "quadr. kappa",
    "accuracy_no_ties": "acc. no ties",
    "accuracy_swapped": "acc. swapped",
    "accuracy_both_orders": "acc. both",
    "order_consistency": "same swapped",
    "first_preference": "first place",
    "precision_fail": "precision FAIL",
    "kendall": "Kendall tau-b",
}
CAPTION = (
    "likeliest: the most likely allowed verdict, on every row; own answer: as written, parse "
    "failures left out; strict: parse failures counted as wrong"
)
Lines = list[tuple[str, list[str]]]


def terminal_table(results: dict[str, Any]) -> "Table":
    """Build the table of every judge's numbers with interval and n; three fit 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rule = best_rule(results)
    judges = [*results["models"], *([rule] if rule else [])]
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
    columns = columns_of(results)
    likeliest = [judge.get("constrained", judge["metrics"]) for judge in judges]
    models = len(results["models"])  # a rule writes no answer of its own
    own = [judge["metrics"] if i < models else {} for i, judge in enumerate(judges)]
    failures = [str(one["parse_failures"]) if one in judges[:models] else "" for one in judges]
    strict = f"{columns[0]}_strict"
    if results["task"] == "metric":  # scores are no answers
        return [("scores", _lines(list(columns), likeliest))]
    if not any("constrained" in judge for judge in judges):
        lines = _lines([name for name in columns if name != "rouge_l"], likeliest)
        return [
            (
                "own answer",
                [
                    *lines,
                    ("parse failures", failures),
                    ("strict kappa", [estimate(one[strict]) if one else "" for one in own]),
                ],
            )
        ]
    return [
        ("likeliest", _lines([name for name in columns if name != "rouge_l"], likeliest)),
        (
            "own answer",
            [
                *_lines(list(columns), own),
                ("parse failures", failures),
                ("strict kappa", [estimate(one[strict]) if one else "" for one in own]),
                ("n", _counts(strict, own)),
            ],
        ),
    ]


def _lines(names: list[str], numbers: list[dict[str, Any]]) -> Lines:
    """A line for each number, and one of n after those that share it."""
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
    """Put the interval below its number where both do not fit: a break inside it misleads."""
    return cell if len(cell) <= room else cell.replace(" [", "\n[")


def _counts(name: str, numbers: list[dict[str, Any]]) -> list[str]:
    return [str(one[name]["n"]) if name in one else "" for one in numbers]


def attack_table(found: dict[str, Any]) -> "Table":
    """Build the table of what each family of attacks does; five columns fit 80 characters."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from pt_app.report.sections import attack_rows, control_line

    title = f"{found['data']['rows']} test rows attacked; raised: by more than {found['step']:g}"
    caption = control_line(found)
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("", "shift", "raised", "n"):
        table.add_column(name, justify="right" if name else "left")
    for name, (shift, raised, *_, count) in attack_rows(found):
        table.add_row(Text(name), shift, raised, count)
    return table
