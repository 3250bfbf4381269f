"""The paragraph that says in words what the numbers show, and what they do not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pt_app.core.formatting import (
    NAMES,
    best_baseline,
    columns_of,
    estimate,
    metrics_of,
    number,
    p_value,
)
from pt_app.report.page import Safe


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
        sentence += f"{NAMES[self.head]} {_with_n(metrics_of(self.judge).get(self.head))}"
        if base is not None:
            sentence += f", its base at {_with_n(metrics_of(base).get(self.head))}"
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
        reached, name = _with_n(best["metrics"][self.head]), self.safe(best["name"])
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
        sentence = f"One annotator agrees with the others at {_with_n(top)}"
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
        sentence = f"The difference {a} - {b} on the same rows is {_with_n(item)} in {name}"
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
                f"{_with_n(metrics.get(self.head))}, and with parse failures counted as wrong "
                f"{_with_n(metrics.get(f'{self.head}_strict'))}."
            )


def _with_n(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("value") is None:
        reason = (metric or {}).get("reason", "not computed")
        return f"undefined ({reason})"
    return f"{estimate(metric)} (n = {metric['n']})"
