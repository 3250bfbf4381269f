"""The sections of a report, before `page.py` writes them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pt_app.core.files import read_text
from pt_app.core.formatting import NAMES, UNDEFINED, inline
from pt_app.core.results import (
    JsonObject,
    JudgeResults,
    Metrics,
    Prediction,
    Results,
    Stored,
    read_attacks,
)
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.calibration import confidence_in, wrong_with
from pt_app.report import charts
from pt_app.report import sections as parts
from pt_app.report.overview import compared, overview_table
from pt_app.report.page import Block, Grid, Lines, Section, Texts, blocks, paragraphs, sentences

MAX_ROWS = 20  # that a section shows one by one
SURE, DOUBT = 0.9, 0.01
MAX_COLUMNS = 21  # of the table of labels and verdicts


def content(folder: Path, results: Results, predictions: Sequence[Prediction]) -> list[Section]:
    """Return all sections of a report; the first one's title is the page's.

    Args:
        folder: the evaluation folder, which may hold the results of attacks, too.
        results: the content of results.json.
        predictions: the rows of predictions.jsonl.
    """
    if results.questions:
        title = "How far the judge agrees, question by question"
        table = Grid(*overview_table(results, pages=True))
        return [
            Section(title, [table, sentences("overview", judge=inline(compared(results)))]),
            _origin(results),
        ]
    judge = results.judge
    reading = sentences("reading", results=results, judge=judge, head=results.columns()[0])
    in_words: list[Block] = [reading, *charts.agreement(results)]
    if judge is None or results.task == "metric":
        title = "How far the scores agree with the labels"
        systems = (
            section for model in results.models for section in parts.evidence_sections(model)
        )
        return [Section(title, in_words), _numbers(results), *systems, _origin(results)]
    rows = [row for row in predictions if row.model == judge.name and row.status != "too_long"]
    title, card = "How far the judge agrees with the labels", parts.scorecard(results, judge)
    if results.data.question:
        title = f"{inline(results.data.question)}: how far the judge agrees with the labels"
        card = [inline(results.data.asked), *card]
    sections = [
        Section(title, card),
        Section("In words", in_words),
        _numbers(results),
        _confusion(rows, judge),
        *parts.evidence_sections(judge),
        parts.endpoint_section(results),
        parts.escalation_section(results.escalation),
        parts.people_section(results.people),
        _by_error(results, judge),
        parts.attack_section(read_attacks(folder)),
        _curve(results),
        _training(folder),
        _leaks(results),
        _worst(rows, judge),
        _disputed(rows, Scale.from_name(results.scale)),
        _origin(results),
    ]
    first, *others = (section for section in sections if section)
    return [first, *(section for section in others if section.blocks)]


def _numbers(results: Results) -> Section:
    table = blocks("numbers", results=results, lines=_lines(results))
    legend = dict.fromkeys(paragraphs("legend", results=results))
    return Section("Numbers", [*table, *legend])


def _lines(results: Results) -> Iterator[tuple[str, Metrics, str, str]]:
    """Yield name, numbers, parse failures and cost per verdict of each line of the table."""
    for model in results.models:
        name, failures = inline(model.name), str(model.parse_failures)
        cost = f"{model.cost.per_verdict:.6f}" if model.cost else UNDEFINED
        own = model.answers
        strict = {name: own[f"{name}_strict"] for name in own if f"{name}_strict" in own}
        if model.greedy is not None:
            yield f"{name}, verdict", model.metrics, UNDEFINED, cost
        answer = "answer" if model.greedy is None else "greedy answer"
        yield f"{name}, {answer}", own, failures, cost
        yield f"{name}, parse failures wrong", strict, failures, cost
    for baseline in results.baselines:
        name, verdict = inline(baseline.name), baseline.verdict
        name = name if verdict is None else f"always {inline(verdict)} ({name})"
        yield name, baseline.metrics, UNDEFINED, UNDEFINED
    if results.ceiling:
        name = "one annotator against the others"
        yield name, results.ceiling.metrics, UNDEFINED, UNDEFINED


def _confusion(rows: Sequence[Prediction], judge: JudgeResults) -> Section | None:
    title = "Labels and verdicts"
    counts: Counter[tuple[Verdict | None, Verdict | None]] = Counter(
        (row.label, row.verdict) for row in rows
    )
    values = sorted(
        {value for pair in counts for value in pair if value is not None},
        key=lambda value: (isinstance(value, str), value),
    )
    if not counts:
        return None
    spread = charts.verdicts_by_label(rows)
    many = len(values) if len(values) > MAX_COLUMNS else None
    lead = sentences("confusion", judge=judge, values=many, rows=len(rows))
    if many:
        return Section(title, [lead, *spread])
    columns = [*values, None] if any(verdict is None for _, verdict in counts) else values
    labels = [value for value in values if any(value == label for label, _ in counts)]
    grid = parts.matrix("label", labels, columns, counts)
    return Section(title, [lead, grid, *spread])


def _by_error(results: Results, judge: JudgeResults) -> Section | None:
    if not judge.by_error:
        return None
    what = "mean distance to the label" if results.task == "score" else "accuracy"
    first, pictures = blocks("by_error", judge=judge, what=what), charts.means(judge.by_error, what)
    return Section("By kind of error in the candidate", [*first, *pictures])


def _curve(results: Results) -> Section | None:
    """Show the same training on fewer rows: whether more labels would help."""
    points = results.curve
    if not points:
        return None
    by_rows = {f"{point.rows} rows": point for point in points}
    pictures = charts.means(by_rows, NAMES[points[0].metric])
    return Section("Learning curve", [*blocks("curve", results=results), *pictures])


class _TrainingConfig(Stored):
    """What training logged, in the adapter around the evaluation."""

    log_history: tuple[JsonObject, ...] = ()


def _training(folder: Path) -> Section | None:
    path = folder.resolve().parent / "training_config.json"
    if not path.exists():
        return None
    history = [
        {name: value for name, value in entry.items() if isinstance(value, int | float)}
        for entry in _TrainingConfig.parse(read_text(path), path).log_history
    ]
    return Section("Training", charts.training(history)) if history else None


def _leaks(results: Results) -> Section | None:
    lines = [inline(line) for line in results.leaks.examples]
    more = results.leaks.n - len(lines)
    lines += [f"and {more} more"] if more > 0 else []
    return Section("Leaks", [Lines(lines)]) if lines else None


def _worst(rows: Sequence[Prediction], judge: JudgeResults) -> Section:
    wrong = [row for row in rows if row.verdict not in (None, row.label)]
    wrong.sort(key=lambda row: (*_distance(row), row.id))
    shown = wrong[:MAX_ROWS]
    lead = sentences("worst", shown=len(shown), wrong=len(wrong), rows=len(rows))
    title = f"Worst disagreements of the {inline(judge.name)}"
    return Section(title, [lead, *map(_disagreement, shown)])


def _disputed(rows: Sequence[Prediction], scale: Scale) -> Section | None:
    """List the rows whose label the judge all but rules out: the label may be wrong."""
    doubted = []
    for row in rows:
        chances = row.probabilities or []
        if row.verdict is None or wrong_with(chances, scale):
            continue
        sure, doubt = (confidence_in(v, chances, scale) for v in (row.verdict, row.label))
        if sure >= SURE and doubt < DOUBT:
            line = f"{inline(row.id)}: label {inline(row.label)} ({doubt:.2g}), judge "
            line += f"{inline(row.verdict)} ({sure:.2f})"
            doubted.append((doubt, row.id, line))
    if not doubted:
        return None
    lead = sentences("disputed", rows=len(doubted), sure=SURE, doubt=DOUBT)
    lines = [line for _, _, line in sorted(doubted)[:MAX_ROWS]]
    return Section("Labels that the judge disputes", [lead, Lines(lines)])


def _distance(row: Prediction) -> tuple[float, float]:
    """Return a key that sorts far before near, then confident before hesitant."""
    label, verdict = row.label, row.verdict
    apart = 0.0
    if not isinstance(label, str) and not isinstance(verdict, str | None):
        apart = abs(verdict - label)
    return -apart, -max(row.probabilities or [0.0])


def _disagreement(row: Prediction) -> Texts:
    first, second = row.candidates or (None, None)
    texts = {
        "prompt": row.prompt,
        "source": row.source,
        "conversation": "\n".join(f"{t.role}: {t.content}" for t in row.conversation or ()) or None,
        "context": row.context,
        "reference": row.reference,
        "candidate": row.candidate,
        "candidate A": first,
        "candidate B": second,
        "label says": row.label_feedback,
        "judge says": row.raw,
    }
    # An empty candidate is a row like others, and shown as such.
    fields = [(name, text) for name, text in texts.items() if text is not None]
    return Texts(inline(row.id), sentences("disagreement", row=row), fields)


def _origin(results: Results) -> Section:
    facts: list[tuple[str, object]] = [
        ("task", results.task),
        ("scale", results.scale),
        ("data", results.data.path),
        ("data sha256", results.data.sha256),
        *((model.name, [model.id or None, model.precision]) for model in results.models),
        *((f"{model.name}, grid", model.grid) for model in results.models),
        *results.run.items(),
    ]
    lines = [f"{inline(name)}: {inline(_plain(value))}" for name, value in facts if value]
    return Section("How this was made", [Lines(lines)])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(_plain(item) for item in value if item is not None)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
