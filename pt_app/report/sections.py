"""The scorecard, and sections about what the numbers of a judge, annotators and attacks show."""

from collections.abc import Iterator, Mapping, Sequence

from pt_app.core import results
from pt_app.core.formatting import NAMES, inline, number
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Lines, Section, blocks, paragraphs, sentences, titles

MANY_PARSE_FAILURES = 0.02
FEW_ROWS = 100


def scorecard(evaluation: results.Results, judge: results.JudgeResults) -> list[Block]:
    """Return the blocks of the scorecard of the judge that the report is about."""
    if not evaluation.data.n:
        return []
    head = evaluation.columns()[0]
    entries = list(_compared(evaluation, judge, head))
    alarms = _alarms(judge)
    next_step = _next_step(evaluation, judge, head, alarms)
    watched = paragraphs("watched", judge=judge, alarms=alarms, next_step=next_step)
    picture = charts.forest([(name, m, charts.BLUE) for name, m in entries], NAMES[head])
    return [*blocks("scorecard", head=head, entries=entries), *picture, Lines(watched)]


def _compared(
    evaluation: results.Results, judge: results.JudgeResults, head: str
) -> Iterator[tuple[str, results.Metric | None]]:
    """Yield name and headline metric of the judge, its base, what it must beat, and annotators."""
    for model in evaluation.models:
        if model.name in (judge.name, "base"):
            yield model.name, model.metrics.get(head)
    for baseline in evaluation.must_beat():
        title = "" if baseline.name == results.PROBE else "best baseline: "
        yield f"{title}{baseline.name}", baseline.metrics.get(head)
    if evaluation.ceiling:
        yield "one annotator against the others", evaluation.ceiling.metrics.get(head)


def _alarms(judge: results.JudgeResults) -> list[str]:
    """Name each bias of the judge that is beyond chance, with the size of its number."""
    return [
        f"{titles().alarms[name][check.value > 0]} ({number(abs(check.value))})"
        for name, check in judge.checks.items()
        if check.alarm and check.value is not None
    ]


def _next_step(
    evaluation: results.Results, judge: results.JudgeResults, head: str, alarms: list[str]
) -> str:
    """Return the most urgent thing to do, in one sentence."""
    n, own = evaluation.data.n or 0, judge.metrics.get(head)
    if evaluation.leaks.n:
        return "remove the texts that training and test share, and train again."
    if judge.parse_failures > MANY_PARSE_FAILURES * n:
        return "look at the parse failures, and train longer or use another base."
    if n < FEW_ROWS or judge.few_groups:
        return f"label more test rows from more sources: {n} rows decide little."
    others = {baseline.name for baseline in evaluation.must_beat()}
    for difference in evaluation.comparisons:
        unclear = difference.low is None or difference.low <= 0
        if difference.b in others and unclear:
            name = "the frozen probe" if difference.b == results.PROBE else inline(difference.b)
            return f"do not rely on it yet: it is not shown to beat {name}."
    if alarms:
        return f"read the section about biases before you use it ({alarms[0]})."
    top = evaluation.ceiling and evaluation.ceiling.metrics.get(head)
    if top and top.value and own and own.high and own.high < top.value:
        return "annotators still agree better: `judge eval --curve` shows whether more labels help."
    return "use it with `judge score`, and compare its successor with `judge gate`."


def evidence_sections(judge: results.JudgeResults) -> Iterator[Section]:
    """Yield the sections that the judge's numbers allow."""
    if judge.calibration:
        yield _confidence(judge, judge.calibration)
    if judge.checks:
        biases = blocks("checks", checks=judge.checks)
        yield Section("What moves the judge beside the label", biases)
    for column, slices in judge.slices.items():
        yield _slices(column, slices)
    if judge.orders:
        yield _orders(judge.orders)
    if judge.within_source_pairs and judge.within_source_pairs.pairs:
        yield Section("Rows of one source", blocks("pairs", pairs=judge.within_source_pairs))
    if judge.systems:
        yield Section("Systems", blocks("systems", systems=judge.systems))
    if best := judge.operating:
        yield Section("Threshold", [sentences("operating", best=best, judge=judge)])
    if judge.population:
        yield Section("Pass rate", [sentences("population", rate=judge.population)])


def _confidence(judge: results.JudgeResults, calibration: results.Calibration) -> Section:
    pictures = charts.reliability(calibration) + charts.risk_coverage(judge.selective)
    first = blocks("confidence", judge=judge, calibration=calibration)
    bins = blocks("reliability", bins=calibration.reliability)
    return Section("Confidence", [*first, *pictures, *bins])


def _slices(column: str, slices: dict[str, results.Slice]) -> Section:
    distances = {name: part.distance for name, part in slices.items()}
    pictures = charts.means(distances, "distance to the label")
    return Section(f"By {inline(column)}", [*blocks("slices", slices=slices), *pictures])


def _orders(orders: results.Orders) -> Section:
    counts = {(flip.first, flip.swapped): flip.n for flip in orders.flips}
    winners = sorted({winner for pair in counts for winner in pair}, key=str)
    lead, grid = sentences("orders"), matrix("", winners, winners, counts)
    return Section("Both orders", [lead, grid, *blocks("better", orders=orders)])


def matrix(
    corner: str,
    rows: Sequence[Verdict | None],
    columns: Sequence[Verdict | None],
    counts: Mapping[tuple[Verdict | None, Verdict | None], int],
) -> Grid:
    """Lay out counts of pairs of verdicts (None: a parse failure)."""

    def named(verdict: Verdict | None) -> str:
        return "parse failure" if verdict is None else inline(verdict)

    lines = [(row, [counts.get((row, column), 0) for column in columns]) for row in rows]
    body = [
        [named(row), *(str(count or "") for count in line), str(sum(line))] for row, line in lines
    ]
    return Grid([corner, *map(named, columns), "n"], body, heat=True)


def endpoint_section(evaluation: results.Results) -> Section | None:
    """Compare the probabilities of all judges; None if none is a decision model at an endpoint."""
    judges = [model for model in evaluation.models if model.calibration]
    if not any(model.repeats for model in judges):
        return None
    return Section("Probabilities, judge by judge", blocks("endpoint", judges=judges))


def escalation_section(found: results.Escalation | None) -> Section | None:
    """Return what is reached by sending some rows to an endpoint; None if that was not measured."""
    if found is None:
        return None
    first = blocks("escalation", found=found)
    return Section("Accept or escalate", [*first, *charts.escalation(found)])


def people_section(agreement: results.AnnotatorAgreement | None) -> Section | None:
    """Return how far the annotators agree with each other; None if no row has several."""
    if agreement is None:
        return None
    lead = sentences("annotator_agreement", agreement=agreement)
    rows = [[inline(name), *cells] for name, *cells in people.table(agreement)]
    return Section("Agreement among annotators", [lead, Grid(list(people.ROW), rows)])


def attack_section(attacks: results.AttackResults | None) -> Section | None:
    """Return what attacks do; None if `judge attack` was not run."""
    if attacks is None:
        return None
    is_score = Scale.from_name(attacks.scale).task == "score"
    first = blocks("attacks", attacks=attacks, is_score=is_score)
    pictures = charts.means({name: own.shift for name, own in attacks.families.items()}, "shift")
    last = blocks("control_tokens", control=attacks.control_tokens)
    return Section("Attacks", [*first, *pictures, *last])
