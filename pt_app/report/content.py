"""The sections of a report, before `writers.py` writes them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pt_app.core.formatting import NAMES, UNDEFINED, columns_of, estimate, with_n
from pt_app.core.verdicts import Scale
from pt_app.report import charts
from pt_app.report.opening import reading, scorecard
from pt_app.report.page import Block, Grid, Lines, Safe, Section, Texts, Words
from pt_app.report.sections import attack_section, evidence_sections, people_section
from pt_app.report.source import main_judge, read_attacks, read_history

MAX_ROWS = 20  # that a section shows one by one
SURE, DOUBT = 0.9, 0.01
MAX_COLUMNS = 21  # of the table of labels and verdicts

Row = dict[str, Any]


def content(
    folder: Path, results: dict[str, Any], predictions: Sequence[Row], safe: Safe
) -> list[Section]:
    """Return all sections of a report; the first one's title is the page's.

    Args:
        folder: the evaluation folder, which may hold the results of attacks, too.
        results: the content of results.json.
        predictions: the rows of predictions.jsonl.
        safe: escapes a foreign name for the page.
    """
    judge = main_judge(results)
    if results["task"] == "metric":
        return _ranks(results, safe)
    rows = [row for row in predictions if row["model"] == judge and row["status"] != "too_long"]
    model = next(one for one in results["models"] if one["name"] == judge)
    sections = [
        Section(
            "How far the judge agrees with the labels",
            scorecard(results, model, safe) if results["data"].get("n") else [],
        ),
        Section("In words", [Words(reading(results, safe)), *charts.agreement(results)]),
        _numbers(results, safe),
        _confusion(rows, safe(judge), safe),
        *evidence_sections(model, safe),
        people_section(results, safe),
        _by_error(results, model, safe),
        attack_section(read_attacks(folder), safe),
        _curve(results, safe),
        _training(folder),
        _leaks(results, safe),
        _worst(rows, safe(judge), safe),
        _disputed(rows, Scale.from_name(results["scale"]), safe),
        _origin(results, safe),
    ]
    first, *others = (section for section in sections if section)
    return [first, *(section for section in others if section.blocks)]


def _ranks(results: dict[str, Any], safe: Safe) -> list[Section]:
    """Return the report of metrics whose scores are not verdicts."""
    lead = Words(reading(results, safe))
    systems = (section for model in results["models"] for section in evidence_sections(model, safe))
    return [
        Section("How far the scores agree with the labels", [lead, *charts.agreement(results)]),
        _numbers(results, safe),
        *systems,
        _origin(results, safe),
    ]


def _numbers(results: dict[str, Any], safe: Safe) -> Section:
    columns = columns_of(results)
    header = ["judge", *(NAMES[name] for name in columns), "parse failures", "n", "$ per verdict"]
    rows = []
    for name, metrics, failures, cost in _lines(results, safe):
        n = next((metrics[column]["n"] for column in columns if metrics.get(column)), None)
        cells = []
        for metric in map(metrics.get, columns):
            other = f" (n = {metric['n']})" if metric and metric["n"] != n else ""
            cells.append(estimate(metric) + other)
        rows.append([name, *cells, failures, UNDEFINED if n is None else str(n), cost])
    if not any(model.get("cost") for model in results["models"]):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Section("Numbers", [Grid(header, rows), *map(Words, _legend(results, safe))])


def _lines(results: dict[str, Any], safe: Safe) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Yield name, numbers, parse failures and cost per verdict of each line of the table."""
    for model in results["models"]:
        name, metrics, failures = (
            safe(model["name"]),
            model["metrics"],
            str(model["parse_failures"]),
        )
        cost = f"{model['cost']['per_verdict']:.6f}" if model.get("cost") else UNDEFINED
        strict = {column: metrics.get(f"{column}_strict") for column in metrics}
        if "constrained" in model:
            yield f"{name}, constrained verdict", model["constrained"], UNDEFINED, cost
        yield f"{name}, own answer", metrics, failures, cost
        yield f"{name}, parse failures wrong", strict, failures, cost
    for baseline in results.get("baselines") or []:
        name, verdict = safe(baseline["name"]), baseline.get("verdict")
        name = name if verdict is None else f"always {safe(verdict)} ({name})"
        yield name, baseline["metrics"], UNDEFINED, UNDEFINED
    if annotators := results.get("ceiling"):
        yield "one annotator against the others", annotators["metrics"], UNDEFINED, UNDEFINED


def _legend(results: dict[str, Any], safe: Safe) -> list[str]:
    lines = [
        "95 % intervals in brackets: bootstrap over groups, so that rows of one source count as "
        "one draw. Constrained verdict: the most likely of the allowed verdicts, on every row. "
        "Own answer: the verdict the judge writes, without parse failures. "
        "Parse failures wrong: the same with each parse failure counted as the verdict "
        "farthest from the label (if verdicts have no order: as another, wrong one). "
        f"{UNDEFINED}: undefined or not computed."
    ]
    fitted = {one.get("fitted") for one in results.get("baselines") or []} - {None, ""}
    lines += [f"The baselines are fitted on {safe(what)}." for what in sorted(fitted)]
    missing = (results.get("missing_baselines") or {}).items()
    lines += [f"No {safe(name)} baseline: {safe(reason)}." for name, reason in missing]
    if "order_consistency" in columns_of(results):
        lines.append(
            "Accuracy, other order: of the verdicts on the pairs shown the other way round. Right "
            "in both orders: pairs judged right both times. "
            "Same in both orders: pairs whose winner stays if the candidates change places. "
            "First position: share of verdicts without ties for the candidate shown first, over "
            "both orders; 0.5 without a position bias."
        )
    for model in results["models"]:
        lines += _notes(model, safe)
    return list(dict.fromkeys(lines))


def _notes(model: dict[str, Any], safe: Safe) -> Iterator[str]:
    """Yield what must be known about one judge's numbers."""
    name, mass = safe(model["name"]), model.get("verdict_mass")
    if isinstance(mass, dict):
        yield f"Probability of all allowed verdicts together, {name}: {with_n(mass)}."
    if cost := model.get("cost"):
        yield (
            f"{name}: ${cost['dollars']:.4f} for {cost['n']} verdicts, "
            f"${cost['per_verdict']:.6f} each."
        )
    if model.get("unscored"):
        yield f"{model['unscored']} rows did not fit the context and are in no number."
    if model.get("shortened"):
        yield f"{model['shortened']} rows were shortened to fit the context."
    if model.get("ties"):
        yield (
            f"{name}: in {model['ties']} rows two verdicts are equally likely within 1e-5, and "
            "rounding decides between them."
        )
    if change := model.get("precision_change"):
        yield (
            f"{name}, scored in {safe(model['precision'])}: {change['verdicts']} verdicts of "
            f"{change['n']} rows differ from those of float32, and probabilities by up to "
            f"{change['probability']:.2g}."
        )


def _confusion(rows: Sequence[Row], judge: str, safe: Safe) -> Section | None:
    title, lead = "Labels and verdicts", f"Own answers of the {judge}, rows by label: "
    counts = Counter((row["label"], row["verdict"]) for row in rows)
    values = sorted(
        {value for pair in counts for value in pair if value is not None},
        key=lambda value: (isinstance(value, str), value),
    )
    if not counts:
        return None
    spread = charts.verdicts_by_label(rows)
    if len(values) > MAX_COLUMNS:
        left_out = Words(f"{lead}left out, since {len(values)} different values occur.")
        return Section(title, [left_out, *spread])
    columns = [*values, None] if any(verdict is None for _, verdict in counts) else values
    header = ["label", *("parse failure" if v is None else safe(v) for v in columns), "n"]
    body = []
    for label in values:
        line = [counts[label, verdict] for verdict in columns]
        if sum(line):
            body.append([safe(label), *(str(count or "") for count in line), str(sum(line))])
    lead += f"n = {len(rows)}."
    return Section(title, [Words(lead), Grid(header, body, heat=True), *spread])


def _by_error(results: dict[str, Any], model: dict[str, Any], safe: Safe) -> Section | None:
    kinds = model.get("by_error")
    if not kinds:
        return None
    what = "mean distance to the label" if results["task"] == "score" else "accuracy"
    body = [[safe(kind), estimate(one), str(one["n"])] for kind, one in kinds.items()]
    note = "A row with several errors counts for each of them; none: no known error."
    lead = Words(f"Constrained verdict of the {safe(model['name'])}. {note}")
    return Section(
        "By kind of error in the candidate",
        [lead, Grid(["kind", what, "n"], body), *charts.means(kinds, what)],
    )


def _curve(results: dict[str, Any], safe: Safe) -> Section | None:
    """Show the same training on fewer rows: whether more labels would help."""
    points = results.get("curve")
    if not points:
        return None
    metric = NAMES[points[0]["metric"]]
    rows = [[str(point["rows"]), estimate(point), str(point["n"])] for point in points]
    differences = [
        f"{safe(one['a'])} - {safe(one['b'])}: {estimate(one)}"
        for one in results.get("comparisons") or []
        if one["b"] in ("quarter", "half")
    ]
    lead = "The same training on fewer rows, on the same test rows. If it still rises from half to "
    lead += f"all, more labels are likely to help. {'; '.join(differences)}."
    by_rows = {f"{point['rows']} rows": point for point in points}
    grid = Grid(["training rows", metric, "n"], rows)
    return Section("Learning curve", [Words(lead), grid, *charts.means(by_rows, metric)])


def _training(folder: Path) -> Section | None:
    history = read_history(folder)
    return Section("Training", charts.training(history)) if history else None


def _leaks(results: dict[str, Any], safe: Safe) -> Section | None:
    leaks = results.get("leaks") or {}
    lines = [safe(line) for line in leaks.get("examples", ())]
    more = leaks.get("n", 0) - len(lines)
    lines += [f"and {more} more"] if more > 0 else []
    return Section("Leaks", [Lines(lines)]) if lines else None


def _worst(rows: Sequence[Row], judge: str, safe: Safe) -> Section:
    wrong = [row for row in rows if _verdict(row) not in (None, row["label"])]
    wrong.sort(key=lambda row: (*_distance(row), str(row.get("id"))))
    title = f"Worst disagreements of the {judge}"
    if not wrong:
        none = "None: the verdict equals the label in all rows that have one."
        return Section(title, [Words(none)])
    shown = wrong[:MAX_ROWS]
    lead = f"{len(shown)} of the {len(wrong)} rows whose verdict is not the label"
    lead += f" (of {len(rows)}), farthest first."
    blocks: list[Block] = [Words(lead), *(_disagreement(row, safe) for row in shown)]
    return Section(title, blocks)


def _disputed(rows: Sequence[Row], scale: Scale, safe: Safe) -> Section | None:
    """List the rows whose label the judge all but rules out: the label may be wrong."""
    doubted = []
    for row in rows:
        chances = dict(zip(scale.values, row.get("probabilities") or (), strict=False))
        if max(chances.values(), default=0.0) >= SURE and chances[row["label"]] < DOUBT:
            doubted.append((chances[row["label"]], row))
    if not doubted:
        return None
    doubted.sort(key=lambda pair: (pair[0], str(pair[1].get("id"))))
    lead = (
        f"{len(doubted)} rows in which the judge gives one verdict {SURE:.0%} or more and the "
        f"label under {DOUBT:.0%}: worth a second look at the label."
    )
    lines = [
        f"{safe(row.get('id'))}: label {safe(row['label'])} ({chance:.2g}), judge "
        f"{safe(_verdict(row))} ({max(row['probabilities']):.2f})"
        for chance, row in doubted[:MAX_ROWS]
    ]
    return Section("Labels that the judge disputes", [Words(lead), Lines(lines)])


def _verdict(row: Row) -> Any:
    """Return the constrained verdict, else the judge's own; None for a parse failure."""
    return row["verdict"] if row["constrained"] is None else row["constrained"]


def _distance(row: Row) -> tuple[float, float]:
    """Return a key that sorts far before near, then confident before hesitant."""
    label, verdict = row["label"], _verdict(row)
    numeric = not isinstance(label, str) and not isinstance(verdict, str)
    confidence = max(row.get("probabilities") or [0.0])
    return (-abs(verdict - label) if numeric else 0.0), -confidence


def _disagreement(row: Row, safe: Safe) -> Texts:
    own = "parse failure" if row["verdict"] is None else row["verdict"]
    says = f"label {safe(row['label'])}"
    if row["constrained"] is not None:
        says += f", constrained verdict {safe(row['constrained'])}"
    says += f", own answer {safe(own)}"
    turns = row.get("conversation") or ()
    first, second = row.get("candidates") or (None, None)
    texts = {
        "prompt": row.get("prompt"),
        "source": row.get("source"),
        "conversation": "\n".join(f"{t['role']}: {t['content']}" for t in turns) or None,
        "context": row.get("context"),
        "reference": row.get("reference"),
        "candidate": row.get("candidate"),
        "candidate A": first,
        "candidate B": second,
        "label says": row.get("label_feedback"),
        "judge says": row.get("raw"),
    }
    # An empty candidate is a row like others, and shown as such.
    fields = [(name, str(text)) for name, text in texts.items() if text is not None]
    return Texts(safe(row.get("id")), says, fields)


def _origin(results: dict[str, Any], safe: Safe) -> Section:
    data = results["data"]
    facts: list[tuple[str, Any]] = [
        ("task", results["task"]),
        ("scale", results["scale"]),
        ("data", data.get("path")),
        ("data sha256", data.get("sha256")),
        *((m["name"], [m.get("id"), m.get("precision")]) for m in results["models"]),
        *(results.get("run") or {}).items(),
    ]
    lines = [f"{safe(name)}: {safe(_plain(value))}" for name, value in facts if value]
    return Section("How this was made", [Lines(lines)])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(_plain(one) for one in value if one is not None)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
