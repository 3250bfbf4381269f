"""The agreement numbers of one judge on one test set, and of a baseline it must beat."""

from collections.abc import Sequence, Sized

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import BaselineResults, JudgeResults, Metrics
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import coding
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.intervals import Resampler

PASS, FAIL = 0, 1  # positions on the scale of pass and fail


def summarise(
    labels: Sequence[Verdict],
    verdicts: Sequence[Verdict | None],
    constrained: Sequence[Verdict] | None,
    sample: Resampler,
    scale: Scale,
    rouge: Sequence[float | None] | None = None,
    errors: Sequence[Sequence[str]] | None = None,
) -> JudgeResults:
    """Return one judge's numbers of agreement.

    Args:
        labels: the label of each row [n].
        verdicts: the judge's own verdicts [n], None for a parse failure.
        constrained: the constrained verdict of every row [n]; None if they are not known.
        sample: the groups of the rows.
        scale: the scale of labels and verdicts.
        rouge: ROUGE-L of each row's feedback [n], None if its label has none.
        errors: the kinds of error known to be in each row's candidate [n].

    Returns:
        `metrics` holds <name> over the rows that parsed and <name>_strict with each failure counted
        as wrong: on an ordered scale as the verdict farthest from the label, on a nominal one as a
        verdict outside of it. `constrained` covers all rows.

    Raises:
        UserError: for a verdict off the scale.
        ValueError: for columns of unequal length.
    """
    check_lengths(labels, verdicts, constrained, sample.index, rouge, errors)
    label, verdict = coding.coded(labels, verdicts, scale)
    metrics = agreement_metrics(sample, label, verdict, scale)
    wrong = coding.count_failures_as_wrong(label, verdict, scale)
    strict = agreement_metrics(sample, label, wrong, scale)
    if rouge is not None:
        values = np.array(rouge, dtype=np.float64)  # None becomes NaN
        metrics["rouge_l"] = sample.share(np.where(verdict < 0, np.nan, values))
        strict["rouge_l"] = sample.share(np.where(verdict < 0, 0 * values, values))
    summary = JudgeResults(
        metrics=metrics | {f"{name}_strict": value for name, value in strict.items()},
        parse_failures=int((verdict < 0).sum()),
        n=len(label),
        groups=sample.groups,
        few_groups=sample.few_groups,
    )
    forced = verdict
    if constrained:
        forced = coding.positions(constrained, scale, "verdict")
        if (forced < 0).any():
            raise ValueError("`constrained` needs a verdict in every row: leave unscored rows out")
        summary.constrained = agreement_metrics(sample, label, forced, scale)
    if errors is not None:
        summary.by_error = _by_error(sample, coding.distances(label, forced, scale), scale, errors)
    return summary


def baseline_results(
    baseline: Baseline, labels: Sequence[Verdict], sample: Resampler, scale: Scale
) -> BaselineResults:
    """Return the numbers of a baseline; its `verdict` is None if it answers several."""
    verdicts = baseline.verdicts
    check_lengths(verdicts, labels, sample.index)
    return BaselineResults(
        id=baseline.name,
        name=baseline.name,
        verdict=verdicts[0] if len(set(verdicts)) == 1 else None,
        metrics=agreement_metrics(sample, *coding.coded(labels, verdicts, scale), scale),
        parse_failures=0,
        n=len(labels),
        fitted=baseline.fitted,
    )


def strict_agreement(
    labels: Sequence[Verdict], verdicts: Sequence[Verdict | None], scale: Scale
) -> dict[str, float]:
    """Return the numbers without intervals, a parse failure (None) counted as wrong."""
    label, verdict = coding.coded(labels, verdicts, scale)
    wrong = coding.count_failures_as_wrong(label, verdict, scale)
    (columns,), statistic = coding.agreement_of_sums(label, scale, wrong)
    return {name: float(value[0]) for name, value in statistic(columns.sum(axis=0)).items()}


def agreement_metrics(
    sample: Resampler, labels: IntArray, verdicts: IntArray, scale: Scale
) -> Metrics:
    """Return all agreement numbers over the rows whose verdict is not -1."""
    (columns,), statistic = coding.agreement_of_sums(labels, scale, verdicts)
    metrics = sample.estimate_sums(columns, statistic, int((verdicts >= 0).sum()))
    if scale.task == "pass_fail":
        metrics |= by_class(labels, verdicts, sample)
    if scale.task == "pairwise":
        metrics["accuracy_no_ties"] = sample.share(_without_ties(labels, verdicts, scale))
    return metrics


def by_class(labels: IntArray, verdicts: IntArray, sample: Resampler) -> Metrics:
    """Return the recall of PASS and of FAIL, and the precision of FAIL.

    Rows whose verdict is -1 do not count; one past the scale (a parse failure) is never right.
    """
    parsed = verdicts >= 0
    counted = {
        "recall_pass": parsed & (labels == PASS),
        "recall_fail": parsed & (labels == FAIL),
        "precision_fail": verdicts == FAIL,
    }
    right = (labels == verdicts).astype(np.float64)
    return {name: sample.share(np.where(rows, right, np.nan)) for name, rows in counted.items()}


def _without_ties(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Score the pairs whose label is no tie: 1 if the verdict is right, a half if it is a tie."""
    tie = scale.values.index("tie")
    right = np.where(verdicts == tie, 0.5, (verdicts == labels).astype(np.float64))
    return np.where((labels == tie) | (verdicts < 0), np.nan, right)


def check_lengths(*columns: Sized | None) -> None:
    """Raise ValueError if columns (None: absent) differ in length."""
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: {sorted(lengths)}")


def _by_error(
    sample: Resampler, apart: FloatArray, scale: Scale, errors: Sequence[Sequence[str]]
) -> Metrics:
    """Return the mean distance (nominal: accuracy) over the rows with each kind of error."""
    scores = 1 - apart if coding.numbers_of(scale) is None else apart
    kinds = [set(row) or {"none"} for row in errors]
    return {
        kind: sample.mean(np.where([kind in row for row in kinds], scores, np.nan))
        for kind in sorted(set().union(*kinds))
    }
