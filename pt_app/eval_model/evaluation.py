"""Scores a test set with the base and with the adapter, on the CPU, and writes what came out.

`predictions.jsonl` keeps every row with its raw answer, `results.json` the numbers; the report is
made from these two alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pt_app.eval_model import adapters, models
from pt_app.eval_model.data import JudgeData, JudgeExample
from pt_app.eval_model.metrics import rouge_l
from pt_app.eval_model.prompts import PromptEncoder
from pt_app.eval_model.scoring import JudgeScorer, Scored
from pt_app.eval_model.verdicts import Scale, Verdict, read_comments
from pt_app.evidence.summary import compare, majority_baseline, mean_metric, summarise
from pt_app.files import write_json_atomic, write_text_atomic

PREDICTIONS, RESULTS = "predictions.jsonl", "results.json"


@dataclass(frozen=True)
class Judged:
    """One judge's verdicts on the test rows, in their order."""

    name: str
    scored: Sequence[Scored]
    shortened: int


def evaluate(
    source: models.ModelSource,
    adapter: Path,
    data: JudgeData,
    test: Sequence[JudgeExample],
    encoder: PromptEncoder,
    run: dict[str, Any],
) -> dict[str, Any]:
    """Score `test` with the base and with the adapter; write `adapter`/evaluation; give results.

    The base is loaded anew from disk in float32, and scored before the adapter is put on it.
    `run` (command, seed, versions) is written into the results as it is.
    """
    identity = models.model_identity(source)
    model = models.load_model(source)
    base = _judged("base", model, encoder, test)
    model = adapters.load_adapter(adapter, model, identity)
    judges = [_judged("adapter", model, encoder, test), base]
    folder = adapter / "evaluation"
    rows = [row for judge in judges for row in _predictions(judge, test)]
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text_atomic(folder / PREDICTIONS, "".join(lines))
    ids = {"adapter": adapter.name, "base": source.name}
    results = _results(judges, data, test, encoder.scale, ids, run | {"base": identity})
    write_json_atomic(folder / RESULTS, results)
    return results


def _judged(name: str, model: Any, encoder: PromptEncoder, test: Sequence[JudgeExample]) -> Judged:
    scorer = JudgeScorer(model, encoder, name=name)
    return Judged(name, scorer.score(test), scorer.shortened)


def _predictions(judge: Judged, test: Sequence[JudgeExample]) -> list[dict[str, Any]]:
    return [
        {
            "model": judge.name,
            "id": example.id,
            "group": example.group,
            "label": _label(example),
            "verdict": scored.verdict,
            "constrained": scored.constrained,
            "probabilities": scored.probabilities,
            "verdict_mass": scored.verdict_mass,
            "expected": scored.expected,
            "status": scored.status,
            "raw": scored.raw,
            "feedback": _feedback(scored),
            "label_feedback": example.label.feedback if example.label else None,
            "source": example.source,
            "reference": example.reference,
            "candidate": example.candidate,
            "errors": example.errors,
            **_if_present(example),
        }
        for example, scored in zip(test, judge.scored, strict=True)
    ]


def _if_present(example: JudgeExample) -> dict[str, Any]:
    """The texts that few rows have; of a chat row the prompt, which holds all that was judged."""
    names = {"prompt", "conversation", "context", "candidates"}
    return example.model_dump(include=names, exclude_none=True)


def _label(example: JudgeExample) -> Verdict:
    assert example.label is not None, "a test row without a label passed read_dataset"
    return example.label.verdict


def _feedback(scored: Scored) -> str | None:
    if scored.raw is None:
        return None
    return read_comments(scored.raw.partition("\n")[2])[1]


def _results(
    judges: Sequence[Judged],
    data: JudgeData,
    test: Sequence[JudgeExample],
    scale: Scale,
    ids: dict[str, str],
    run: dict[str, Any],
) -> dict[str, Any]:
    # A row that fits no judge's context is left out of all numbers alike, and counted.
    fits = [i for i in range(len(test)) if all(j.scored[i].status != "too_long" for j in judges)]
    rows = [test[i] for i in fits]
    judges = [replace(judge, scored=[judge.scored[i] for i in fits]) for judge in judges]
    labels, groups = [_label(row) for row in rows], [row.group for row in rows]
    adapter, base = ([_likeliest(score) for score in judge.scored] for judge in judges)
    models = [
        {
            "id": ids[judge.name],
            "name": judge.name,
            "precision": "float32",
            **_numbers(judge, rows, scale),
            "unscored": len(test) - len(rows),
            "shortened": judge.shortened,
        }
        for judge in judges
    ]
    train_labels = [_label(example) for example in data.train]
    return {
        "schema": 1,
        "task": data.card.task,
        "data": {
            "path": data.path.name,
            "n": len(rows),
            "groups": len(set(groups)),
            "sha256": data.sha256,
        },
        "scale": scale.name,
        "models": models,
        "baselines": [majority_baseline(train_labels, labels, groups, scale)],
        "ceiling": None,
        "comparisons": [compare(labels, adapter, base, groups, scale)],
        "run": run,
    }


def _likeliest(score: Scored) -> Verdict:
    assert score.constrained is not None, "only a row that is too long has no verdict at all"
    return score.constrained


def _numbers(judge: Judged, rows: Sequence[JudgeExample], scale: Scale) -> dict[str, Any]:
    groups = [row.group for row in rows]
    rouge = [
        rouge_l(row.label.feedback, _feedback(score) or "")
        if row.label and row.label.feedback
        else None
        for row, score in zip(rows, judge.scored, strict=True)
    ]
    summary = summarise(
        [_label(row) for row in rows],
        [score.verdict for score in judge.scored],
        [_likeliest(score) for score in judge.scored],
        groups,
        scale,
        rouge=rouge,
        errors=[row.errors or [] for row in rows] if any(row.errors for row in rows) else None,
    )
    mass = mean_metric([score.verdict_mass for score in judge.scored], groups)
    return summary | {"verdict_mass": mass}
