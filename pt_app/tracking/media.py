"""What a dashboard shows of an evaluation: tables of numbers and charts, without rows' texts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pt_app.core.results import Ceiling, Results
from pt_app.tracking.weave_rows import Json, read_lines, verdict_of

NUMBER = "value low high n"


def media(
    results: Results, predictions: Path, charts: Iterable[tuple[str, str]]
) -> dict[str, object]:
    """Make W&B tables and charts, by name.

    Args:
        results: the content of results.json.
        predictions: the file predictions.jsonl of the same evaluation.
        charts: name and SVG of each chart.
    """
    import wandb

    model = results.models[0]
    bins = model.calibration.reliability if model.calibration else ()
    curve = model.selective.curve if model.selective else ()
    tables: dict[str, tuple[str, Iterable[Json]]] = {
        "agreement": (f"judge reading number {NUMBER}", _agreement(results)),
        "comparisons": (
            f"a b metric {NUMBER} p p_holm",
            (comparison.as_json() for comparison in results.comparisons),
        ),
        "checks": (
            f"check {NUMBER} p_holm alarm",
            (check.as_json() | {"check": name} for name, check in model.checks.items()),
        ),
        "reliability": (
            "confidence right low high n",
            (row.as_json() | row.right.as_json() | {"right": row.right.value} for row in bins),
        ),
        "risk_coverage": ("coverage risk", (point.as_json() for point in curve)),
        "confusion": ("label verdict rows", _confusion(predictions, model.name)),
    }
    logged: dict[str, object] = {}
    for name, (columns, rows) in tables.items():
        data = [[row.get(column) for column in columns.split()] for row in rows]
        if data:
            logged[f"evaluation/{name}"] = wandb.Table(columns=columns.split(), data=data)
    return logged | {f"charts/{name}": wandb.Html(svg, inject=False) for name, svg in charts}


def _agreement(results: Results) -> Iterator[Json]:
    """List the metrics of the judges, the baselines and the annotators (the ceiling)."""
    for judge in (*results.models, *results.baselines, results.ceiling or Ceiling()):
        for reading in ("metrics", "greedy"):
            for name, number in (getattr(judge, reading) or {}).items():
                about = {"judge": judge.name, "reading": reading, "number": name}
                yield number.as_json() | about


def _confusion(predictions: Path, judge: str) -> Iterator[Json]:
    """Count how often each verdict met each label; as texts, since a column has one type."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in read_lines(predictions):
        if row["model"] == judge and row.get("status") != "too_long":
            verdict = verdict_of(row["verdict"])
            text = "parse failure" if verdict is None else str(verdict)
            counts[str(verdict_of(row["label"])), text] += 1
    for (label, verdict), count in sorted(counts.items()):
        yield {"label": label, "verdict": verdict, "rows": count}
