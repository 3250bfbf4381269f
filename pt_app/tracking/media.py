"""What a dashboard shows of an evaluation: tables of numbers and charts, without rows' texts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pt_app.tracking.weave_rows import Json, read_lines, verdict_of

NUMBER = ("value", "low", "high", "n")


def media(results: Json, predictions: Path, charts: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Make W&B tables and charts, by name.

    Args:
        results: the content of results.json.
        predictions: the file predictions.jsonl of the same evaluation.
        charts: name and SVG of each chart.
    """
    import wandb

    model = results["models"][0]
    comparisons = results.get("comparisons") or ()
    checks = [{**check, "check": name} for name, check in (model.get("checks") or {}).items()]
    bins = [
        {**row["right"], "confidence": row["confidence"], "right": row["right"]["value"]}
        for row in (model.get("calibration") or {}).get("reliability", ())
    ]
    curve = (model.get("selective") or {}).get("curve", ())
    tables: dict[str, tuple[Iterable[Json], list[str]]] = {
        "agreement": (_agreement(results), ["judge", "reading", "number", *NUMBER]),
        "comparisons": (comparisons, ["a", "b", "metric", *NUMBER, "p", "p_holm"]),
        "checks": (checks, ["check", *NUMBER, "p_holm", "alarm"]),
        "reliability": (bins, ["confidence", "right", "low", "high", "n"]),
        "risk_coverage": (curve, ["coverage", "risk"]),
        "confusion": (_confusion(predictions, model["name"]), ["label", "verdict", "rows"]),
    }
    logged: dict[str, object] = {}
    for name, (rows, columns) in tables.items():
        data = [[row.get(column) for column in columns] for row in rows]
        if data:
            logged[f"evaluation/{name}"] = wandb.Table(columns=columns, data=data)
    return logged | {f"charts/{name}": wandb.Html(svg, inject=False) for name, svg in charts}


def _agreement(results: Json) -> Iterator[Json]:
    """List the metrics of the judges, the baselines and the annotators (the ceiling)."""
    judges = [*results["models"], *(results.get("baselines") or [])]
    if ceiling := results.get("ceiling"):
        judges.append(ceiling)
    for judge in judges:
        for reading in ("metrics", "constrained"):
            for name, number in (judge.get(reading) or {}).items():
                yield {**number, "judge": str(judge["name"]), "reading": reading, "number": name}


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
