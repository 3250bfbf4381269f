"""The results as a table for a terminal of 80 columns: numbers down, judges across."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pt_app.core.formatting import NAMES, UNDEFINED, estimate
from pt_app.report.overview import compared, overview_table
from pt_app.report.page import sentences, titles

if TYPE_CHECKING:
    from rich.table import Table

    from pt_app.core.results import AttackResults, JudgeResults, Metric, Results

WIDTH, NAME_WIDTH = 80, 14
Lines = list[tuple[str, list[str]]]
Columns = Sequence["Mapping[str, Metric]"]  # the numbers of each judge


def terminal_table(results: "Results") -> "Table":
    """Build the table of every judge's numbers with interval and n; three fit 80 columns.

    The best baseline is the last column, and a sentence about the frozen probe stands below.
    """
    from rich.text import Text

    if results.questions:
        return _overview(results)
    baseline = results.best_baseline()
    names = [model.name for model in results.models] + ([baseline.name] if baseline else [])
    leaks = results.leak_line()
    title = f"{leaks}\n" if leaks else ""
    title += f"{results.data.n} rows of {results.data.groups} groups, scale {results.scale}; "
    title += "95 % intervals by group"
    about = {"results": results, "judge": results.judge, "head": results.columns()[0]}
    probe = sentences("probe", **about)
    table = _table(title, "\n".join(filter(None, [sentences("caption"), probe])))
    table.collapse_padding = True
    table.add_column("")
    for name in names:
        # Text, not markup: a judge's name may hold brackets.
        table.add_column(Text(name), justify="right")
    room = (WIDTH - NAME_WIDTH) // len(names) - 2
    for section, lines in _sections(results):
        table.add_row(Text(section, style="bold"))
        for name, cells in lines:
            table.add_row(name, *(Text(_folded(cell, room)) for cell in cells))
        table.add_section()
    return table


def _overview(results: "Results") -> "Table":
    """Build the table of several questions, a row for each."""
    from rich.text import Text

    header, lines = overview_table(results)
    leaks = results.leak_line()
    table = _table(
        f"{leaks}\n" if leaks else "",
        sentences("overview", judge=compared(results)),
    )
    table.padding = 0  # the box leaves a blank between columns
    # Folded, where rich would cut: a name that is cut is another one.
    table.add_column(header[0], overflow="fold", no_wrap=max(len(line[0]) for line in lines) <= 20)
    for name in header[1:]:
        table.add_column(name, overflow="fold", min_width=max(map(len, name.split())))
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _table(title: str, caption: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    text = Text(caption, style="table.caption")  # not markup: an interval has brackets
    return Table(title=title, caption=text, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _sections(results: "Results") -> list[tuple[str, Lines]]:
    columns, models, baseline = list(results.columns()), results.models, results.best_baseline()
    # The best baseline is the last column; it writes no answers.
    best = [model.metrics for model in models] + ([baseline.metrics] if baseline else [])
    if results.task == "metric":  # scores are not answers
        return [("scores", _lines(columns, best))]
    empty = [""] * len(best[len(models) :])
    own = [model.answers for model in models] + [{} for _ in empty]
    strict = f"{columns[0]}_strict"
    first = _lines([name for name in columns if name != "rouge_l"], best)
    last = [
        ("parse failures", [str(model.parse_failures) for model in models] + empty),
        (
            "strict kappa",
            [estimate(numbers[strict]) if strict in numbers else "" for numbers in own],
        ),
    ]
    sure = _probabilities(models, empty)
    if not any(model.greedy for model in models):
        return [("answer", [*first, *last]), *sure]
    last.append(("n", _counts(strict, own)))
    return [("verdict", first), ("greedy answer", [*_lines(columns, own), *last]), *sure]


def _probabilities(models: "Sequence[JudgeResults]", empty: list[str]) -> list[tuple[str, Lines]]:
    """Return what is compared beside a decision model at an endpoint; [] without one."""
    if not any(model.repeats for model in models):
        return []
    far = [m.annotator_distance.judge if m.annotator_distance else None for m in models]
    numbers = {
        "ECE": [m.calibration.ece if m.calibration else None for m in models],
        "to annotators": far,
        "flips": [m.repeats.flips if m.repeats else None for m in models],
    }
    lines = [(name, [*map(estimate, row), *empty]) for name, row in numbers.items()]
    prices = [f"{m.cost.per_verdict:.6f}" if m.cost else UNDEFINED for m in models]
    return [("probabilities", [*lines, ("$ per verdict", [*prices, *empty])])]


def _lines(names: Sequence[str], judges: Columns) -> Lines:
    """Return a line for each number, and one of n after those that share it."""
    lines: Lines = []
    names = [name for name in names if any(name in numbers for numbers in judges)]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        title = titles().short_names.get(name, NAMES[name])
        lines.append((title, [estimate(judge.get(name)) if judge else "" for judge in judges]))
        if _counts(following, judges) != _counts(name, judges):
            lines.append(("n", _counts(name, judges)))
    return lines


def _folded(cell: str, room: int) -> str:
    """Put the interval below its number if both do not fit: a break inside of it misleads."""
    return cell if len(cell) <= room else cell.replace(" [", "\n[")


def _counts(name: str, judges: Columns) -> list[str]:
    return [str(numbers[name].n) if name in numbers else "" for numbers in judges]


def attack_table(attacks: "AttackResults") -> "Table":
    """Build the table of what each family of attacks does, which fits 80 columns."""
    from rich.text import Text

    of = f"{attacks.question}: " if attacks.question else ""
    title = f"{of}{attacks.data.rows} test rows attacked; raised: by more than {attacks.step:g}"
    table = _table(title, sentences("control_tokens", control=attacks.control_tokens))
    # What must not change the answer has no shift to look at.
    numbers = ("raised", "changed") if attacks.question else ("shift", "raised")
    for name in ("", *numbers, "n"):
        table.add_column(name, justify="right" if name else "left")
    for name, own in attacks.families.items():
        cells = (estimate(getattr(own, number)) for number in numbers)
        table.add_row(Text(name), *cells, str(own.attacks))
    return table
