"""report.md: the reading in words, the table, where the judge errs, how the numbers were made."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pt_app.files import write_text_atomic
from pt_app.report.reading import reading
from pt_app.report.sections import evidence_sections
from pt_app.report.source import read_predictions, read_results
from pt_app.report.wording import (
    NAMES,
    UNDEFINED,
    columns_of,
    estimate,
    fenced,
    inline,
    leak_line,
    table,
)

WORST = 10
WIDEST_MATRIX = 21

Row = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.md from its results.json and predictions.jsonl; return its path.

    Raises UserError where either is missing or broken.
    """
    results, predictions = read_results(folder), read_predictions(folder)
    judge = _main_judge(results)
    rows = [row for row in predictions if row["model"] == judge and row["status"] != "too_long"]
    leaks = leak_line(results)
    sections = [
        f"**{leaks}**" if leaks else "",
        "# How far the judge agrees with the labels",
        reading(results),
        _numbers(results),
        _confusion(rows, judge),
        *evidence_sections(next(m for m in results["models"] if m["name"] == judge)),
        _by_error(results, judge),
        _leaks(results),
        _worst(rows, judge),
        _origin(results),
    ]
    path = folder / "report.md"
    write_text_atomic(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _main_judge(results: dict[str, Any]) -> str:
    names = [str(model["name"]) for model in results["models"]]
    return "adapter" if "adapter" in names or not names else names[0]


def _numbers(results: dict[str, Any]) -> str:
    columns = columns_of(results)
    header = ["judge", *(NAMES[name] for name in columns), "parse failures", "n"]
    rows = []
    for judge in results["models"]:
        name, metrics, failures = inline(judge["name"]), judge["metrics"], judge["parse_failures"]
        if "constrained" in judge:
            likeliest = judge["constrained"]
            rows.append(_line(f"{name}, likeliest verdict", likeliest, columns, UNDEFINED))
        rows.append(_line(f"{name}, own answer", metrics, columns, str(failures)))
        strict = {column: metrics.get(f"{column}_strict") for column in columns}
        rows.append(_line(f"{name}, parse failures wrong", strict, columns, str(failures)))
    for rule in results.get("baselines") or []:
        name, verdict = inline(rule["name"]), rule.get("verdict")
        label = f"always {inline(verdict)} ({name})" if verdict is not None else name
        rows.append(_line(label, rule["metrics"], columns, UNDEFINED))
    if people := results.get("ceiling"):
        rows.append(_line("one person against the others", people["metrics"], columns, UNDEFINED))
    return f"## Numbers\n\n{table(header, rows)}\n\n{_legend(results)}"


def _line(name: str, metrics: dict[str, Any], columns: Sequence[str], failures: str) -> list[str]:
    n = next((metrics[column]["n"] for column in columns if metrics.get(column)), None)
    cells = []
    for column in columns:
        metric = metrics.get(column)
        other = f" (n = {metric['n']})" if metric and metric["n"] != n else ""
        cells.append(estimate(metric) + other)
    return [name, *cells, failures, UNDEFINED if n is None else str(n)]


def _legend(results: dict[str, Any]) -> str:
    lines = [
        "95 % intervals in brackets: bootstrap over groups, so that rows of one source count as "
        "one draw. *Likeliest verdict*: the most likely of the allowed verdicts, on every row. "
        "*Own answer*: the verdict the judge writes, without parse failures. "
        "*Parse failures wrong*: the same with each parse failure counted as the verdict "
        "farthest from the label (where verdicts have no order: as another, wrong one). "
        f"{UNDEFINED}: undefined or not computed."
    ]
    fitted = {one.get("fitted") for one in results.get("baselines") or []} - {None, ""}
    lines += [f"The rules are fitted on {inline(what)}." for what in sorted(fitted)]
    lines += [
        f"No {inline(name)} rule: {inline(reason)}."
        for name, reason in (results.get("missing_baselines") or {}).items()
    ]
    if "order_consistency" in columns_of(results):
        lines.append(
            "*Same in both orders*: pairs whose winner stays when the candidates change places. "
            "*First place*: share of verdicts, ties apart, for the candidate shown first, over "
            "both orders; 0.5 without a liking for a place."
        )
    for model in results["models"]:
        mass = model.get("verdict_mass")
        if isinstance(mass, dict):
            lines.append(
                f"Probability of all allowed verdicts together, {inline(model['name'])}: "
                f"{estimate(mass)} (n = {mass['n']})."
            )
        if model.get("unscored"):
            lines.append(f"{model['unscored']} rows did not fit the context and are in no number.")
        if model.get("shortened"):
            lines.append(f"{model['shortened']} rows were shortened to fit the context.")
        if model.get("ties"):
            lines.append(
                f"{inline(model['name'])}: in {model['ties']} rows two verdicts are equally likely "
                "to 1e-5, and rounding decides between them."
            )
        if change := model.get("precision_change"):
            lines.append(
                f"{inline(model['name'])}, scored in {inline(model['precision'])}: "
                f"{change['verdicts']} verdicts of {change['n']} rows are not those of float32, "
                f"and a probability is off by up to {change['probability']:.2g}."
            )
    return "\n\n".join(dict.fromkeys(lines))


def _confusion(rows: Sequence[Row], judge: str) -> str:
    title = f"## Labels and verdicts\n\nOwn answers of the {inline(judge)}, rows by label: "
    counts = Counter((row["label"], row["verdict"]) for row in rows)
    values = sorted(
        {value for pair in counts for value in pair if value is not None},
        key=lambda value: (isinstance(value, str), value),
    )
    if not counts:
        return ""
    if len(values) > WIDEST_MATRIX:
        return f"{title}left out, since {len(values)} different values occur."
    columns = [*values, None] if any(verdict is None for _, verdict in counts) else values
    header = ["label", *("parse failure" if v is None else inline(v) for v in columns), "n"]
    body = []
    for label in values:
        line = [counts[label, verdict] for verdict in columns]
        if sum(line):
            body.append([f"**{inline(label)}**", *(str(c or "") for c in line), str(sum(line))])
    return f"{title}n = {len(rows)}.\n\n{table(header, body)}"


def _by_error(results: dict[str, Any], judge: str) -> str:
    kinds = next((m.get("by_error") for m in results["models"] if m["name"] == judge), None)
    if not kinds:
        return ""
    what = "mean distance to the label" if results["task"] == "score" else "accuracy"
    body = [[inline(kind), estimate(one), str(one["n"])] for kind, one in kinds.items()]
    note = "A row with several errors counts at each of them; *none* has no known error."
    return (
        f"## By kind of error in the candidate\n\nLikeliest verdict of the {inline(judge)}. "
        f"{note}\n\n{table(['kind', what, 'n'], body)}"
    )


def _leaks(results: dict[str, Any]) -> str:
    leaks = results.get("leaks") or {}
    lines = [f"- {inline(line)}" for line in leaks.get("examples", ())]
    more = leaks.get("n", 0) - len(lines)
    lines += [f"- and {more} more"] if more > 0 else []
    return "## Leaks\n\n" + "\n".join(lines) if lines else ""


def _worst(rows: Sequence[Row], judge: str) -> str:
    wrong = [row for row in rows if _said(row) not in (None, row["label"])]
    wrong.sort(key=lambda row: (*_distance(row), str(row.get("id"))))
    title = f"## Worst disagreements of the {inline(judge)}"
    if not wrong:
        return f"{title}\n\nNone: the verdict equals the label in all rows that have one."
    shown = wrong[:WORST]
    lead = f"{len(shown)} of the {len(wrong)} rows whose verdict is not the label"
    lead += f" (of {len(rows)}), farthest first."
    return "\n\n".join([title, lead, *(_disagreement(row) for row in shown)])


def _said(row: Row) -> Any:
    """The likeliest verdict, or the judge's own where none is known; None for a parse failure."""
    return row["verdict"] if row["constrained"] is None else row["constrained"]


def _distance(row: Row) -> tuple[float, float]:
    """Sort key: far before near, then confident before hesitant."""
    label, verdict = row["label"], _said(row)
    numeric = not isinstance(label, str) and not isinstance(verdict, str)
    confidence = max(row.get("probabilities") or [0.0])
    return (-abs(verdict - label) if numeric else 0.0), -confidence


def _disagreement(row: Row) -> str:
    own = "parse failure" if row["verdict"] is None else row["verdict"]
    head = f"**{inline(row.get('id'))}**: label {inline(row['label'])}"
    if row["constrained"] is not None:
        head += f", likeliest verdict {inline(row['constrained'])}"
    head += f", own answer {inline(own)}"
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
    shown = [(name, str(text)) for name, text in texts.items() if text is not None]
    return f"{head}\n\n{fenced(shown)}" if shown else head


def _origin(results: dict[str, Any]) -> str:
    data = results["data"]
    facts: list[tuple[str, Any]] = [
        ("task", results["task"]),
        ("scale", results["scale"]),
        ("data", data.get("path")),
        ("data sha256", data.get("sha256")),
        *((m["name"], [m.get("id"), m.get("precision")]) for m in results["models"]),
        *(results.get("run") or {}).items(),
    ]
    lines = [f"- {inline(name)}: {inline(_plain(value))}" for name, value in facts if value]
    return "## How this was made\n\n" + "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " ".join(_plain(one) for one in value if one is not None)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
