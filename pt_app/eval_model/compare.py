"""`judge eval`: adapters, their base and a prompted model on the same rows.

The prompted model is behind an OpenAI-compatible endpoint, with or without examples in its prompt.
"""

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from pt_app.core.dataset import JudgeData, JudgeExample, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.core.grids import refuse_chat_rows
from pt_app.core.prompt_templates import Template
from pt_app.core.results import Cost, JsonObject, LearningPoint, Results
from pt_app.core.verdicts import Scale
from pt_app.eval_model.evaluation import (
    ByQuestion,
    Scoring,
    measured,
    prediction,
    probed,
    written,
)
from pt_app.eval_model.options import Endpoint, EvalOptions
from pt_app.eval_model.repeats import SHARES, on_fewer_rows
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.calibration import Fitted
from pt_app.evidence.coding import headline
from pt_app.evidence.options import Asked
from pt_app.evidence.probe import NO_BASE
from pt_app.evidence.results import WRITTEN, JudgeRows, write_evaluation
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.models.endpoint.budget import Budget
from pt_app.models.endpoint.client import Client
from pt_app.models.endpoint.journal import Entry, Journal
from pt_app.models.endpoint.reply import RefusedError, answer_part
from pt_app.models.provenance import about_this_run
from pt_app.report import write_report
from pt_app.scoring.scorer import Scored

Messages = list[dict[str, str]]
log = logging.getLogger(__name__)


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
    if dataset.questions:
        return _of_questions(dataset, out, folders, endpoint, options)
    infos = [_verified(Path(folder), dataset) for folder in folders]
    if options.curve and len(infos) != 1:
        raise UserError("--curve is for one adapter: name one with --adapter")
    test = draw(dataset.test, options.rows, options.seed)
    probe = _probe(infos[0], dataset, test, options)[""] if infos else NO_BASE
    judges = [each[""] for each in _judged_each(infos, test, options)]
    if options.curve:
        shares = on_fewer_rows(infos[0], data, len(dataset.train), options.base, out)
        for name, folder in shares.items():
            judges.append(_judged(name, adapters.verify_adapter(folder), test, options)[""])
    if endpoint is not None:
        journal = out.with_name(f"{out.name}.journal.jsonl")
        shots = draw(dataset.train, endpoint.shots, options.seed) if endpoint.shots else ()
        budget = Budget(endpoint)
        judges.append(_prompted_rows(endpoint, budget, test, shots, dataset, journal))
    run = _about(infos)
    asked = Asked(options.target_accuracy)
    results, baselines = measured(judges, dataset, test, run, probe, asked)
    if endpoint is not None:
        n, spent = len(test), budget.spent
        results.models[-1].cost = Cost(dollars=spent, per_verdict=spent / max(1, n), n=n)
    if options.curve:
        results.curve = _curve(results, dataset)
    write_evaluation(out, judges, results, baselines)
    write_report(out)
    return results


def _of_questions(
    dataset: JudgeData,
    out: Path,
    folders: Sequence[Path],
    endpoint: Endpoint | None,
    options: EvalOptions,
) -> Results:
    """Judge the questions of a dataset that all adapters know, to the word.

    Raises:
        UserError: if there is none, and for what is there for one scale only.
    """
    if endpoint is not None or options.curve:
        raise UserError(f"{dataset.path} asks questions: --endpoint and --curve take one scale")
    infos = [adapters.verify_adapter(Path(folder)) for folder in folders]
    shared = [q for q in dataset.questions if all(q in info.questions for info in infos)]
    if not shared:
        raise UserError(
            f"{dataset.path} asks no question that all of the adapters were trained on, in the "
            "same words and options: name data and adapters of the same questions"
        )
    dataset = dataset.about(shared)
    test = draw(dataset.test, options.rows, options.seed)
    probes, judges = _probe(infos[0], dataset, test, options), _judged_each(infos, test, options)
    asked = Asked(options.target_accuracy)
    results = written(out, judges, dataset, test, _about(infos), probes, asked)
    write_report(out)
    return results


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


def _prompted_rows(
    endpoint: Endpoint,
    budget: Budget,
    test: Sequence[JudgeExample],
    shots: Sequence[JudgeExample],
    data: JudgeData,
    journal: Path,
) -> JudgeRows:
    """Ask about each test row once; a run resumes from the answers in `journal`.

    An answer whose verdict cannot be read, and a refused request, is a parse failure; the log
    counts what was refused or cut.

    Raises:
        UserError: if the endpoint is down, refuses all requests, or `max_cost` is reached.
    """
    template = Template.load(data.card.template, data.card.rubric)
    questions = {example.id: _messages(example, shots, template, data.scale) for example in test}
    with closing(Journal(journal, _settings(endpoint, questions))) as kept:
        answers = _answers(endpoint, budget, questions, kept)
    scored = [_scored(answers[example.id], data.scale) for example in test]
    rows = [prediction(endpoint.model, *pair) for pair in zip(test, scored, strict=True)]
    return JudgeRows(endpoint.model, f"{endpoint.model} at an endpoint", rows)


def _messages(
    example: JudgeExample, shots: Sequence[JudgeExample], template: Template, scale: Scale
) -> Messages:
    """Return the template's prompt, preceded by some training rows with their answers."""
    turns: Messages = []
    for row in (*shots, example):
        system, user = row.system or "", row.prompt
        if user is None:
            system, user = template.render(row, scale)
        if not turns and system:
            turns.append({"role": "system", "content": system})
        turns.append({"role": "user", "content": user})
        if row is not example:
            turns.append({"role": "assistant", "content": row.answer(scale) or ""})
    return turns


def _settings(endpoint: Endpoint, questions: Mapping[str, Messages]) -> dict[str, str | int]:
    """Return what an answer depends on: a journal of other settings is refused."""
    hashed = sha256(repr(sorted(questions.items())).encode()).hexdigest()
    return {"model": endpoint.model, "questions": hashed, "max_tokens": endpoint.max_tokens}


def _answers(
    endpoint: Endpoint, budget: Budget, questions: Mapping[str, Messages], journal: Journal
) -> dict[str, Entry]:
    """Return each row's journal entry, after asking about the rows that have none."""
    done = {entry["id"]: entry for entry in journal.entries}
    budget.spent = sum(entry["cost"] for entry in done.values())
    waiting = [id_ for id_ in questions if id_ not in done]

    async def ask(id_: str) -> None:
        entry: Entry = {"id": id_, "text": "", "cost": 0.0}
        try:
            reply = await client.ask(questions[id_], None)
            cost = budget.cost(reply.usage)
            entry |= {"text": reply.text, "cost": cost, "usage": asdict(reply.usage)}
            entry |= {"cut": True} if reply.cut else {}
        except RefusedError as refused:
            entry["refused"] = str(refused)
        journal.append(entry)
        done[id_] = entry

    if waiting:
        client = Client(
            model=endpoint.model,
            budget=budget,
            base_url=endpoint.url,
            max_tokens=endpoint.max_tokens,
        )
        client.ask_all(waiting, ask, "verdicts")
    _report_missing([done[id_] for id_ in questions], endpoint)
    return done


def _report_missing(entries: Sequence[Entry], endpoint: Endpoint) -> None:
    """Log how many rows have no complete answer, and why; raise UserError if all were refused."""
    refused = Counter(entry["refused"] for entry in entries if "refused" in entry)
    if refused and sum(refused.values()) == len(entries):
        raise UserError(
            f"the endpoint refuses every request ({next(iter(refused))}): correct the settings, "
            "and give another --out"
        )
    for reason, count in refused.most_common():
        log.warning("%d rows have no answer: %s", count, reason)
    if cut := sum(bool(entry.get("cut")) for entry in entries):
        cause = f"cut at --max_tokens {endpoint.max_tokens}: raise it for a model that thinks"
        log.warning("%d answers were %s", cut, cause)


def _scored(entry: Entry, scale: Scale) -> Scored:
    """Read an answer: the verdict in the exact format, else as a person would write it.

    A verdict within a thought does not count, nor one in the last line of an answer that was cut.
    """
    text, cut = entry["text"], entry.get("cut", False)
    verdict = scale.parse(text) if "\n" in text or not cut else None
    answer = answer_part(text, cut) if verdict is None else None
    if answer is not None:
        read = scale.read(answer)
        verdict = scale.parse(answer) if read is None else read.verdict
    return Scored("parse_failure" if verdict is None else "ok", verdict, verdict, raw=text)
