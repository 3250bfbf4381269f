"""The opening of a report: a scorecard, and one paragraph that says in words what numbers show."""

from collections.abc import Iterator

from pt_app.core.formatting import NAMES, estimate, inline, number, p_value, with_n
from pt_app.core.results import Comparison, JudgeResults, Metric, Results
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Lines, prose

MANY_PARSE_FAILURES = 0.02
FEW_ROWS = 100


def scorecard(results: Results, judge: JudgeResults) -> list[Block]:
    """Return the blocks of the scorecard of the judge that the report is about."""
    head = results.columns()[0]
    entries = list(_compared(results, judge, head))
    rows = [[inline(name), estimate(m), str(m.n if m else "")] for name, m in entries]
    watched = [
        *_calibration(judge),
        *_coverage(judge),
        f"Alarms: {', '.join(_alarms(judge)) or 'none'}",
        f"Next: {_next_step(results, judge, head)}",
    ]
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


def _calibration(judge: JudgeResults) -> Iterator[str]:
    calibration = judge.calibration
    if calibration and calibration.ece_if_calibrated and calibration.ece.value is not None:
        yield (
            f"Calibration: the expected calibration error is {estimate(calibration.ece)}; that of "
            f"a calibrated judge would be up to {number(calibration.ece_if_calibrated.high)}"
        )


def _coverage(judge: JudgeResults) -> Iterator[str]:
    if chosen := judge.selective:
        accuracy, kept = f"an accuracy of {100 * chosen.target:.0f} %", chosen.kept.value or 0.0
        if chosen.threshold is None:
            yield f"Coverage: no confidence threshold guarantees {accuracy}"
        else:
            yield f"Coverage: it judges {100 * kept:.0f} % of the rows with {accuracy} or more"


def _alarms(judge: JudgeResults) -> Iterator[str]:
    """Name each bias of the judge that is beyond chance, with the size of its number."""
    for name, check in judge.checks.items():
        if check.alarm and check.value is not None:
            yield f"{prose().alarms[name][check.value > 0]} ({number(abs(check.value))})"


def _next_step(results: Results, judge: JudgeResults, head: str) -> str:
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
    if first := next(_alarms(judge), ""):
        return f"read the section about biases before you use it ({first})."
    top = results.ceiling and results.ceiling.metrics.get(head)
    if top and top.value and own and own.high and own.high < top.value:
        return "annotators still agree better: `judge eval --curve` shows whether more labels help."
    return "use it with `judge score`, and compare its successor with `judge gate`."


def reading(results: Results) -> str:
    """Return one paragraph on the agreement of judge, base, baselines, annotators and seeds.

    Confidence and biases are in the scorecard, which precedes it.
    """
    judge, data = results.judge, results.data
    rows = f"{data.n} rows of {data.groups} groups (rows of one source form a group)"
    if judge is None or not data.n:
        return f"On {rows} nothing was judged: there is no number to report."
    head, models = results.columns()[0], {model.name: model for model in results.models}
    base = models.get("base") if judge.name == "adapter" else None
    sentences = [
        _agreement(judge, base, head, rows),
        *_baselines(results, judge, head),
        *_annotators(results, judge, head),
        *(_difference(one) for one in results.comparisons if one.b in models),
        *_seeds(results),
        *_own_answers(judge, head, data.n),
    ]
    if judge.few_groups:
        sentences.append(prose().few_groups)
    return " ".join(sentences)


def _agreement(judge: JudgeResults, base: JudgeResults | None, head: str, rows: str) -> str:
    sentence = f"On {rows} the {inline(judge.name)} agrees with the labels at "
    sentence += f"{NAMES[head]} {with_n(judge.best.get(head))}"
    if base is not None:
        sentence += f", its base at {with_n(base.best.get(head))}"
    of_what = "of the constrained verdicts, the most likely of the allowed ones; "
    of_what = "" if judge.constrained is None else of_what
    return f"{sentence} ({of_what}95 % intervals in brackets)."


def _baselines(results: Results, judge: JudgeResults, head: str) -> Iterator[str]:
    best = results.best_baseline()
    if best is None:
        return
    reached, name = with_n(best.metrics[head]), inline(best.name)
    if best.name == "majority":
        label = "" if best.verdict is None else f" {inline(best.verdict)}"
        yield f"Always answering the majority label{label} gives {reached}."
        return
    sentence = f"The best of the baselines without a language model, {name}, reaches {reached}"
    for item in results.comparisons:
        if item.b == best.name and item.value is not None:
            sentence += f"; {inline(judge.name)} - {name} is {estimate(item)}"
            sentence += f", p {p_value(item.p)}" if item.p is not None else ""
    yield f"{sentence}."


def _annotators(results: Results, judge: JudgeResults, head: str) -> Iterator[str]:
    top = results.ceiling and results.ceiling.metrics.get(head)
    if not top or top.value is None:
        return
    sentence, own = f"One annotator agrees with the others at {with_n(top)}", judge.best.get(head)
    if own and own.value is not None:
        apart = own.value - top.value
        side = "above" if apart > 0 else "below"
        sentence += f"; the judge is {number(abs(apart))} {side} that"
    yield f"{sentence}."


def _difference(item: Comparison) -> str:
    a, b = inline(item.a), inline(item.b)
    if item.value is None:
        return f"The difference between {a} and {b} is undefined here."
    name = NAMES.get(item.metric, item.metric)
    sentence = f"The difference {a} - {b} on the same rows is {with_n(item)} in {name}"
    if item.low is None or item.high is None:
        return f"{sentence}, without an interval."
    if item.p is not None:
        sentence += f", p {p_value(item.p)}"
    if not item.low <= 0 <= item.high:
        return f"{sentence}: {a if item.low > 0 else b} agrees better."
    sentence += ": this test set cannot tell the two apart"
    if item.detectable:
        sentence += f" (it shows differences from {number(item.detectable)} on)"
    return f"{sentence}."


def _seeds(results: Results) -> Iterator[str]:
    spread = results.over_seeds
    if spread and spread.sd is not None:
        values = [value for value in spread.values if value is not None]
        yield (
            f"Over {len(values)} training seeds {NAMES[spread.metric]} is {number(spread.mean)} on "
            f"average (standard deviation {number(spread.sd)}, {number(min(values))} to "
            f"{number(max(values))}), which no interval above includes."
        )


def _own_answers(judge: JudgeResults, head: str, n: int) -> Iterator[str]:
    failures, metrics = judge.parse_failures, judge.metrics
    if judge.constrained is not None or failures:
        yield (
            f"Of the {inline(judge.name)}'s own answers {failures} of {n} are parse failures "
            f"({100 * failures / n:.1f} %); over the others, {NAMES[head]} is "
            f"{with_n(metrics.get(head))}, and with parse failures counted as wrong "
            f"{with_n(metrics.get(f'{head}_strict'))}."
        )
