"""Adapters trained on the folds of one dataset: their evaluations joined, every row once."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic
from pt_app.core.results import (
    PREDICTIONS,
    RESULTS,
    Cost,
    JsonObject,
    PrecisionChange,
    Prediction,
    Results,
    read_predictions,
    read_results,
)
from pt_app.core.verdicts import Scale
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.overview import overview
from pt_app.evidence.results import WRITTEN, JudgeRows, results_of, write_evaluation
from pt_app.report import write_report

T = TypeVar("T")


def join_evaluations(adapters: Sequence[Path], out: Path) -> Path:
    """Join the evaluations of adapters, one per fold, into `out`; return the report's path.

    Of several questions each is joined, into the folder of its name. The numbers are recomputed
    over all rows, each judged by the adapter that did not see it; the baselines' verdicts are each
    fold's own.

    Raises:
        UserError: for an adapter that was not evaluated, evaluations of different tasks or bases,
            and a row that is in two of them.
    """
    if len(adapters) < 2:
        raise UserError("one adapter is no set of folds: name the adapters of all folds")
    folders = [Path(adapter) / "evaluation" for adapter in adapters]
    read = [folder / name for folder in folders for name in (RESULTS, PREDICTIONS)]
    refuse_overwrite([out / name for name in WRITTEN], read)
    first, *others = (read_results(folder) for folder in folders)
    if not first.questions:
        _join(folders, adapters, out)
        return write_report(out)
    if any(other.questions.keys() != first.questions.keys() for other in others):
        raise UserError("the adapters answer other questions: join adapters of one training")
    of_each = {}
    for name in first.questions:
        # A fold may have no test row with a label for a question.
        having = [place for place, own in enumerate(folders) if (own / name / RESULTS).exists()]
        if having:
            own = [folders[place] / name for place in having]
            of_each[name] = _join(own, [adapters[place] for place in having], out / name)
    if not of_each:
        raise UserError("no fold has results of a question: evaluate them again")
    asked = {name: (own.type, own.scale) for name, own in first.questions.items()}
    data = next(iter(of_each.values())).data.model_dump(include={"path", "sha256"})
    leaks = [line for fold in (first, *others) for line in fold.leaks.examples]
    joined = overview(asked, of_each, data, leaks, next(iter(of_each.values())).run)
    joined.leaks.n = sum(fold.leaks.n for fold in (first, *others))
    write_json_atomic(out / RESULTS, joined.as_json())
    return write_report(out)


def _join(folders: Sequence[Path], adapters: Sequence[Path], out: Path) -> Results:
    """Join evaluations of one scale into `out`, and return the results."""
    results = [read_results(folder) for folder in folders]
    rows = [row for folder in folders for row in read_predictions(folder)]
    _check_same(results, adapters)
    first = results[0]
    judges = [_joined(model.name, results, rows) for model in first.models]
    row_id, count = Counter(row.id for row in judges[0].rows).most_common(1)[0]
    if count > 1:
        raise UserError(
            f'row "{row_id}" is in the test part of two of the {len(adapters)} adapters: join '
            "adapters of the folds that one `judge data split --folds` wrote"
        )
    hashes = json.dumps([result.data.sha256 for result in results], sort_keys=True)
    asked = first.data.model_dump(include={"question", "asked"}, exclude_unset=True)
    data: JsonObject = asked | {
        "path": f"{first.data.path} and {len(adapters) - 1} more folds",
        "sha256": sha256(hashes.encode()).hexdigest(),
    }
    run = first.run | {"folds": [Path(adapter).name for adapter in adapters]}
    leaks = [line for result in results for line in result.leaks.examples]
    baselines = _baselines(judges[0], results)
    joined = results_of(judges, Scale.from_name(first.scale), data, baselines, leaks, run)
    joined.leaks.n = sum(result.leaks.n for result in results)
    write_evaluation(out, judges, joined)
    return joined


def _joined(name: str, results: Sequence[Results], predictions: Sequence[Prediction]) -> JudgeRows:
    """Return the rows of one judge over all folds."""
    rows = [row for row in predictions if row.model == name]
    models = [model for result in results for model in result.models if model.name == name]
    shortened, ties = sum(m.shortened for m in models), sum(m.ties for m in models)
    ids = ", ".join(dict.fromkeys(model.id for model in models))
    precisions = ", ".join(dict.fromkeys(model.precision or "" for model in models))
    first = models[0]
    return JudgeRows(
        name,
        ids,
        rows,
        shortened,
        ties,
        precisions,
        change=_over_all([model.precision_change for model in models]),
        grid=first.grid,
        rule=first.verdict_rule,
        order=first.order,
        cut=_over_all([model.reading_change for model in models]),
        cost=_in_all([model.cost for model in models]),
    )


def _in_all(costs: Sequence[Cost | None]) -> Cost | None:
    """Return the cost of the verdicts of all folds; None if none has one."""
    paid = [cost for cost in costs if cost is not None]
    if not paid:
        return None
    dollars, n = sum(cost.dollars for cost in paid), sum(cost.n for cost in paid)
    return Cost(dollars=dollars, per_verdict=dollars / max(1, n), n=n)


def _over_all(changes: Sequence[PrecisionChange | None]) -> PrecisionChange | None:
    """Return what scoring faster changed on the samples of all folds that did so."""
    made = [change for change in changes if change is not None]
    if not made:
        return None
    n, verdicts = sum(one.n for one in made), sum(one.verdicts for one in made)
    largest = max(one.probability for one in made)
    return PrecisionChange(n=n, verdicts=verdicts, probability=largest)


def _baselines(judge: JudgeRows, results: Sequence[Results]) -> list[Baseline]:
    """Return the baselines that every fold has, each fitted on its own fold's training rows.

    Of the others some fold says why it has none.
    """
    fitted = {baseline.name: baseline.fitted or "" for baseline in results[0].baselines}
    missing = {name: why for own in results for name, why in own.missing_baselines.items()}
    verdicts = _of_every_row([row.rules or {} for row in judge.rows])
    expected = _of_every_row([row.rules_expected or {} for row in judge.rows])
    usable = [
        Baseline(name, own, fitted.get(name), expected=expected.get(name, ()))
        for name, own in verdicts.items()
    ]
    others = missing.keys() - verdicts.keys()
    return usable + [Baseline(name, missing=missing[name]) for name in sorted(others)]


def _of_every_row(rows: Sequence[Mapping[str, T]]) -> dict[str, list[T]]:
    """Return the values of each name that all rows have, row by row."""
    return {name: [row[name] for row in rows] for name in rows[0] if all(name in r for r in rows)}


def _check_same(results: Sequence[Results], adapters: Sequence[Path]) -> None:
    """Raise UserError for an adapter of another task, scale, base or set of judges."""
    first = results[0]
    for adapter, result in zip(adapters, results, strict=True):
        for what, own, expected in (
            ("task", result.task, first.task),
            ("scale", result.scale, first.scale),
            ("base", result.run.get("base"), first.run.get("base")),
            ("set of judges", [m.name for m in result.models], [m.name for m in first.models]),
            ("grid, verdict rule or order", _how(result), _how(first)),
        ):
            if own != expected:
                problem = f"{adapter} has another {what} than {adapters[0]}"
                raise UserError(f"{problem}: join adapters of one training")


def _how(results: Results) -> list[tuple[str | None, ...]]:
    return [(model.grid, model.verdict_rule, model.order) for model in results.models]
