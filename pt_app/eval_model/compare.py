"""`judge eval`: adapters, their base and a model at an endpoint on the same rows."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic
from pt_app.core.grids import refuse_chat_rows
from pt_app.core.results import RESULTS, JsonObject, LearningPoint, QuestionSummary, Results
from pt_app.eval_model.asking import prompted_rows
from pt_app.eval_model.deciding import asked_about, decided_rows
from pt_app.eval_model.evaluation import ByQuestion, Scoring, probed, written
from pt_app.eval_model.options import Endpoint, EvalOptions
from pt_app.eval_model.repeats import SHARES, on_fewer_rows
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.calibration import Fitted
from pt_app.evidence.coding import headline
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.results import WRITTEN
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.models.provenance import about_this_run
from pt_app.report import write_report

# In a narrow cell; docs/QUESTIONS.md says when two questions are the same.
NOT_SHARED = "left out: an adapter was not trained on it as it is asked here"


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
        endpoint: a model at an endpoint.

    Returns:
        The content of results.json.

    Raises:
        UserError: for adapters that do not judge on the data's scale, and an endpoint that cannot
            be asked.
    """
    options = options or EvalOptions()
    refuse_overwrite([out / name for name in WRITTEN], [data])
    dataset = read_dataset(data)
    if dataset.questions and ((endpoint and endpoint.url) or options.curve):
        problem = "which --endpoint and --curve do not take: leave them out, or use --decisions"
        raise UserError(f"{dataset.path} declares questions, {problem}")
    infos = [_verified(Path(folder), dataset) for folder in folders]
    if options.curve and len(infos) != 1:
        raise UserError("--curve is for one adapter: name one with --adapter")
    declared = dataset.questions
    if declared:
        dataset = _shared_questions(dataset, infos)
    test = draw(dataset.test, options.rows, options.seed)
    if endpoint and endpoint.decisions:
        asked_about(test, dataset)  # what cannot be asked is refused before adapters are scored
    probes = _probe(infos[0], dataset, test, options) if infos else {}
    judges = _judged_each(infos, test, options)
    if options.curve:
        shares = on_fewer_rows(infos[0], data, len(dataset.train), options.base, out)
        for name, folder in shares.items():
            judges.append(_judged(name, adapters.verify_adapter(folder), test, options))
    if endpoint is not None:
        judges.append(_at_endpoint(endpoint, test, dataset, out, options.seed))
    evidence = EvidenceOptions(options.target_accuracy)
    results = written(out, judges, dataset, test, _about(infos), probes, evidence)
    if options.curve:
        results.curve = _curve(results, dataset)
    results.questions |= {
        q.name: QuestionSummary(type=q.type, scale=q.scale.name, few=NOT_SHARED)
        for q in declared
        if q not in dataset.questions
    }
    write_json_atomic(out / RESULTS, results.as_json())
    write_report(out)
    return results


def _shared_questions(dataset: JudgeData, infos: Sequence[AdapterInfo]) -> JudgeData:
    """Return the data of the questions that all adapters know by name, content and state.

    Raises:
        UserError: if there is none.
    """
    known = [info.shared_with(dataset) for info in infos]
    shared = [q for q in dataset.questions if all(q in own for own in known)]
    if not shared:
        raise UserError(
            f"{dataset.path} asks no question that all of the adapters were trained on, in the "
            "same words and options about the same fields: name data and adapters that go together"
        )
    return dataset.about(shared)


def _at_endpoint(
    endpoint: Endpoint, test: Sequence[JudgeExample], data: JudgeData, out: Path, seed: int
) -> ByQuestion:
    """Ask the model at an endpoint; a run resumes from `<out>.journal.jsonl`."""
    journal = out.with_name(f"{out.name}.journal.jsonl")
    if endpoint.decisions:
        return decided_rows(endpoint, test, data, journal)
    shots = draw(data.train, endpoint.shots, seed) if endpoint.shots else ()
    return {"": prompted_rows(endpoint, test, shots, data, journal)}


def _about(infos: Sequence[AdapterInfo]) -> JsonObject:
    run = about_this_run() | {"command": ["judge", *sys.argv[1:]]}
    if infos and all(info.identity == infos[0].identity for info in infos):
        run |= {"base": infos[0].identity}
    return run


def _judged_each(
    infos: Sequence[AdapterInfo], test: Sequence[JudgeExample], options: EvalOptions
) -> list[ByQuestion]:
    """Score the test rows with each adapter, and with the first one's base if that is asked for."""
    names = zip(_names(infos), infos, strict=True)
    judges = [_judged(name, info, test, options) for name, info in names]
    if options.with_base and infos:
        judges.append(_judged("base", infos[0], test, options, tuned=False))
    return judges


def _verified(folder: Path, dataset: JudgeData) -> AdapterInfo:
    info = adapters.verify_adapter(folder)
    if dataset.questions:
        return info
    if info.questions:
        problem = f"{info.folder} answers questions, and {dataset.path} declares none"
        raise UserError(f"{problem}: name the data of its questions")
    if info.scale != dataset.scale:
        raise UserError(
            f"{info.folder} judges on {info.scale.name}, {dataset.path} has labels on "
            f"{dataset.scale.name}: name adapters and data of one scale"
        )
    refuse_chat_rows(info.scale, (*dataset.test, *(dataset.val or ())))
    return info


def _curve(results: Results, dataset: JudgeData) -> list[LearningPoint]:
    """Return the headline number by the number of training rows, fewest first."""
    metric = headline(dataset.scale)
    numbers, rows = {model.name: model.metrics for model in results.models}, len(dataset.train)
    return [
        numbers[name][metric].extended(
            LearningPoint, judge=name, rows=round(rows * share), metric=metric
        )
        for name, share in {**SHARES, "adapter": 1.0}.items()
    ]


def _judged(
    name: str,
    info: AdapterInfo,
    test: Sequence[JudgeExample],
    options: EvalOptions,
    tuned: bool = True,
) -> ByQuestion:
    """Score the test rows with an adapter, or with its base if not `tuned`."""
    source = adapters.base_of(info, options.base)
    encoder = adapters.encoder_of(info, bases.load_tokenizer(info.folder))
    if asked := {row.asks for row in test} - {""}:
        encoder = encoder.about(*(q for q in encoder.questions if q.name in asked))
    how = options.feedback, options.precision, options.order, options.reading
    scoring = Scoring(encoder, test, *how)
    if not tuned:
        return scoring.each(name, source.name, bases.load_model(source))
    model = adapters.load_merged(info.folder, source)
    each = scoring.each(name, info.folder.name, model)
    return {
        asks: replace(rows, fitted=Fitted.read(info.folder, rows.rule or "", rows.order, asks))
        for asks, rows in each.items()
    }


def _probe(
    info: AdapterInfo, data: JudgeData, test: Sequence[JudgeExample], options: EvalOptions
) -> dict[str, Baseline]:
    """Fit the frozen probe on the base of an adapter, with the adapter's prompts, by question."""
    source = adapters.base_of(info, options.base)
    adapters.check_base(info, bases.model_identity(source))  # before minutes of another base
    encoder = adapters.encoder_of(info, bases.load_tokenizer(info.folder))
    return probed(source, encoder, data, test, options.probe_rows)


def _names(infos: Sequence[AdapterInfo]) -> list[str]:
    """Return short names of adapters; folders of one name are numbered."""
    if len(infos) == 1:
        return ["adapter"]
    names = [info.folder.resolve().name.removesuffix("_final") for info in infos]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]
