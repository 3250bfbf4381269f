"""The first screen of a report: one number against its baselines, alarms, and the next step."""

from collections.abc import Iterator, Mapping
from typing import Any

from pt_app.core.formatting import (
    NAMES,
    best_baseline,
    columns_of,
    estimate,
    leak_line,
    metrics_of,
    number,
)
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Lines, Safe

# What an alarm is called if its value is negative, and if it is positive.
ALARMS = {
    "generosity": ("severity", "leniency"),
    "first_place": ("position bias towards the second", "position bias towards the first"),
    "order": ("position bias towards the second", "position bias towards the first"),
    "overconfidence": ("underconfident", "overconfident"),
    "length": ("length bias towards short candidates", "length bias towards long candidates"),
    "copied": ("bias against words of the source", "bias towards words of the source"),
}
MANY_PARSE_FAILURES = 0.02
FEW_ROWS = 100


def scorecard(results: Mapping[str, Any], judge: Mapping[str, Any], safe: Safe) -> list[Block]:
    """Return the blocks of the scorecard.

    Args:
        results: the content of results.json.
        judge: the entry of `results["models"]` that the report is about.
        safe: escapes a foreign name for the page.
    """
    head = columns_of(results)[0]
    entries = list(_compared(results, judge, head))
    rows = [
        [safe(name), estimate(metric), str(metric["n"] if metric else "")]
        for name, metric in entries
    ]
    watched = [
        *_calibration(judge),
        *_coverage(judge),
        f"Alarms: {', '.join(_alarms(judge)) or 'none'}",
        f"Next: {_next_step(results, judge, head, safe)}",
    ]
    bars = [(name, metric, charts.BLUE) for name, metric in entries]
    picture = charts.forest(bars, NAMES[head])
    return [Grid(["", NAMES[head], "n"], rows), *picture, Lines(watched)]


def _compared(
    results: Mapping[str, Any], judge: Mapping[str, Any], head: str
) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Yield name and headline metric of the judge, its base, the best baseline and annotators."""
    for model in results["models"]:
        if model["name"] in (judge["name"], "base"):
            yield model["name"], metrics_of(model).get(head)
    if baseline := best_baseline(results):
        yield f"best baseline: {baseline['name']}", baseline["metrics"].get(head)
    if annotators := results.get("ceiling"):
        yield "one annotator against the others", annotators["metrics"].get(head)


def _calibration(judge: Mapping[str, Any]) -> Iterator[str]:
    calibration = judge.get("calibration")
    if calibration and calibration["ece"]["value"] is not None:
        usual = number(calibration["ece_if_calibrated"]["high"])
        yield (
            f"Calibration: the expected calibration error is {estimate(calibration['ece'])}; that "
            f"of a calibrated judge would be up to {usual}"
        )


def _coverage(judge: Mapping[str, Any]) -> Iterator[str]:
    selective = judge.get("selective")
    if not selective:
        return
    target = f"{100 * selective['target']:.0f} %"
    if selective["threshold"] is None:
        yield f"Coverage: no confidence threshold guarantees an accuracy of {target}"
        return
    covered = 100 * selective["kept"]["value"]
    yield f"Coverage: it judges {covered:.0f} % of the rows with an accuracy of {target} or more"


def _alarms(judge: Mapping[str, Any]) -> Iterator[str]:
    """Name each bias of the judge that is beyond chance, with the size of its number."""
    for name, check in (judge.get("checks") or {}).items():
        if check["alarm"]:
            yield f"{ALARMS[name][check['value'] > 0]} ({number(abs(check['value']))})"


def _next_step(results: Mapping[str, Any], judge: Mapping[str, Any], head: str, safe: Safe) -> str:
    """Return the most urgent thing to do, in one sentence."""
    n, metric = results["data"]["n"], metrics_of(judge).get(head)
    if leak_line(results):
        return "remove the texts that training and test share, and train again."
    if judge.get("parse_failures", 0) > MANY_PARSE_FAILURES * n:
        return "look at the parse failures, and train longer or use another base."
    if n < FEW_ROWS or judge.get("few_groups"):
        return f"label more test rows from more sources: {n} rows decide little."
    baseline = best_baseline(results)
    for difference in results.get("comparisons") or []:
        unclear = difference.get("low") is None or difference["low"] <= 0
        if baseline and difference["b"] == baseline["name"] and unclear:
            return f"do not rely on it yet: it is not shown to beat {safe(baseline['name'])}."
    if first := next(_alarms(judge), ""):
        return f"read the section about biases before you use it ({first})."
    top = (results.get("ceiling") or {}).get("metrics", {}).get(head)
    if top and top["value"] and metric and metric["high"] and metric["high"] < top["value"]:
        return "annotators still agree better: `judge eval --curve` shows whether more labels help."
    return "use it with `judge score`, and compare its successor with `judge gate`."
