"""What a dashboard shows of an evaluation: tables of numbers and charts, without rows' texts."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pt_app.tracking.weave_rows import verdict_of

NUMBER = ("value", "low", "high", "n")


def media(
    results: Mapping[str, Any], predictions: Path, charts: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """Return W&B tables (agreement, checks, calibration, risk, confusion) and charts by name.

    Args:
        results: the content of results.json.
        predictions: the file predictions.jsonl of the same evaluation.
        charts: name and SVG of each chart.
    """
    import wandb

    first = results["models"][0]
    tables = {
        "agreement": (["judge", "reading", "number", *NUMBER], list(_agreement(results))),
        "comparisons": (
            ["a", "b", "metric", *NUMBER, "p", "p_holm"],
            [
                [one[name] for name in ("a", "b", "metric", *NUMBER, "p", "p_holm")]
                for one in results.get("comparisons") or []
            ],
        ),
        "checks": (
            ["check", *NUMBER, "p_holm", "alarm"],
            [
                [name, *(one.get(key) for key in (*NUMBER, "p_holm", "alarm"))]
                for name, one in (first.get("checks") or {}).items()
            ],
        ),
        "reliability": (
            ["confidence", "right", "low", "high", "n"],
            [
                [one["confidence"], *(one["right"][name] for name in NUMBER)]
                for one in (first.get("calibration") or {}).get("reliability", ())
            ],
        ),
        "risk_coverage": (
            ["coverage", "risk"],
            [
                [one["coverage"], one["risk"]]
                for one in (first.get("selective") or {}).get("curve", ())
            ],
        ),
        "confusion": (["label", "verdict", "rows"], list(_confusion(predictions, first["name"]))),
    }
    found: dict[str, Any] = {
        f"evaluation/{name}": wandb.Table(columns=columns, data=rows)
        for name, (columns, rows) in tables.items()
        if rows
    }
    for name, svg in charts:
        found[f"charts/{name}"] = wandb.Html(svg, inject=False)
    return found


def _agreement(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    entries = [*results["models"], *(results.get("baselines") or [])]
    if results.get("ceiling"):
        entries.append(results["ceiling"])
    for entry in entries:
        for reading in ("metrics", "constrained"):
            for name, one in (entry.get(reading) or {}).items():
                yield [str(entry["name"]), reading, name, *(one[key] for key in NUMBER)]


def _confusion(predictions: Path, judge: str) -> Iterator[list[Any]]:
    """How often each verdict met each label; texts, since a table's column has one type."""
    counts: Counter[tuple[str, str]] = Counter()
    with open(predictions, encoding="utf-8") as lines:
        for row in (json.loads(line) for line in lines if line.strip()):
            if row["model"] == judge and row.get("status") != "too_long":
                verdict = verdict_of(row["verdict"])
                said = "parse failure" if verdict is None else str(verdict)
                counts[str(verdict_of(row["label"])), said] += 1
    for (label, verdict), count in sorted(counts.items()):
        yield [label, verdict, count]
