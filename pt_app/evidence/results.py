"""results.json: the whole evidence about some judges, from their prediction rows alone.

The rows are those of predictions.jsonl, so that evaluations of several folds are joined by their
rows and computed anew, and anybody's verdicts can take the place of an adapter's.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pt_app.core.files import write_json_atomic, write_text_atomic
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.ceiling import ceiling
from pt_app.evidence.comparison import compare, holm
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.judge_numbers import Asked, judge_numbers
from pt_app.evidence.people import RatedRow, agreement_among
from pt_app.evidence.summary import rule_baseline

PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"
WRITTEN = (PREDICTIONS, RESULTS, "report.html", "report.md")  # the files of an evaluation
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
    fitted: Fitted | None = None


@dataclass(frozen=True)
class Rules:
    """Verdicts of simple rules on the test rows, by name; what they were fitted on; what lacks."""

    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    fitted: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(found: Iterable[Baseline]) -> "Rules":
        """From the rules of `baselines`."""
        known = list(found)
        return Rules(
            {one.name: one.verdicts for one in known if not one.missing},
            {one.name: one.fitted for one in known if one.fitted},
            {one.name: one.missing for one in known if one.missing},
        )


def results_of(
    judges: Sequence[JudgeRows],
    scale: Scale,
    data: Mapping[str, Any],
    rules: Rules,
    leaks: Sequence[str],
    run: Mapping[str, Any],
    asked: Asked | None = None,
) -> dict[str, Any]:
    """Compute results.json (docs/RESULTS_JSON.md) of judges on the same rows.

    The first judge is the one that is compared with the others and with the rules. `leaks` say what
    stood on both sides of the split.
    """
    count = len(judges[0].rows)
    # A row that fits no judge's context is left out of all numbers alike, and counted.
    fits = [i for i in range(count) if all(j.rows[i]["status"] != "too_long" for j in judges)]
    judges = [replace(judge, rows=[judge.rows[i] for i in fits]) for judge in judges]
    said = {name: [verdicts[i] for i in fits] for name, verdicts in rules.verdicts.items()}
    rows = judges[0].rows
    labels, groups = [row["label"] for row in rows], [row["group"] for row in rows]
    sample = Resampler(groups)
    annotators = [[one["verdict"] for one in row.get("annotators") or ()] for row in rows]
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
                **judge_numbers(judge.rows, sample, scale, asked or Asked(), judge.fitted),
                "unscored": count - len(rows),
                "shortened": judge.shortened,
            }
            for judge in tqdm(judges, desc="evidence", disable=None)
        ],
        "baselines": [
            rule_baseline(verdicts, labels, sample, scale, name)
            | {"fitted": rules.fitted.get(name)}
            for name, verdicts in said.items()
        ],
        "missing_baselines": dict(rules.missing),
        "ceiling": ceiling(annotators, groups, scale),
        "people": agreement_among([_rated(row) for row in rows], scale),
        "comparisons": _holm_corrected(_comparisons(judges, said, labels, sample, scale)),
        "run": dict(run),
    }


def _rated(row: Row) -> RatedRow:
    said = [(str(one["rater"]), one["verdict"]) for one in row.get("annotators") or ()]
    return RatedRow(row["group"], said)


def _comparisons(
    judges: Sequence[JudgeRows],
    rules: Mapping[str, Sequence[Verdict]],
    labels: Sequence[Verdict],
    sample: Resampler,
    scale: Scale,
) -> Iterator[dict[str, Any]]:
    """The first judge against each other one, then against each rule."""
    first = judges[0]
    for other in judges[1:]:
        reading = _reading(first, other)
        a, b = ([row[reading] for row in judge.rows] for judge in (first, other))
        yield compare(labels, a, b, sample, scale, (first.name, other.name), reading)
    reading = _reading(first)
    own = [row[reading] for row in first.rows]
    for name, verdicts in rules.items():
        yield compare(labels, own, verdicts, sample, scale, (first.name, name), reading)


def _reading(*judges: JudgeRows) -> str:
    """The likeliest verdicts where all rows have one, else the judges' own."""
    likeliest = all(row["constrained"] is not None for judge in judges for row in judge.rows)
    return "constrained" if likeliest else "verdict"


def _holm_corrected(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = list(comparisons)
    adjusted = holm([one["p"] for one in found])
    return [one | {"p_holm": p} for one, p in zip(found, adjusted, strict=True)]


def with_rules(judge: JudgeRows, rules: Rules) -> JudgeRows:
    """The judge's rows with each simple rule's verdict, from which folds can be joined."""
    rows = [
        {**row, "rules": {name: said[i] for name, said in rules.verdicts.items()}}
        for i, row in enumerate(judge.rows)
    ]
    return replace(judge, rows=rows)


def write_evaluation(folder: Path, judges: Sequence[JudgeRows], results: dict[str, Any]) -> None:
    """Write every judge's rows, one JSON object a line, and then the results."""
    lines = (
        json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        for judge in judges
        for row in judge.rows
    )
    write_text_atomic(folder / PREDICTIONS, "".join(lines))
    write_json_atomic(folder / RESULTS, results)
