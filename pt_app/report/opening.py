"""The opening of a report: a scorecard, and one paragraph that says in words what numbers show."""

from collections.abc import Iterator

from pt_app.core.formatting import NAMES, estimate, inline, number
from pt_app.core.results import JudgeResults, Metric, Results
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Lines, paragraphs, titles

MANY_PARSE_FAILURES = 0.02
FEW_ROWS = 100


def scorecard(results: Results, judge: JudgeResults) -> list[Block]:
    """Return the blocks of the scorecard of the judge that the report is about."""
    if not results.data.n:
        return []
    head = results.columns()[0]
    entries = list(_compared(results, judge, head))
    rows = [[inline(name), estimate(m), str(m.n if m else "")] for name, m in entries]
    alarms = _alarms(judge)
    next_step = _next_step(results, judge, head, alarms)
    watched = paragraphs("watched", judge=judge, alarms=alarms, next_step=next_step)
    picture = charts.forest([(name, m, charts.BLUE) for name, m in entries], NAMES[head])
    return [Grid(["", NAMES[head], "n"], rows), *picture, Lines(watched)]


def _compared(
    results: Results, judge: JudgeResults, head: str
) -> Iterator[tuple[str, Metric | None]]:
    """Yield name and headline metric of the judge, its base, the best baseline and annotators."""
    for model in results.models:
        if model.name in (judge.name, "base"):
            yield model.name, model.best.get(head)
    if baseline := results.best_baseline():
        yield f"best baseline: {baseline.name}", baseline.metrics.get(head)
    if results.ceiling:
        yield "one annotator against the others", results.ceiling.metrics.get(head)


def _alarms(judge: JudgeResults) -> list[str]:
    """Name each bias of the judge that is beyond chance, with the size of its number."""
    return [
        f"{titles().alarms[name][check.value > 0]} ({number(abs(check.value))})"
        for name, check in judge.checks.items()
        if check.alarm and check.value is not None
    ]


def _next_step(results: Results, judge: JudgeResults, head: str, alarms: list[str]) -> str:
    """Return the most urgent thing to do, in one sentence."""
    n, own = results.data.n or 0, judge.best.get(head)
    if results.leaks.n:
        return "remove the texts that training and test share, and train again."
    if judge.parse_failures > MANY_PARSE_FAILURES * n:
        return "look at the parse failures, and train longer or use another base."
    if n < FEW_ROWS or judge.few_groups:
        return f"label more test rows from more sources: {n} rows decide little."
    baseline = results.best_baseline()
    for difference in results.comparisons:
        unclear = difference.low is None or difference.low <= 0
        if baseline and difference.b == baseline.name and unclear:
            return f"do not rely on it yet: it is not shown to beat {inline(baseline.name)}."
    if alarms:
        return f"read the section about biases before you use it ({alarms[0]})."
    top = results.ceiling and results.ceiling.metrics.get(head)
    if top and top.value and own and own.high and own.high < top.value:
        return "annotators still agree better: `judge eval --curve` shows whether more labels help."
    return "use it with `judge score`, and compare its successor with `judge gate`."
