"""`judge agree FILE`: from verdicts and labels to results, predictions and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Labelled, baselines
from pt_app.evidence.coding import positions
from pt_app.evidence.judge_numbers import Asked
from pt_app.evidence.pass_fail import corrected_pass_rate
from pt_app.evidence.results import (
    WRITTEN,
    JudgeRows,
    Rules,
    results_of,
    with_rules,
    write_evaluation,
)
from pt_app.evidence.summary import PASS
from pt_app.judge_data.metric_scores import as_verdicts, rank_results, read_scores
from pt_app.judge_data.verdict_files import (
    Columns,
    FileOptions,
    VerdictFile,
    VerdictTable,
    aligned,
    read_verdicts,
    scale_of,
)
from pt_app.report import write_report


@dataclass(frozen=True)
class AgreeOptions:
    """The flags of `judge agree`: see its help."""

    columns: Columns
    scale: str = ""
    train: str = ""
    reading: FileOptions = field(default_factory=FileOptions)
    asked: Asked = field(default_factory=Asked)
    command: Sequence[str] = ()
    metric: bool = False
    lower_is_better: bool = False
    validation: str = ""


def agree(file: str, out: Path, options: AgreeOptions) -> tuple[dict[str, Any], list[str]]:
    """Measure the judges of `file`, write `out`; gives the results and what is to be said.

    Raises UserError for what a user can fix: see `read_verdicts`; also for fewer than two groups.
    """
    read = [one for one in (file, options.train, options.validation) if one]
    refuse_overwrite([out / name for name in WRITTEN], read)
    if options.metric or options.lower_is_better:
        return _agree_by_rank(file, out, options)
    table = read_verdicts(file, options.columns, options.scale, options.reading)
    return _agree(file, out, options, table, {})


def _agree_by_rank(file: str, out: Path, options: AgreeOptions) -> tuple[dict[str, Any], list[str]]:
    """Scores of a metric: by rank, and with a validation file as verdicts too."""
    lower = options.lower_is_better
    source = VerdictFile(file, options.columns, options.reading)
    metrics = aligned(read_scores(source, lower), source)
    _check_groups(next(iter(metrics.values())), file)
    about = _about(file)
    by_rank = rank_results(metrics, about) | {"run": {"command": list(options.command)}}
    if not options.validation:
        judges = [JudgeRows(name, name, rows) for name, rows in metrics.items()]
        write_evaluation(out, judges, by_rank)
        write_report(out)
        alone = "by rank alone: verdicts need --validation, rows to map the scores on"
        return by_rank, [*source.notes(), alone]
    other = VerdictFile(options.validation, options.columns, options.reading)
    validation = read_scores(other, lower)
    labels = {row["label"] for rows in metrics.values() for row in rows}
    scale = Scale.from_name(options.scale) if options.scale else scale_of(labels, file)
    table = as_verdicts(metrics, validation, scale, options.validation, file)
    table = replace(table, notes=[*source.notes(), *table.notes])
    ranks = {model["name"]: model["metrics"] for model in by_rank["models"]}
    return _agree(file, out, options, table, ranks)


def _about(file: str) -> dict[str, Any]:
    path = Path(file.partition("::")[0])  # a member of an archive stands behind its name
    known = sha256_file(path) if path.is_file() else None
    return {"path": Path(file).name, "sha256": known}


def _check_groups(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    if len({row["group"] for row in rows}) < 2:
        raise UserError(
            f"{file}: all {len(rows)} labelled rows are of one group, so nothing can be said of "
            "others: name the column that tells sources apart (--group)"
        )


def _agree(
    file: str,
    out: Path,
    options: AgreeOptions,
    table: VerdictTable,
    ranks: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], list[str]]:
    """Measure and write; `ranks` are rank statistics of the scores behind the verdicts."""
    judges = [JudgeRows(name, name, rows) for name, rows in table.judges.items()]
    _check_groups(judges[0].rows, file)
    notes = list(table.notes)
    if not options.columns.group:
        notes.append("each row counts as a source of its own (--group names the column of sources)")
    rules = Rules.of(baselines(_labelled(table), table.scale, _training(options, table.scale)))
    judges[0] = with_rules(judges[0], rules)
    run = {"command": list(options.command)}
    results = results_of(judges, table.scale, _about(file), rules, (), run, options.asked)
    for model in results["models"]:
        model["metrics"] |= ranks.get(model["name"], {})
    for model in results["models"]:
        if verdicts := table.population.get(model["name"]):
            rows = table.judges[model["name"]]
            model["population"] = _population(verdicts, rows, table.scale)
    write_evaluation(out, judges, results)
    write_report(out)
    return results, notes


def _labelled(table: VerdictTable) -> Labelled:
    rows = next(iter(table.judges.values()))
    return Labelled.of(
        rows, [row["label"] for row in rows], [row["group"] for row in rows], table.scale
    )


def _training(options: AgreeOptions, scale: Scale) -> Labelled | None:
    """The rows that the rules are fitted on, from --train; None: on the file's other groups."""
    if not options.train:
        return None
    return _labelled(read_verdicts(options.train, options.columns, scale.name, options.reading))


def _population(
    verdicts: Sequence[Verdict | None], rows: Sequence[Mapping[str, Any]], scale: Scale
) -> dict[str, Any] | None:
    """The pass rate of the rows without a label; None where there is no passing."""
    if scale.task != "pass_fail":
        return None
    said = positions(verdicts, scale, "verdict")
    labels = positions([row["label"] for row in rows], scale, "label")
    own = positions([row["verdict"] for row in rows], scale, "verdict")
    passed, judged = int((said == PASS).sum()), int(np.sum(said >= 0))
    return corrected_pass_rate(passed, judged, labels, own)
