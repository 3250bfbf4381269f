"""The agreement numbers of one judge on one test set, and of a baseline it must beat."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import (
    agreement_of_sums,
    count_failures_as_wrong,
    distances,
    numbers_of,
    positions,
)
from pt_app.evidence.intervals import Estimate, Resampler

PASS, FAIL = 0, 1  # positions on the scale of pass and fail
Metric = dict[str, Any]  # {"value", "low", "high", "n"}, and "reason" where value is None


def summarise(
    labels: Sequence[Verdict],
    verdicts: Sequence[Verdict | None],
    constrained: Sequence[Verdict] | None,
    sample: Resampler,
    scale: Scale,
    rouge: Sequence[float | None] | None = None,
    errors: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return one judge's numbers, each {"value", "low", "high", "n"}.

    Args:
        labels: the label of each row [n].
        verdicts: the judge's own verdicts [n], None for a parse failure.
        constrained: the constrained verdict of every row [n]; None if they are not known.
        sample: the groups of the rows.
        scale: the scale of labels and verdicts.
        rouge: ROUGE-L of each row's feedback [n], None if its label has none.
        errors: the kinds of error known to be in each row's candidate [n].

    Returns:
        "metrics" holds <name> over the rows that parsed and <name>_strict with each failure counted
        as wrong: on an ordered scale as the verdict farthest from the label, on a nominal one as a
        verdict outside of it. "constrained" covers all rows.

    Raises:
        UserError: for a verdict off the scale.
        ValueError: for columns of unequal length.
    """
    check_lengths(labels, verdicts, constrained, sample.index, rouge, errors)
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    forced = verdict if constrained is None else positions(constrained, scale, "verdict")
    if constrained is not None and (forced < 0).any():
        raise ValueError("`constrained` needs a verdict in every row: leave unscored rows out")
    metrics = agreement_metrics(sample, label, verdict, scale)
    strict = agreement_metrics(sample, label, count_failures_as_wrong(label, verdict, scale), scale)
    if rouge is not None:
        values = np.array(rouge, dtype=np.float64)  # None becomes NaN
        metrics["rouge_l"] = share_metric(np.where(verdict < 0, np.nan, values), sample)
        kept = np.where(np.isnan(values) | (verdict >= 0), values, 0.0)
        strict["rouge_l"] = share_metric(kept, sample)
    summary: dict[str, Any] = {
        "metrics": metrics | {f"{name}_strict": value for name, value in strict.items()},
        **({"constrained": agreement_metrics(sample, label, forced, scale)} if constrained else {}),
        "parse_failures": int((verdict < 0).sum()),
        "n": len(label),
        "groups": sample.groups,
        "few_groups": sample.few_groups,
    }
    if errors is not None:
        summary["by_error"] = _by_error(sample, distances(label, forced, scale), scale, errors)
    return summary


def rule_baseline(
    verdicts: Sequence[Verdict],
    labels: Sequence[Verdict],
    sample: Resampler,
    scale: Scale,
    name: str = "majority",
) -> dict[str, Any]:
    """Return the numbers of a baseline that answers `verdicts`, such as always the majority label.

    "verdict" is the one that it always answers, or None if it answers several.
    """
    check_lengths(verdicts, labels, sample.index)
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    return {
        "id": name,
        "name": name,
        "verdict": verdicts[0] if len(set(verdicts)) == 1 else None,
        "metrics": agreement_metrics(sample, label, verdict, scale),
        "parse_failures": 0,
        "n": len(label),
    }


def strict_agreement(
    labels: Sequence[Verdict], verdicts: Sequence[Verdict | None], scale: Scale
) -> dict[str, float]:
    """Return the numbers without intervals, a parse failure (None) counted as wrong."""
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    wrong = count_failures_as_wrong(label, verdict, scale)
    (columns,), statistic = agreement_of_sums(label, scale, wrong)
    return {name: float(value[0]) for name, value in statistic(columns.sum(axis=0)).items()}


def agreement_metrics(
    sample: Resampler, labels: IntArray, verdicts: IntArray, scale: Scale
) -> dict[str, Metric]:
    """Return all agreement numbers over the rows whose verdict is not -1."""
    (columns,), statistic = agreement_of_sums(labels, scale, verdicts)
    estimates = sample.estimate_sums(columns, statistic)
    n = int((verdicts >= 0).sum())
    metrics = {name: metric(estimate, n) for name, estimate in estimates.items()}
    if scale.task == "pass_fail":
        metrics |= by_class(labels, verdicts, sample)
    if scale.task == "pairwise":
        metrics["accuracy_no_ties"] = share_metric(_without_ties(labels, verdicts, scale), sample)
    return metrics


def by_class(labels: IntArray, verdicts: IntArray, sample: Resampler) -> dict[str, Metric]:
    """Return the recall of PASS and of FAIL, and the precision of FAIL.

    Rows whose verdict is -1 do not count; one past the scale (a parse failure) is never right.
    """
    parsed = verdicts >= 0
    counted = {
        "recall_pass": parsed & (labels == PASS),
        "recall_fail": parsed & (labels == FAIL),
        "precision_fail": verdicts == FAIL,
    }
    right = labels == verdicts
    columns = [column for rows in counted.values() for column in (rows & right, rows)]
    sums = np.stack(columns, axis=1).astype(np.float64)

    def shares(sums: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = sums[:, ::2] / sums[:, 1::2]
        return dict(zip(counted, parts.T, strict=True))

    estimates = sample.estimate_sums(sums, shares)
    return {name: metric(one, int(counted[name].sum())) for name, one in estimates.items()}


def _without_ties(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Score the pairs whose label is no tie: 1 if the verdict is right, a half if it is a tie."""
    tie = scale.values.index("tie")
    right = np.where(verdicts == tie, 0.5, (verdicts == labels).astype(np.float64))
    return np.where((labels == tie) | (verdicts < 0), np.nan, right)


def mean_metric(
    values: Sequence[float | None] | FloatArray, sample: Resampler, name: str = "mean"
) -> Metric:
    """Return the mean of `values` [n] with its interval; None and NaN do not count."""
    check_lengths(values, sample.index)
    return metric(*sample.mean(np.array(values, dtype=np.float64), name))


def share_metric(values: Sequence[float | None] | FloatArray, sample: Resampler) -> Metric:
    """Return the mean of `values` between 0 and 1, whose interval stays there."""
    return mean_metric(values, sample, "share")


def metric(estimate: Estimate, n: int) -> Metric:
    """Return an estimate as results.json holds it."""
    number: Metric = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n}
    if estimate.value is None:
        number["reason"] = "no rows" if n == 0 else "all labels or all verdicts are equal"
    return number


def check_lengths(*columns: Any) -> None:
    """Raise ValueError if columns (None: absent) differ in length."""
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: {sorted(lengths)}")


def _by_error(
    sample: Resampler, apart: FloatArray, scale: Scale, errors: Sequence[Sequence[str]]
) -> dict[str, Metric]:
    """Return the mean distance (nominal: accuracy) over the rows with each kind of error."""
    scores = 1 - apart if numbers_of(scale) is None else apart
    kinds = [set(row) or {"none"} for row in errors]
    return {
        kind: mean_metric(np.where([kind in row for row in kinds], scores, np.nan), sample)
        for kind in sorted(set().union(*kinds))
    }
