"""The opening of a report: a scorecard, and one paragraph that says in words what numbers show."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pt_app.core.formatting import (
    NAMES,
    best_baseline,
    columns_of,
    estimate,
    leak_line,
    metrics_of,
    number,
    p_value,
    with_n,
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


def reading(results: dict[str, Any], safe: Safe) -> str:
    """Return one paragraph on the agreement of judge, base, baselines, annotators and seeds.

    Confidence and biases are in the scorecard, which precedes it.
    """
    models = {model["name"]: model for model in results["models"]}
    judge = models.get("adapter") or next(iter(models.values()), None)
    data = results["data"]
    rows = f"{data.get('n')} rows of {data.get('groups')} groups (rows of one source form a group)"
    if judge is None or not data.get("n"):
        return f"On {rows} nothing was judged: there is no number to report."
    words = _Reading(results, judge, columns_of(results)[0], safe)
    base = models.get("base") if judge["name"] == "adapter" else None
    sentences = [
        words.agreement(base, rows),
        *words.baselines(),
        *words.annotators(),
        *words.differences(set(models)),
        *words.seeds(),
        *words.own_answers(),
    ]
    if judge.get("few_groups"):
        sentences.append(
            "There are fewer than 20 groups: intervals come from leaving out each in turn, "
            "and say little."
        )
    return " ".join(sentences)


@dataclass(frozen=True)
class _Reading:
    """Sentences about one judge; `head` is the name of the headline number."""

    results: dict[str, Any]
    judge: dict[str, Any]
    head: str
    safe: Safe

    def agreement(self, base: dict[str, Any] | None, rows: str) -> str:
        sentence = f"On {rows} the {self.safe(self.judge['name'])} agrees with the labels at "
        sentence += f"{NAMES[self.head]} {with_n(metrics_of(self.judge).get(self.head))}"
        if base is not None:
            sentence += f", its base at {with_n(metrics_of(base).get(self.head))}"
        if "constrained" not in self.judge:
            return f"{sentence} (95 % intervals in brackets)."
        return (
            f"{sentence} (of the constrained verdicts, the most likely of the allowed ones; "
            "95 % intervals in brackets)."
        )

    def baselines(self) -> Iterator[str]:
        best = best_baseline(self.results)
        if best is None:
            return
        reached, name = with_n(best["metrics"][self.head]), self.safe(best["name"])
        if best["name"] == "majority":
            always = best.get("verdict")
            label = f" {self.safe(always)}" if always is not None else ""
            yield f"Always answering the majority label{label} gives {reached}."
            return
        sentence = f"The best of the baselines without a language model, {name}, reaches {reached}"
        for item in self.results.get("comparisons") or []:
            if item["b"] == best["name"] and item.get("value") is not None:
                sentence += f"; {self.safe(self.judge['name'])} - {name} is {estimate(item)}"
                sentence += f", p {p_value(item)}"
        yield f"{sentence}."

    def annotators(self) -> Iterator[str]:
        top = (self.results.get("ceiling") or {"metrics": {}})["metrics"].get(self.head)
        if not top or top["value"] is None:
            return
        sentence = f"One annotator agrees with the others at {with_n(top)}"
        own = metrics_of(self.judge).get(self.head)
        if own and own["value"] is not None:
            apart = own["value"] - top["value"]
            side = "above" if apart > 0 else "below"
            sentence += f"; the judge is {number(abs(apart))} {side} that"
        yield f"{sentence}."

    def differences(self, models: set[str]) -> Iterator[str]:
        for item in self.results.get("comparisons") or []:
            if item["b"] in models:
                yield self._difference(item)

    def _difference(self, item: dict[str, Any]) -> str:
        a, b = self.safe(item["a"]), self.safe(item["b"])
        if item.get("value") is None:
            return f"The difference between {a} and {b} is undefined here."
        name = NAMES.get(item["metric"], item["metric"])
        sentence = f"The difference {a} - {b} on the same rows is {with_n(item)} in {name}"
        low, high = item.get("low"), item.get("high")
        if low is None or high is None:
            return f"{sentence}, without an interval."
        if item.get("p") is not None:
            sentence += f", p {p_value(item)}"
        if not low <= 0 <= high:
            return f"{sentence}: {a if low > 0 else b} agrees better."
        sentence += ": this test set cannot tell the two apart"
        if smallest := item.get("detectable"):
            sentence += f" (it shows differences from {number(smallest)} on)"
        return f"{sentence}."

    def seeds(self) -> Iterator[str]:
        spread = self.results.get("over_seeds")
        if spread and spread["sd"] is not None:
            values = [value for value in spread["values"] if value is not None]
            yield (
                f"Over {len(values)} training seeds {NAMES[spread['metric']]} is "
                f"{number(spread['mean'])} on average (standard deviation {number(spread['sd'])}, "
                f"{number(min(values))} to {number(max(values))}), which no interval above "
                "includes."
            )

    def own_answers(self) -> Iterator[str]:
        failures, n = self.judge.get("parse_failures", 0), self.results["data"]["n"]
        if "constrained" in self.judge or failures:
            name, metrics = self.safe(self.judge["name"]), self.judge["metrics"]
            yield (
                f"Of the {name}'s own answers {failures} of {n} are parse failures "
                f"({100 * failures / n:.1f} %); over the others, {NAMES[self.head]} is "
                f"{with_n(metrics.get(self.head))}, and with parse failures counted as wrong "
                f"{with_n(metrics.get(f'{self.head}_strict'))}."
            )
