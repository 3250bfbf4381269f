"""results.json: the whole evidence about some judges, computed from their prediction rows.

The rows are those of predictions.jsonl, so that the rows of several folds can be joined and the
numbers recomputed, and that anybody's verdicts can take the place of an adapter's.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pt_app.core import results as typed
from pt_app.core.choosing import FAR, FAR_LINE
from pt_app.core.files import write_json_atomic, write_text_atomic
from pt_app.core.results import Prediction, Results
from pt_app.core.verdicts import Scale
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.calibration import Fitted
from pt_app.evidence.comparison import compare, holm
from pt_app.evidence.escalation import escalation
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.judge_numbers import judge_numbers
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.people import agreement_among, ceiling
from pt_app.evidence.summary import baseline_results

log = logging.getLogger(__name__)

# The files of an evaluation.
WRITTEN = (typed.PREDICTIONS, typed.RESULTS, "report.html", "report.md")


@dataclass(frozen=True)
class JudgeRows:
    """One judge's prediction rows on the test rows, in their order.

    `shortened` counts the rows that were cut to fit, `ties` those whose verdict rounding decided;
    `change` says what the precision changed against float32, `cut` what reading parts of the
    verdicts' lines changed against whole lines, and `grid` names the coarser scale that the judge
    speaks, if it does. `rule` chose the verdicts by their probabilities (None: they were given), of
    pairs in `order`. `cost` is that of a model at an endpoint.
    """

    name: str
    id: str
    rows: Sequence[Prediction]
    shortened: int = 0
    ties: int = 0
    precision: str = "float32"
    change: typed.PrecisionChange | None = None
    fitted: Fitted | None = None
    grid: str | None = None
    rule: str | None = None
    order: str | None = None
    cut: typed.PrecisionChange | None = None
    cost: typed.Cost | None = None


def results_of(
    judges: Sequence[JudgeRows],
    scale: Scale,
    data: Mapping[str, object],
    baselines: Sequence[Baseline],
    leaks: Sequence[str],
    run: typed.JsonObject,
    evidence: EvidenceOptions | None = None,
) -> Results:
    """Compute results.json (docs/RESULTS_JSON.md) of judges on the same rows.

    Args:
        judges: the first one is compared with the others and with the baselines.
        scale: the scale of all verdicts.
        data: path and hash of the rows.
        baselines: their verdicts on the same rows, or why there are none.
        leaks: a line for each text on both sides of the split.
        run: how the rows were made; written as it is.
        evidence: what the user chose; None: the defaults.
    """
    count = len(judges[0].rows)
    # A row that does not fit one judge's context is left out of all numbers alike, and counted.
    fits = [i for i in range(count) if all(j.rows[i].status != "too_long" for j in judges)]
    judges = [replace(judge, rows=[judge.rows[i] for i in fits]) for judge in judges]
    usable = [baseline for baseline in baselines if not baseline.missing]
    answered = [each.take(fits) for each in usable]
    rows = judges[0].rows
    labels, sample = [row.label for row in rows], Resampler([row.group for row in rows])

    show = tqdm(judges, desc="evidence", disable=None)
    models = [_numbers(judge, sample, scale, evidence or EvidenceOptions()) for judge in show]
    for measured in models:
        measured.unscored = count - len(rows)
    results = Results(
        schema=typed.SCHEMA,
        leaks=typed.Leaks(n=len(leaks), examples=list(leaks[:5])),
        task=scale.task,
        data=typed.DataUsed.model_validate({**data, "n": len(rows), "groups": sample.groups}),
        scale=scale.name,
        models=models,
        baselines=[baseline_results(baseline, labels, sample, scale) for baseline in answered],
        missing_baselines={each.name: each.missing for each in baselines if each.missing},
        ceiling=ceiling(rows, scale),
        people=agreement_among(rows, scale),
        comparisons=_comparisons(judges, answered, sample, scale),
        run=run,
    )
    pairs = list(zip(results.models, [judge.rows for judge in judges], strict=True))
    if paid := next((pair for pair in pairs[1:] if pair[0].cost), None):
        found = escalation(pairs[0], paid, scale, sample)
        if found is not None:
            results.escalation = found
    return results


def _numbers(
    judge: JudgeRows, sample: Resampler, scale: Scale, evidence: EvidenceOptions
) -> typed.JudgeResults:
    """Measure a judge, and take over what is known of how its rows were made."""
    measured = judge_numbers(judge.rows, sample, scale, evidence, judge.fitted)
    measured.id, measured.name = judge.id, judge.name
    measured.precision, measured.precision_change = judge.precision, judge.change
    measured.grid, measured.reading_change = judge.grid, judge.cut
    measured.ties, measured.shortened = judge.ties, judge.shortened
    measured.verdict_rule, measured.order = judge.rule, judge.order
    _add_other_answers(measured, judge.rows, sample)
    if judge.cost is not None:  # else it is not written
        measured.cost = judge.cost
    if judge.rule is not None and measured.greedy is not None:
        asked = next((f", {row.question}" for row in judge.rows if row.question), "")
        log.info(FAR_LINE, judge.name + asked, measured.far_from_greedy, measured.n, FAR)
    return measured


def _add_other_answers(
    measured: typed.JudgeResults, rows: Sequence[Prediction], sample: Resampler
) -> None:
    """Add how often another order of the options, or asking again, changes the verdict."""
    reordered = np.array(["reordered" in row.model_fields_set for row in rows])
    if reordered.any():
        changed = np.array([float(row.verdict != row.reordered) for row in rows])
        measured.option_order = sample.among(reordered).share(changed[reordered])
    if (times := 1 + max((len(row.repeated or ()) for row in rows), default=0)) > 1:
        answers = [{row.verdict, *(row.repeated or ())} for row in rows]
        flips = [None if own == {None} else float(len(own) > 1) for own in answers]
        moved = max((row.moved for row in rows if row.moved is not None), default=None)
        measured.repeats = typed.Repeats(times=times, flips=sample.share(flips), probability=moved)


def _comparisons(
    judges: Sequence[JudgeRows], baselines: Sequence[Baseline], sample: Resampler, scale: Scale
) -> list[typed.Comparison]:
    """Compare the first judge with each other one, then with each baseline; Holm's p over all."""
    first, labels = judges[0], [row.label for row in judges[0].rows]
    own = [row.verdict for row in first.rows]
    others = [(other.name, [row.verdict for row in other.rows]) for other in judges[1:]]
    others += [(baseline.name, list(baseline.verdicts)) for baseline in baselines]
    comparisons = [
        compare(labels, own, verdicts, sample, scale, (first.name, name))
        for name, verdicts in others
    ]
    for comparison, p in zip(comparisons, holm([pair.p for pair in comparisons]), strict=True):
        comparison.p_holm = p
    return comparisons


def write_evaluation(
    folder: Path, judges: Sequence[JudgeRows], results: Results, baselines: Sequence[Baseline] = ()
) -> None:
    """Write every judge's rows, one JSON object per line, and then the results.

    The first judge's rows get the verdict of each baseline (`rules`), and its score before that was
    rounded (`rules_expected`), so that folds can be joined.
    """
    usable = [baseline for baseline in baselines if not baseline.missing]
    scored = [baseline for baseline in usable if baseline.expected]
    rows = [row for judge in judges for row in judge.rows]
    for i, row in enumerate(judges[0].rows if baselines else ()):
        rules: dict[str, object] = {"rules": {own.name: own.verdicts[i] for own in usable}}
        if scored:
            rules["rules_expected"] = {own.name: own.expected[i] for own in scored}
        rows[i] = row.model_copy(update=rules)
    lines = (
        json.dumps(row.as_json(), ensure_ascii=False, allow_nan=False, default=str) + "\n"
        for row in rows
    )
    write_text_atomic(folder / typed.PREDICTIONS, "".join(lines))
    write_json_atomic(folder / typed.RESULTS, results.as_json())
