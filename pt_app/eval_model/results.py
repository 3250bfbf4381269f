"""The numbers of an evaluation, made from its prediction rows alone: results.json.

The rows are those of predictions.jsonl, so that evaluations of several folds are joined by their
rows and computed anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pt_app.eval_model.metrics import rouge_l
from pt_app.eval_model.orders import consistency, first_preference
from pt_app.eval_model.verdicts import Scale, Verdict
from pt_app.evidence.comparison import compare, holm
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import mean_metric, rule_baseline, summarise

Row = Mapping[str, Any]


@dataclass(frozen=True)
class JudgeRows:
    """One judge's prediction rows on the test rows, in their order."""

    name: str
    id: str
    rows: Sequence[Row]
    shortened: int = 0
    ties: int = 0
    precision: str = "float32"
    change: Mapping[str, Any] | None = None


def results_of(
    judges: Sequence[JudgeRows],
    scale: Scale,
    data: Mapping[str, Any],
    majority: Sequence[Verdict],
    leaks: Sequence[str],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Compute results.json (docs/RESULTS_JSON.md) of judges on the same rows.

    `majority` is, for each row, the commonest label of the training rows of its judge; `leaks` say
    what stood on both sides of the split.
    """
    count = len(judges[0].rows)
    # A row that fits no judge's context is left out of all numbers alike, and counted.
    fits = [i for i in range(count) if all(j.rows[i]["status"] != "too_long" for j in judges)]
    judges = [replace(judge, rows=[judge.rows[i] for i in fits]) for judge in judges]
    rows = judges[0].rows
    labels, groups = [row["label"] for row in rows], [row["group"] for row in rows]
    sample = Resampler(groups)
    readings = [[row["constrained"] for row in judge.rows] for judge in judges]
    return {
        "schema": 1,
        "leaks": {"n": len(leaks), "examples": list(leaks[:5])},
        "task": scale.task,
        "data": {**data, "n": len(rows), "groups": len(set(groups))},
        "scale": scale.name,
        "models": [
            {
                "id": judge.id,
                "name": judge.name,
                "precision": judge.precision,
                "precision_change": judge.change,
                "ties": judge.ties,
                **_numbers(judge.rows, sample, scale),
                "unscored": count - len(rows),
                "shortened": judge.shortened,
            }
            for judge in judges
        ],
        "baselines": [rule_baseline([majority[i] for i in fits], labels, sample, scale)],
        "ceiling": None,
        "comparisons": _holm_corrected(
            compare(labels, readings[0], other, sample, scale, names=(judges[0].name, judge.name))
            for judge, other in zip(judges[1:], readings[1:], strict=True)
        ),
        "run": dict(run),
    }


def _holm_corrected(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = list(comparisons)
    adjusted = holm([one["p"] for one in found])
    return [one | {"p_holm": p} for one, p in zip(found, adjusted, strict=True)]


def _numbers(rows: Sequence[Row], sample: Resampler, scale: Scale) -> dict[str, Any]:
    answered = any(row["raw"] is not None for row in rows)
    rouge = [
        rouge_l(row["label_feedback"], row["feedback"] or "") if row["label_feedback"] else None
        for row in rows
    ]
    summary = summarise(
        [row["label"] for row in rows],
        [row["verdict"] for row in rows],
        [row["constrained"] for row in rows],
        sample,
        scale,
        rouge=rouge if answered else None,
        errors=[row["errors"] or [] for row in rows]
        if any(row["errors"] for row in rows)
        else None,
    )
    if any("swapped" in row for row in rows):
        _add_orders(summary, rows, sample)
    mass = mean_metric([row["verdict_mass"] for row in rows], sample)
    return summary | {"verdict_mass": mass}


def _add_orders(summary: dict[str, Any], rows: Sequence[Row], sample: Resampler) -> None:
    """Add how far the verdicts of both orders agree, and how often the first place wins."""
    both = {
        name: ([row[name] for row in rows], [row.get(other) for row in rows])
        for name, other in (("verdict", "swapped"), ("constrained", "swapped_constrained"))
    }
    for part, name in (("metrics", "verdict"), ("constrained", "constrained")):
        same = consistency(*both[name])
        summary[part]["order_consistency"] = mean_metric(same, sample)
        summary[part]["first_preference"] = mean_metric(first_preference(*both[name]), sample)
    # A row that was not judged in the other order stays out; a parse failure in either is a miss.
    strict = [
        float(bool(one)) if "swapped" in row else None
        for row, one in zip(rows, consistency(*both["verdict"]), strict=True)
    ]
    summary["metrics"]["order_consistency_strict"] = mean_metric(strict, sample)
