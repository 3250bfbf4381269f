"""`judge agree FILE`: from verdicts and labels to results, predictions and the report."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file
from pt_app.core.results import JsonObject, Metrics, PassRate, Prediction, Results
from pt_app.core.verdicts import Scale, Verdict
from pt_app.eval_model.options import AgreeOptions
from pt_app.evidence.baselines import Labelled, fit_baselines
from pt_app.evidence.coding import positions
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.pass_fail import corrected_pass_rate
from pt_app.evidence.probe import NO_BASE
from pt_app.evidence.results import WRITTEN, JudgeRows, results_of, write_evaluation
from pt_app.evidence.summary import PASS
from pt_app.judge_data import verdict_files
from pt_app.judge_data.metric_scores import as_verdicts, rank_results, read_scores
from pt_app.judge_data.options import Columns, FileOptions
from pt_app.judge_data.verdict_files import Rows, VerdictFile
from pt_app.report import write_report

NOT_GROUPED = "each row counts as a source of its own (--group names the column of sources)"
BY_RANK_ONLY = "by rank only: verdicts need --validation, rows to fit a map from the scores on"


def agree(
    file: str,
    out: Path,
    columns: Columns,
    reading: FileOptions,
    options: AgreeOptions,
    evidence: EvidenceOptions,
) -> tuple[Results, list[str]]:
    """Measure the judges of a file of verdicts, and write the evaluation.

    Args:
        file: the file of verdicts and labels.
        out: the folder to write.
        columns: which columns hold what.
        reading: how the file is read.
        options: what is measured, and by which other files.
        evidence: what the user chose.

    Returns:
        The results, and notes for the user.

    Raises:
        UserError: for what a user can fix: see `read_verdicts`; also for fewer than two groups.
    """
    read = [name for name in (file, options.train, options.validation) if name]
    refuse_overwrite([out / name for name in WRITTEN], read)
    notes: list[str] = []
    ranks: dict[str, Metrics] = {}
    if options.metric or options.lower_is_better:
        source = VerdictFile(file, columns, reading, unnamed="metric")
        scores = verdict_files.aligned(read_scores(source, options.lower_is_better), source)
        _check_groups(scores, file)
        results = rank_results(scores, _about(file))
        results.run = _run()
        notes += source.notes()
        if not options.validation:
            write_evaluation(out, _judges(scores), results)
            write_report(out)
            return results, [*notes, BY_RANK_ONLY]
        ranks = {model.name: model.metrics for model in results.models}
        rows = VerdictFile(options.validation, columns, reading, unnamed="metric")
        others = read_scores(rows, options.lower_is_better)
        scale = _scale(options.scale, scores, file)
        table = as_verdicts(scores, others, scale, options.validation, file)
    else:
        table = verdict_files.read_verdicts(file, columns, options.scale, reading)
        _check_groups(table.judges, file)
    scale, judges, training = table.scale, _judges(table.judges), None
    if options.train:
        labelled = verdict_files.read_verdicts(options.train, columns, scale.name, reading)
        training = _labelled(_judges(labelled.judges)[0], scale)
    baselines = [*fit_baselines(_labelled(judges[0], scale), scale, training), NO_BASE]
    results = results_of(judges, scale, _about(file), baselines, (), _run(), evidence)
    for model, judge in zip(results.models, judges, strict=True):
        model.metrics |= ranks.get(model.name, {})
        if verdicts := table.population.get(model.name):
            model.population = _population(verdicts, judge.rows, scale)
    write_evaluation(out, judges, results, baselines)
    write_report(out)
    return results, [*notes, *table.notes, *([] if columns.group else [NOT_GROUPED])]


def _check_groups(judges: Mapping[str, Rows], file: str) -> None:
    rows = next(iter(judges.values()))
    if len({row["group"] for row in rows}) < 2:
        raise UserError(
            f"{file}: all {len(rows)} labelled rows are of one group, so nothing can be said about "
            "others: name the column that distinguishes sources (--group)"
        )


def _about(file: str) -> JsonObject:
    path = Path(file.partition("::")[0])  # a member of an archive follows its name
    return {"path": Path(file).name, "sha256": sha256_file(path) if path.is_file() else None}


def _run() -> JsonObject:
    return {"command": ["judge", *sys.argv[1:]]}


def _judges(judges: Mapping[str, Rows]) -> list[JudgeRows]:
    return [
        JudgeRows(name, name, [Prediction.model_validate(row) for row in rows])
        for name, rows in judges.items()
    ]


def _scale(name: str, scores: Mapping[str, Rows], file: str) -> Scale:
    if name:
        return Scale.from_name(name)
    return verdict_files.scale_of({r["label"] for rows in scores.values() for r in rows}, file)


def _labelled(judge: JudgeRows, scale: Scale) -> Labelled:
    labels, groups = [row.label for row in judge.rows], [row.group for row in judge.rows]
    return Labelled.of(judge.rows, labels, groups, scale)


def _population(
    verdicts: Sequence[Verdict | None], rows: Sequence[Prediction], scale: Scale
) -> PassRate | None:
    """Return the pass rate of the rows without a label; None if the task is not pass or fail."""
    if scale.task != "pass_fail":
        return None
    of_population = positions(verdicts, scale, "verdict")
    labels = positions([row.label for row in rows], scale, "label")
    own = positions([row.verdict for row in rows], scale, "verdict")
    passed, judged = int((of_population == PASS).sum()), int(np.sum(of_population >= 0))
    return corrected_pass_rate(passed, judged, labels, own)
