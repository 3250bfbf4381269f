"""The paragraph that says in words what the numbers allow one to say, and what not."""

from typing import Any

from pt_app.report.wording import NAMES, columns_of, estimate, inline, number


def reading(results: dict[str, Any]) -> str:
    """One paragraph of Markdown about `results`: agreement, base, baseline, difference, limits."""
    models = {model["name"]: model for model in results["models"]}
    judge = models.get("adapter") or next(iter(models.values()), None)
    data = results["data"]
    rows = f"{data.get('n')} rows of {data.get('groups')} groups (rows of one source form a group)"
    if judge is None or not data.get("n"):
        return f"On {rows} nothing was judged: there is no number to report."
    base = models.get("base") if judge["name"] == "adapter" else None
    sentences = [_agreement(results, judge, base, rows), *_baselines(results)]
    sentences += [_difference(item) for item in results.get("comparisons") or []]
    sentences.append(_own_answers(results, judge))
    if judge.get("few_groups"):
        sentences.append(
            "There are fewer than 20 groups: the intervals are too narrow to be relied on."
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
        sentence += " under the same constrained reading"
    else:
        sentence += " under the constrained reading"
    return sentence + " (the most likely of the allowed verdicts; 95 % intervals in brackets)."


def _baselines(results: dict[str, Any]) -> list[str]:
    head = columns_of(results)[0]
    return [
        f"Always answering the {inline(rule['name'])} label"
        f"{' ' + inline(rule['verdict']) if rule.get('verdict') is not None else ''} gives "
        f"{_with_n(rule['metrics'].get(head))}."
        for rule in results.get("baselines") or []
        if rule.get("name") == "majority"
    ]


def _difference(item: dict[str, Any]) -> str:
    a, b = inline(item["a"]), inline(item["b"])
    if item.get("value") is None:
        return f"The difference between {a} and {b} is undefined here."
    name = NAMES.get(item["metric"], item["metric"])
    sentence = f"The difference {a} - {b} on the same rows is {_with_n(item)} in {name}"
    low, high = item.get("low"), item.get("high")
    if low is None or high is None:
        return f"{sentence}, without an interval."
    if low <= 0 <= high:
        return f"{sentence}: this test set cannot tell the two apart."
    return f"{sentence}: {a if low > 0 else b} agrees better."


def _own_answers(results: dict[str, Any], judge: dict[str, Any]) -> str:
    head = columns_of(results)[0]
    failures, n = judge.get("parse_failures", 0), results["data"]["n"]
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
