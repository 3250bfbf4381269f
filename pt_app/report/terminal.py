"""The results as a table for a terminal of 80 columns: numbers down, judges across."""

from typing import TYPE_CHECKING, Any

from pt_app.report.wording import NAMES, columns_of, estimate

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(results: dict[str, Any]) -> "Table":
    """Build the table of every judge's numbers with interval and n; fits 80 columns at three."""
    from rich.table import Table
    from rich.text import Text

    judges = [*results["models"], *(results.get("baselines") or [])]
    data = results["data"]
    table = Table(
        title=f"{data['n']} rows of {data['groups']} groups, scale {results['scale']}; "
        "95 % intervals by group",
        padding=(0, 1),
    )
    table.add_column("")
    for judge in judges:
        # Text, not markup: a judge's name may hold brackets.
        table.add_column(Text(judge["name"]), justify="right")
    for title, rows in _sections(results, judges):
        table.add_section()
        table.add_row(Text(title, style="bold"))
        for name, cells in rows:
            table.add_row(name, *(Text(cell) for cell in cells))
    return table


def _sections(
    results: dict[str, Any], judges: list[dict[str, Any]]
) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    columns = columns_of(results)
    head = columns[0]
    forced = [judge.get("constrained", judge["metrics"]) for judge in judges]
    own = [judge["metrics"] for judge in judges]
    failures = ("unreadable", [f"{judge.get('parse_failures', 0)}" for judge in judges])
    strict = [metrics.get(f"{head}_strict", metrics.get(head)) for metrics in own]
    strict_row = ("all counted", [estimate(metric) for metric in strict])
    likely = [name for name in columns if name != "rouge_l"]
    return [
        ("likeliest", _rows(likely, forced)),
        ("own answer", [*_rows(list(columns), own), failures, strict_row]),
    ]


def _rows(names: list[str], numbers: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = [(NAMES[name], [estimate(one.get(name)) for one in numbers]) for name in names]
    counts = [str(one[names[0]]["n"]) if names[0] in one else "" for one in numbers]
    return [*rows, ("n", counts)]
