"""`judge eval`: adapters, their base and a prompted model on the same rows."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.results import Cost, LearningPoint, Results
from pt_app.eval_model.evaluation import Scoring, measured
from pt_app.eval_model.options import Endpoint, EvalOptions
from pt_app.eval_model.prompted import prompted_rows
from pt_app.eval_model.repeats import SHARES, on_fewer_rows
from pt_app.evidence.coding import headline
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.options import Asked
from pt_app.evidence.results import WRITTEN, JudgeRows, write_evaluation
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.models.endpoint.budget import Budget
from pt_app.models.provenance import about_this_run
from pt_app.report import write_report


def evaluate_judges(
    data: Path,
    out: Path,
    folders: Sequence[Path] = (),
    options: EvalOptions | None = None,
    endpoint: Endpoint | None = None,
) -> Results:
    """Score the test rows of `data` with all judges, and write the evaluation.

    Args:
        data: a dataset folder.
        out: the folder to write.
        folders: the adapters.
        options: which rows and which other judges; None: all rows, and no other judge.
        endpoint: a prompted model.

    Returns:
        The content of results.json.

    Raises:
        UserError: for adapters that do not judge on the data's scale, and an endpoint that cannot
            be asked.
    """
    options = options or EvalOptions()
    refuse_overwrite([out / name for name in WRITTEN], [data])
    dataset = read_dataset(data)
    infos = [adapters.verify_adapter(Path(folder)) for folder in folders]
    _check_scales(infos, dataset)
    if options.curve and len(infos) != 1:
        raise UserError("--curve is for one adapter: name one with --adapter")
    test = draw(dataset.test, options.rows, options.seed)
    judges = [_judged(n, info, test, options) for n, info in zip(_names(infos), infos, strict=True)]
    if options.with_base and infos:
        judges.append(_judged("base", infos[0], test, options, tuned=False))
    if options.curve:
        shares = on_fewer_rows(infos[0], data, len(dataset.train), options.base, out)
        for name, folder in shares.items():
            judges.append(_judged(name, adapters.verify_adapter(folder), test, options))
    if endpoint is not None:
        journal = out.with_name(f"{out.name}.journal.jsonl")
        shots = draw(dataset.train, endpoint.shots, options.seed) if endpoint.shots else ()
        budget = Budget(endpoint)
        judges.append(prompted_rows(endpoint, budget, test, shots, dataset, journal))
    run = about_this_run() | {"command": ["judge", *sys.argv[1:]]}
    results, baselines = measured(judges, dataset, test, run, Asked(options.target_accuracy))
    if endpoint is not None:
        n, spent = len(test), budget.spent
        results.models[-1].cost = Cost(dollars=spent, per_verdict=spent / max(1, n), n=n)
    if options.curve:
        results.curve = _curve(results, dataset)
    write_evaluation(out, judges, results, baselines)
    write_report(out)
    return results


def _curve(results: Results, dataset: JudgeData) -> list[LearningPoint]:
    """Return the headline number by the number of training rows, fewest first."""
    metric = headline(dataset.scale)
    numbers, rows = {model.name: model.best for model in results.models}, len(dataset.train)
    return [
        numbers[name][metric].extended(
            LearningPoint, judge=name, rows=round(rows * share), metric=metric
        )
        for name, share in {**SHARES, "adapter": 1.0}.items()
    ]


def _check_scales(infos: Sequence[AdapterInfo], dataset: JudgeData) -> None:
    for info in infos:
        if info.scale != dataset.scale:
            raise UserError(
                f"{info.folder} judges on {info.scale.name}, {dataset.path} has labels on "
                f"{dataset.scale.name}: name adapters and data of one scale"
            )


def _judged(
    name: str,
    info: AdapterInfo,
    test: Sequence[JudgeExample],
    options: EvalOptions,
    tuned: bool = True,
) -> JudgeRows:
    """Score the test rows with an adapter, or with its base if not `tuned`."""
    source = adapters.base_of(info, options.base)
    encoder = adapters.encoder_of(info, bases.load_tokenizer(info.folder))
    scoring = Scoring(encoder, test, options.feedback, options.precision)
    if not tuned:
        return scoring.judged(name, source.name, bases.load_model(source))
    model = adapters.load_merged(info.folder, source)
    rows = scoring.judged(name, info.folder.name, model)
    return replace(rows, fitted=Fitted.read(info.folder))


def _names(infos: Sequence[AdapterInfo]) -> list[str]:
    """Return short names of adapters; folders of one name are numbered."""
    if len(infos) == 1:
        return ["adapter"]
    names = [info.folder.resolve().name.removesuffix("_final") for info in infos]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
