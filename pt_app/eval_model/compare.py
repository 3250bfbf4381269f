"""`judge eval`: was tuning worth it? Adapters, their base and a prompted model on the same rows."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.verdicts import Scale
from pt_app.eval_model.curve import SHARES, train_parts
from pt_app.eval_model.evaluation import Scoring, labelled
from pt_app.eval_model.prompted import Endpoint, prompted_rows
from pt_app.evidence.baselines import baselines
from pt_app.evidence.coding import headline
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.judge_numbers import Asked
from pt_app.evidence.results import (
    WRITTEN,
    JudgeRows,
    Rules,
    results_of,
    with_rules,
    write_evaluation,
)
from pt_app.models import adapters, bases
from pt_app.models.model_card import AdapterInfo
from pt_app.models.provenance import about_this_run
from pt_app.report import write_report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalOptions:
    """The flags of `judge eval`: see its help."""

    adapters: Sequence[Path] = ()
    with_base: bool = False
    base: str | None = None
    endpoint: Endpoint | None = None
    rows: int = 0
    feedback: bool = False
    precision: str = "float32"
    target_accuracy: float = 0.9
    seed: int = 0
    curve: bool = False


def evaluate_judges(data: Path, out: Path, options: EvalOptions) -> dict[str, Any]:
    """Score the test rows of `data` with all judges, write `out`; gives the results.

    Raises UserError where adapters do not judge on the data's scale, or an endpoint cannot be
    asked.
    """
    refuse_overwrite([out / name for name in WRITTEN], [data])
    dataset = read_dataset(data)
    infos = [adapters.verify_adapter(Path(adapter)) for adapter in options.adapters]
    _check_scales(infos, dataset)
    if options.curve and len(infos) != 1:
        raise UserError("--curve is of one adapter: name one with --adapter")
    test = draw(dataset.test, options.rows, options.seed)
    judges = list(_adapters_rows(infos, test, options))
    if options.curve:
        parts = train_parts(infos[0], data, len(dataset.train), options.base, out)
        judges += _parts_rows(parts, test, options)
    if options.endpoint is not None:
        journal = out.with_name(f"{out.name}.journal.jsonl")
        shots = draw(dataset.train, options.endpoint.shots, options.seed)
        few = shots if options.endpoint.shots else ()
        judges.append(prompted_rows(options.endpoint, test, few, dataset, journal))
    rules = Rules.of(
        baselines(labelled(test, dataset), dataset.scale, labelled(dataset.train, dataset))
    )
    judges[0] = with_rules(judges[0], rules)
    about = {"path": dataset.path.name, "sha256": dataset.sha256}
    run = about_this_run() | {"command": ["judge", *sys.argv[1:]]}
    asked = Asked(options.target_accuracy)
    results = results_of(judges, dataset.scale, about, rules, dataset.leaks, run, asked)
    if options.endpoint is not None:
        own = next(model for model in results["models"] if model["name"] == judges[-1].name)
        own["cost"] = options.endpoint.cost_of(len(test))
    if options.curve:
        results["curve"] = _curve(results, len(dataset.train))
    write_evaluation(out, judges, results)
    write_report(out)
    return results


def _parts_rows(
    parts: Mapping[str, Path], test: Sequence[JudgeExample], options: EvalOptions
) -> list[JudgeRows]:
    """The rows of the adapters that were trained on parts of the rows, under the parts' names."""
    found = []
    for name, folder in parts.items():
        info = adapters.verify_adapter(folder)
        (rows,) = _adapters_rows([info], test, replace(options, with_base=False))
        named = [{**row, "model": name} for row in rows.rows]
        found.append(replace(rows, name=name, rows=named))
    return found


def _curve(results: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """The headline number by the number of training rows, fewest first."""
    by_name = {
        model["name"]: model["constrained"] for model in results["models"] if "constrained" in model
    }
    metric = headline(Scale.from_name(results["scale"]))
    shares = {**SHARES, "adapter": 1.0}
    return [
        {"judge": name, "rows": round(rows * share), "metric": metric, **by_name[name][metric]}
        for name, share in shares.items()
    ]


def _check_scales(infos: Sequence[AdapterInfo], dataset: JudgeData) -> None:
    for info in infos:
        if info.scale != dataset.scale:
            raise UserError(
                f"{info.folder} judges on {info.scale.name}, {dataset.path} has labels on "
                f"{dataset.scale.name}: name adapters and data of one scale"
            )


def _adapters_rows(
    infos: Sequence[AdapterInfo], test: Sequence[JudgeExample], options: EvalOptions
) -> list[JudgeRows]:
    """The rows of each adapter, then of the first one's base."""
    found = []
    names = ["adapter"] if len(infos) == 1 else _names(infos)
    for name, info in zip(names, infos, strict=True):
        source = adapters.base_of(info, options.base)
        identity = bases.model_identity(source)
        model = adapters.load_adapter(info.folder, bases.load_model(source), identity)
        scoring = _scoring(info, test, options)
        rows = scoring.judged(name, info.folder.name, adapters.merge(model))
        found.append(replace(rows, fitted=Fitted.read(info.folder)))
    if options.with_base and infos:
        source = adapters.base_of(infos[0], options.base)
        scoring = _scoring(infos[0], test, options)
        found.append(scoring.judged("base", source.name, bases.load_model(source)))
    return found


def _names(infos: Sequence[AdapterInfo]) -> list[str]:
    """Short names of adapters; folders of one name are numbered."""
    names = [info.folder.resolve().name.removesuffix("_final") for info in infos]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _scoring(info: AdapterInfo, test: Sequence[JudgeExample], options: EvalOptions) -> Scoring:
    tokenizer = bases.load_tokenizer(info.folder)
    encoder = adapters.encoder_of(info, tokenizer)
    return Scoring(encoder, test, options.feedback, options.precision)
