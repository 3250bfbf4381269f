"""`judge agree FILE`: from verdicts and labels to results, predictions and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pt_app.agree.table import Columns, VerdictTable, read_verdicts
from pt_app.errors import UserError
from pt_app.eval_model.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Labelled, baselines
from pt_app.evidence.coding import positions
from pt_app.evidence.judge_numbers import Asked
from pt_app.evidence.pass_fail import PASS, corrected_pass_rate
from pt_app.evidence.results import JudgeRows, Rules, results_of, with_rules, write_evaluation
from pt_app.report import write_report


@dataclass(frozen=True)
class AgreeOptions:
    """The flags of `judge agree`: see its help."""

    columns: Columns
    scale: str = ""
    train: str = ""
    encoding: str = ""
    asked: Asked = field(default_factory=Asked)
    command: Sequence[str] = ()


def agree(file: str, out: Path, options: AgreeOptions) -> tuple[dict[str, Any], list[str]]:
    """Measure the judges of `file`, write `out`; gives the results and what is to be said.

    Raises UserError for what a user can mend: see `read_verdicts`; also for fewer than two groups.
    """
    table = read_verdicts(file, options.columns, options.scale, options.encoding)
    judges = [JudgeRows(name, name, rows) for name, rows in table.judges.items()]
    groups = {row["group"] for row in judges[0].rows}
    if len(groups) < 2:
        raise UserError(
            f"{file}: all {len(judges[0].rows)} labelled rows are of one group, so nothing can be "
            "said of others: name the column that tells sources apart (--group)"
        )
    notes = list(table.notes)
    if not options.columns.group:
        notes.append("each row counts as a source of its own (--group names the column of sources)")
    rules = Rules.of(baselines(_labelled(table), table.scale, _training(options, table.scale)))
    judges[0] = with_rules(judges[0], rules)
    about = {"path": Path(file).name, "sha256": sha256(Path(file).read_bytes()).hexdigest()}
    run = {"command": list(options.command)}
    results = results_of(judges, table.scale, about, rules, (), run, options.asked)
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
    return _labelled(read_verdicts(options.train, options.columns, scale.name, options.encoding))


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
