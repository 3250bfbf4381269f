"""Scores a test set with the base and with the adapter, on the CPU, and writes what came out.

`predictions.jsonl` keeps every row with its raw answer, `results.json` the numbers; the report is
made from these two alone.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    scale, identity = encoder.scale, models.model_identity(source)
    model = models.load_model(source)
    judges = [Judged("base", JudgeScorer(model, encoder, scale, name="base").score(test))]
    model = adapters.load_adapter(adapter, model, identity)
    judges.insert(
        0, Judged("adapter", JudgeScorer(model, encoder, scale, name="adapter").score(test))
    )
    del model
    gc.collect()
    folder = adapter / "evaluation"
    rows = [row for judge in judges for row in _predictions(judge, test)]
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text_atomic(folder / PREDICTIONS, "".join(lines))
    results = _results(judges, data, test, scale, adapter.name, identity, run)
    write_json_atomic(folder / RESULTS, results)
    return results


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
        }
        for example, scored in zip(test, judge.scored, strict=True)
    ]


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
    adapter_id: str,
    identity: dict[str, Any],
    run: dict[str, Any],
) -> dict[str, Any]:
    # A row that fits no judge's context is left out of all numbers alike, and counted.
    seen = [i for i in range(len(test)) if all(j.scored[i].status != "too_long" for j in judges)]
    labels = [_label(test[i]) for i in seen]
    groups = [test[i].group for i in seen]
    train_labels = [_label(example) for example in data.train]
    constrained = {j.name: [j.scored[i].constrained for i in seen] for j in judges}
    return {
        "schema": 1,
        "task": data.card.task,
        "data": {
            "path": data.path.name,
            "n": len(seen),
            "groups": len(set(groups)),
            "sha256": data.sha256,
        },
        "scale": scale.name,
        "models": [
            {
                "id": adapter_id if judge.name == "adapter" else identity["name"],
                "name": judge.name,
                "precision": "float32",
                **_numbers(judge, [test[i] for i in seen], seen, labels, groups, scale),
                "unscored": len(test) - len(seen),
            }
            for judge in judges
        ],
        "baselines": [majority_baseline(train_labels, labels, groups, scale)],
        "ceiling": None,
        "comparisons": [
            compare(labels, constrained["adapter"], constrained["base"], groups, scale)
        ],
        "run": run | {"base": identity},
    }


def _numbers(
    judge: Judged,
    examples: Sequence[JudgeExample],
    seen: Sequence[int],
    labels: Sequence[Verdict],
    groups: Sequence[str],
    scale: Scale,
) -> dict[str, Any]:
    scored = [judge.scored[i] for i in seen]
    errors = [example.errors for example in examples]
    rouge = [
        rouge_l(example.label.feedback, _feedback(score) or "")
        if example.label and example.label.feedback
        else None
        for example, score in zip(examples, scored, strict=True)
    ]
    summary = summarise(
        labels,
        [score.verdict for score in scored],
        [score.constrained for score in scored],
        groups,
        scale,
        rouge=rouge,
        errors=[kinds or [] for kinds in errors] if any(errors) else None,
    )
    mass = mean_metric([score.verdict_mass for score in scored], groups)
    return summary | {"verdict_mass": mass}
