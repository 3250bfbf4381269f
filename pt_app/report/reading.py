"""The paragraph that says in words what the numbers allow one to say, and what not."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pt_app.core.formatting import estimate, number
from pt_app.core.wording import NAMES, best_rule, columns_of, p_value
from pt_app.report.page import Safe

BIASES = {
    "generosity": "it is too {} ({} units on average)",
    "first_place": "it favours the {} place ({} more often than the labels)",
    "order": "it favours the {} place whatever stands there ({} above a half)",
    "overconfidence": "it is {} sure than it is right (by {})",
    "length": "its errors favour {} candidates (correlation {})",
    "copied": "its errors favour candidates with {} words of the source (correlation {})",
}
SIDES = {
    "generosity": ("strict", "generous"),
    "first_place": ("second", "first"),
    "order": ("second", "first"),
    "overconfidence": ("less", "more"),
    "length": ("shorter", "longer"),
    "copied": ("fewer", "more"),
}


def reading(results: dict[str, Any], safe: Safe) -> str:
    """One paragraph: agreement, base, rules, people, confidence, biases, limits."""
    models = {model["name"]: model for model in results["models"]}
    judge = models.get("adapter") or next(iter(models.values()), None)
    data = results["data"]
    rows = f"{data.get('n')} rows of {data.get('groups')} groups (rows of one source form a group)"
    if judge is None or not data.get("n"):
        return f"On {rows} nothing was judged: there is no number to report."
    said = _Reading(results, judge, columns_of(results)[0], safe)
    base = models.get("base") if judge["name"] == "adapter" else None
    sentences = [
        said.agreement(base, rows),
        *said.rules(),
        *said.people(),
        *said.differences(set(models)),
        said.seeds(),
        *said.confidence(),
        said.biases(),
        said.own_answers(),
    ]
    if judge.get("few_groups"):
        sentences.append(
            "There are fewer than 20 groups: intervals come from leaving out each in turn, "
            "and say little."
        )
    return " ".join(sentence for sentence in sentences if sentence)


@dataclass(frozen=True)
class _Reading:
    """Sentences about one judge; `head` is the number that agreement is told by."""

    results: dict[str, Any]
    judge: dict[str, Any]
    head: str
    safe: Safe

    def agreement(self, base: dict[str, Any] | None, rows: str) -> str:
        sentence = f"On {rows} the {self.safe(self.judge['name'])} agrees with the labels at "
        sentence += f"{NAMES[self.head]} {_with_n(self._number(self.judge))}"
        if base is not None:
            sentence += f", its base at {_with_n(self._number(base))}"
        if "constrained" not in self.judge:
            return f"{sentence} (95 % intervals in brackets)."
        same = "the same" if base is not None else "the"
        sentence += f" under {same} constrained reading"
        return sentence + " (the most likely of the allowed verdicts; 95 % intervals in brackets)."

    def rules(self) -> Iterator[str]:
        rule = best_rule(self.results)
        if rule is None:
            return
        reached, name = _with_n(rule["metrics"][self.head]), self.safe(rule["name"])
        if rule["name"] == "majority":
            always = rule.get("verdict")
            label = f" {self.safe(always)}" if always is not None else ""
            yield f"Always answering the majority label{label} gives {reached}."
            return
        sentence = f"Of the rules without a language model the best, {name}, reaches {reached}"
        for item in self.results.get("comparisons") or []:
            if item["b"] == rule["name"] and item.get("value") is not None:
                sentence += f"; {self.safe(self.judge['name'])} - {name} is {estimate(item)}"
                sentence += f", p {p_value(item)}"
        yield f"{sentence}."

    def people(self) -> Iterator[str]:
        people = self.results.get("ceiling")
        if not people or people["metrics"][self.head]["value"] is None:
            return
        sentence = f"One person agrees with the others at {_with_n(people['metrics'][self.head])}"
        own, top = self._number(self.judge), people["metrics"][self.head]["value"]
        if own and own["value"] is not None:
            apart = own["value"] - top
            sentence += f"; the judge is {number(abs(apart))} {'above' if apart > 0 else 'below'}"
            sentence += " that"
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

    def seeds(self) -> str:
        spread = self.results.get("over_seeds")
        if not spread or spread["sd"] is None:
            return ""
        known = [value for value in spread["values"] if value is not None]
        return (
            f"Over {len(known)} training seeds {NAMES[spread['metric']]} is "
            f"{number(spread['mean'])} on average (standard deviation {number(spread['sd'])}, "
            f"{number(min(known))} to {number(max(known))}), which no interval above includes."
        )

    def confidence(self) -> Iterator[str]:
        found, chosen = self.judge.get("calibration"), self.judge.get("selective")
        if found and found["ece"]["value"] is not None:
            usual = found["ece_if_calibrated"]
            yield (
                f"Its calibration error is {_with_n(found['ece'])}, where a calibrated judge of "
                f"the same confidences would show {number(usual['mean'])} (up to "
                f"{number(usual['high'])})."
            )
        if not chosen:
            return
        target = f"{100 * chosen['target']:.0f} %"
        if chosen["threshold"] is None:
            yield f"No threshold of its confidence makes it right in {target} of the rows for sure."
            return
        left = 100 * (1 - chosen["kept"]["value"])
        yield (
            f"Abstaining on {left:.0f} % of the rows it is right in {target} or more (bound "
            f"{number(chosen['bound'])}; on these rows {_with_n(chosen['right'])})."
        )

    def biases(self) -> str:
        checks = self.judge.get("checks") or {}
        told = [
            BIASES[name].format(SIDES[name][one["value"] > 0], number(abs(one["value"])))
            for name, one in checks.items()
            if one["alarm"]
        ]
        return f"Biases beyond chance: {'; '.join(told)}." if told else ""

    def own_answers(self) -> str:
        failures, n = self.judge.get("parse_failures", 0), self.results["data"]["n"]
        if "constrained" not in self.judge and not failures:
            return ""
        name, metrics = self.safe(self.judge["name"]), self.judge["metrics"]
        sentence = f"Of the {name}'s own answers {failures} of {n} are parse failures"
        sentence += f" ({100 * failures / n:.1f} %); over the others, {NAMES[self.head]} is "
        sentence += f"{_with_n(metrics.get(self.head))}, and with parse failures counted as wrong "
        return sentence + f"{_with_n(metrics.get(f'{self.head}_strict'))}."

    def _number(self, judge: dict[str, Any]) -> dict[str, Any] | None:
        numbers = judge.get("constrained") or judge["metrics"]
        found: dict[str, Any] | None = numbers.get(self.head)
        return found


def _with_n(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("value") is None:
        reason = (metric or {}).get("reason", "not computed")
        return f"undefined ({reason})"
    return f"{estimate(metric)} (n = {metric['n']})"
