"""The paragraph that says in words what the numbers allow one to say, and what not."""

from collections.abc import Iterator
from typing import Any

from pt_app.report.wording import NAMES, best_rule, columns_of, estimate, inline, number, p_value

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


def reading(results: dict[str, Any]) -> str:
    """One paragraph of Markdown: agreement, base, rules, people, confidence, biases, limits."""
    models = {model["name"]: model for model in results["models"]}
    judge = models.get("adapter") or next(iter(models.values()), None)
    data = results["data"]
    rows = f"{data.get('n')} rows of {data.get('groups')} groups (rows of one source form a group)"
    if judge is None or not data.get("n"):
        return f"On {rows} nothing was judged: there is no number to report."
    base = models.get("base") if judge["name"] == "adapter" else None
    sentences = [
        _agreement(results, judge, base, rows),
        *_rules(results, judge),
        *_people(results, judge),
        *_differences(results, set(models)),
        *_confidence(judge),
        _biases(judge),
        _own_answers(results, judge),
    ]
    if judge.get("few_groups"):
        sentences.append(
            "There are fewer than 20 groups: intervals come from leaving out each in turn, "
            "and say little."
        )
    return " ".join(sentence for sentence in sentences if sentence)


def _agreement(
    results: dict[str, Any], judge: dict[str, Any], base: dict[str, Any] | None, rows: str
) -> str:
    head = columns_of(results)[0]
    sentence = f"On {rows} the {inline(judge['name'])} agrees with the labels at {NAMES[head]} "
    sentence += _with_n(_number(judge, head))
    if base is not None:
        sentence += f", its base at {_with_n(_number(base, head))}"
    if "constrained" not in judge:
        return f"{sentence} (95 % intervals in brackets)."
    same = "the same" if base is not None else "the"
    sentence += f" under {same} constrained reading"
    return sentence + " (the most likely of the allowed verdicts; 95 % intervals in brackets)."


def _rules(results: dict[str, Any], judge: dict[str, Any]) -> Iterator[str]:
    head, rule = columns_of(results)[0], best_rule(results)
    if rule is None:
        return
    if rule["name"] == "majority":
        label = f" {inline(rule['verdict'])}" if rule.get("verdict") is not None else ""
        yield f"Always answering the majority label{label} gives {_with_n(rule['metrics'][head])}."
    else:
        yield (
            f"Of the rules without a language model the best, {inline(rule['name'])}, reaches "
            f"{_with_n(rule['metrics'][head])}"
            + "".join(
                f"; {inline(judge['name'])} less {inline(rule['name'])} is {estimate(item)} "
                f"(p {p_value(item)})"
                for item in results.get("comparisons") or []
                if item["b"] == rule["name"] and item.get("value") is not None
            )
            + "."
        )


def _people(results: dict[str, Any], judge: dict[str, Any]) -> Iterator[str]:
    head, people = columns_of(results)[0], results.get("ceiling")
    if not people or people["metrics"][head]["value"] is None:
        return
    sentence = f"One person agrees with the others at {_with_n(people['metrics'][head])}"
    rule, own = best_rule(results), _number(judge, head)
    floor = rule["metrics"][head]["value"] if rule else None
    top = people["metrics"][head]["value"]
    if floor is not None and own and own["value"] is not None and top > floor:
        share = (own["value"] - floor) / (top - floor)
        sentence += f": the judge has gone {100 * share:.0f} % of the way from that rule to people"
    yield f"{sentence}."


def _differences(results: dict[str, Any], models: set[str]) -> Iterator[str]:
    for item in results.get("comparisons") or []:
        if item["b"] in models:
            yield _difference(item)


def _difference(item: dict[str, Any]) -> str:
    a, b = inline(item["a"]), inline(item["b"])
    if item.get("value") is None:
        return f"The difference between {a} and {b} is undefined here."
    name = NAMES.get(item["metric"], item["metric"])
    sentence = f"The difference {a} - {b} on the same rows is {_with_n(item)} in {name}"
    low, high = item.get("low"), item.get("high")
    if low is None or high is None:
        return f"{sentence}, without an interval."
    if item.get("p") is not None:
        sentence += f", p {p_value(item)}"
    if low <= 0 <= high:
        sentence += ": this test set cannot tell the two apart"
        smallest = item.get("detectable")
        return sentence + (
            f" (it shows differences from {number(smallest)} on)." if smallest else "."
        )
    return f"{sentence}: {a if low > 0 else b} agrees better."


def _confidence(judge: dict[str, Any]) -> Iterator[str]:
    found, chosen = judge.get("calibration"), judge.get("selective")
    if found and found["ece"]["value"] is not None:
        usual = found["ece_if_calibrated"]
        yield (
            f"Its calibration error is {_with_n(found['ece'])}, where a calibrated judge of the "
            f"same confidences would show {number(usual['mean'])} (up to {number(usual['high'])})."
        )
    if not chosen:
        return
    target = f"{100 * chosen['target']:.0f} %"
    if chosen["threshold"] is None:
        yield f"At no confidence is it right in {target} of the rows with the certainty asked for."
    else:
        yield (
            f"Abstaining on {100 * (1 - chosen['kept']['value']):.0f} % of the rows it is right in "
            f"{target} or more (bound {number(chosen['bound'])}; here "
            f"{_with_n(chosen['right'])})."
        )


def _biases(judge: dict[str, Any]) -> str:
    checks = judge.get("checks") or {}
    alarms = [name for name, one in checks.items() if one["alarm"]]
    told = [
        BIASES[name].format(
            SIDES[name][checks[name]["value"] > 0], number(abs(checks[name]["value"]))
        )
        for name in alarms
    ]
    return f"Biases beyond chance: {'; '.join(told)}." if told else ""


def _own_answers(results: dict[str, Any], judge: dict[str, Any]) -> str:
    head = columns_of(results)[0]
    failures, n = judge.get("parse_failures", 0), results["data"]["n"]
    if "constrained" not in judge and not failures:
        return ""
    sentence = f"Of the {inline(judge['name'])}'s own answers {failures} of {n} are parse failures"
    sentence += f" ({number(100 * failures / n)} %); "
    strict = judge["metrics"].get(f"{head}_strict")
    sentence += f"over the others, {NAMES[head]} is {_with_n(judge['metrics'].get(head))}, "
    return sentence + f"and with parse failures counted as wrong {_with_n(strict)}."


def _number(judge: dict[str, Any], name: str) -> dict[str, Any] | None:
    numbers = judge.get("constrained") or judge["metrics"]
    found: dict[str, Any] | None = numbers.get(name)
    return found


def _with_n(metric: dict[str, Any] | None) -> str:
    if not metric or metric.get("value") is None:
        reason = (metric or {}).get("reason", "not computed")
        return f"undefined ({reason})"
    return f"{estimate(metric)} (n = {metric['n']})"
