"""Adapters trained on the folds of one dataset: their evaluations joined, every row once."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.results import (
    PREDICTIONS,
    RESULTS,
    JsonObject,
    Prediction,
    Results,
    read_predictions,
    read_results,
)
from pt_app.core.verdicts import Scale
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.results import WRITTEN, JudgeRows, results_of, write_evaluation
from pt_app.report import write_report


def join_evaluations(adapters: Sequence[Path], out: Path) -> Path:
    """Join the evaluations of adapters, one per fold, into `out`; return the report's path.

    The numbers are recomputed over all rows, each judged by the adapter that did not see it; the
    baselines' verdicts are each fold's own.

    Raises:
        UserError: for an adapter that was not evaluated, evaluations of different tasks or bases,
            and a row that is in two of them.
    """
    if len(adapters) < 2:
        raise UserError("one adapter is no set of folds: name the adapters of all folds")
    folders = [Path(adapter) / "evaluation" for adapter in adapters]
    read = [folder / name for folder in folders for name in (RESULTS, PREDICTIONS)]
    refuse_overwrite([out / name for name in WRITTEN], read)
    results = [read_results(folder) for folder in folders]
    rows = [row for folder in folders for row in read_predictions(folder)]
    _check_same(results, adapters)
    first = results[0]
    judges = [_joined(model.name, results, rows) for model in first.models]
    _check_once(judges[0], adapters)
    examples = [line for one in results for line in one.leaks.examples]
    hashes = json.dumps([one.data.sha256 for one in results], sort_keys=True)
    data: JsonObject = {
        "path": f"{first.data.path} and {len(adapters) - 1} more folds",
        "sha256": sha256(hashes.encode()).hexdigest(),
    }
    run = first.run | {"folds": [Path(adapter).name for adapter in adapters]}
    scale, fitted = Scale.from_name(first.scale), _baselines(judges[0], first)
    joined = results_of(judges, scale, data, fitted, examples, run)
    joined.leaks.n = sum(one.leaks.n for one in results)
    write_evaluation(out, judges, joined)
    return write_report(out)


def _joined(name: str, results: Sequence[Results], predictions: Sequence[Prediction]) -> JudgeRows:
    rows = [row for row in predictions if row.model == name]
    models = [model for one in results for model in one.models if model.name == name]
    shortened, ties = sum(m.shortened for m in models), sum(m.ties for m in models)
    ids = ", ".join(dict.fromkeys(model.id for model in models))
    precisions = ", ".join(dict.fromkeys(model.precision or "" for model in models))
    return JudgeRows(name, ids, rows, shortened, ties, precisions)


def _baselines(judge: JudgeRows, first: Results) -> list[Baseline]:
    """Return the baselines that every fold has, each fitted on its own fold's training rows."""
    verdicts = [row.rules or {} for row in judge.rows]
    fitted = {one.name: one.fitted or "" for one in first.baselines}
    return [
        Baseline(name, [of_row[name] for of_row in verdicts], fitted.get(name))
        for name in verdicts[0]
        if all(name in of_row for of_row in verdicts)
    ]


def _check_same(results: Sequence[Results], adapters: Sequence[Path]) -> None:
    def made(one: Results) -> JsonObject:
        return {
            "task": one.task,
            "scale": one.scale,
            "base": one.run.get("base"),
            "judges": [model.name for model in one.models],
        }

    for adapter, one in zip(adapters[1:], results[1:], strict=True):
        ours, theirs = made(results[0]), made(one)
        differing = [what for what, value in ours.items() if value != theirs[what]]
        if differing:
            raise UserError(
                f"{adapter} has another {differing[0]} than {adapters[0]}: join adapters of one "
                "training"
            )


def _check_once(judge: JudgeRows, adapters: Sequence[Path]) -> None:
    seen: set[str] = set()
    for row in judge.rows:
        if row.id in seen:
            raise UserError(
                f'row "{row.id}" is in the test part of two of the {len(adapters)} adapters: '
                "join adapters of the folds that one `judge data split --folds` wrote"
            )
        seen.add(row.id)
