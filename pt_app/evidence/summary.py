"""The numbers of one judge on one test set, and of the rule it must beat."""

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
from pt_app.evidence.intervals import (
    Estimate,
    Resampler,
    Statistic,
    mean_of_sums,
    share_of_sums,
)

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
    """One judge's numbers, each {"value", "low", "high", "n"}; all columns have n rows.

    `verdicts` has None for a parse failure; `constrained` is the most likely allowed verdict of
    every row, where that is known. `rouge` has None for a row whose label has no feedback; `errors`
    lists the kinds of error known to be in each row's candidate. "metrics" holds <name> over the
    rows that parsed
    and <name>_strict with each failure counted as wrong: on an ordered scale as the verdict
    farthest from the label, on a nominal one as a verdict outside it. "constrained" covers all
    rows. Raises UserError for a verdict off the scale, ValueError for columns of unequal length.
    """
    check_lengths(labels, verdicts, constrained, sample.index, rouge, errors)
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    forced = verdict if constrained is None else positions(constrained, scale, "verdict")
    if constrained is not None and (forced < 0).any():
        raise ValueError("`constrained` needs a verdict in every row: leave unscored rows out")
    metrics = agreement_metrics(sample, label, verdict, scale)
    strict = agreement_metrics(sample, label, count_failures_as_wrong(label, verdict, scale), scale)
    if rouge is not None:
        values = np.array([np.nan if value is None else value for value in rouge], dtype=float)
        metrics["rouge_l"] = mean_metric(np.where(verdict < 0, np.nan, values), sample)
        kept = np.where(np.isnan(values) | (verdict >= 0), values, 0.0)
        strict["rouge_l"] = mean_metric(kept, sample)
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
    """The numbers of a rule that answers `verdicts`, such as always the commonest label.

    "verdict" is the one that it always answers, or None where it answers several.
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
    """The numbers alone, without intervals, a parse failure (None) counted as wrong."""
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    wrong = count_failures_as_wrong(label, verdict, scale)
    (columns,), statistic = agreement_of_sums(label, scale, wrong)
    return {name: float(value[0]) for name, value in statistic(columns.sum(axis=0)).items()}


def agreement_metrics(
    sample: Resampler, labels: IntArray, verdicts: IntArray, scale: Scale
) -> dict[str, Metric]:
    """All agreement numbers over the rows whose verdict is not -1."""
    (columns,), statistic = agreement_of_sums(labels, scale, verdicts)
    estimates = sample.estimate_sums(columns, statistic)
    n = int((verdicts >= 0).sum())
    found = {name: metric(estimate, n) for name, estimate in estimates.items()}
    if scale.task == "pass_fail":
        found |= by_class(labels, verdicts, sample)
    if scale.task == "pairwise":
        found["accuracy_no_ties"] = share_metric(_without_ties(labels, verdicts, scale), sample)
    return found


def by_class(labels: IntArray, verdicts: IntArray, sample: Resampler) -> dict[str, Metric]:
    """Recall of PASS and FAIL and precision on FAIL.

    Rows whose verdict is -1 do not count; one past the scale (a parse failure) is never right.
    """
    known = verdicts >= 0
    counted = {
        "recall_pass": known & (labels == PASS),
        "recall_fail": known & (labels == FAIL),
        "precision_fail": verdicts == FAIL,
    }
    right = labels == verdicts
    columns = [(rows & right, rows) for rows in counted.values()]
    sums = np.stack([one for pair in columns for one in pair], axis=1).astype(np.float64)

    def shares(sums: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = sums[:, ::2] / sums[:, 1::2]
        return dict(zip(counted, parts.T, strict=True))

    found = sample.estimate_sums(sums, shares)
    return {name: metric(one, int(counted[name].sum())) for name, one in found.items()}


def _without_ties(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Of pairs whose label is no tie: 1 where the verdict is right, a half where it is a tie."""
    tie = scale.values.index("tie")
    right = np.where(verdicts == tie, 0.5, (verdicts == labels).astype(np.float64))
    return np.where((labels == tie) | (verdicts < 0), np.nan, right)


def mean_metric(values: Sequence[float | None] | FloatArray, sample: Resampler) -> Metric:
    """Mean of `values` with its interval; rows of None or NaN left out (n: how many count)."""
    (estimate,), n = _mean(values, sample, mean_of_sums)
    return metric(estimate, n)


def share_metric(values: Sequence[float | None] | FloatArray, sample: Resampler) -> Metric:
    """Mean of `values` between 0 and 1, whose interval stays there; else as `mean_metric`."""
    (estimate,), n = _mean(values, sample, share_of_sums)
    return metric(estimate, n)


def _mean(
    values: Sequence[float | None] | FloatArray, sample: Resampler, statistic: Statistic
) -> tuple[list[Estimate], int]:
    check_lengths(values, sample.index)
    column = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    present = ~np.isnan(column)
    columns = np.stack([np.where(present, column, 0.0), present], axis=1)
    return list(sample.estimate_sums(columns, statistic).values()), int(present.sum())


def metric(estimate: Estimate, n: int) -> Metric:
    """An estimate as results.json holds it."""
    found: Metric = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n}
    if estimate.value is None:
        found["reason"] = "no rows" if n == 0 else "all labels or all verdicts are equal"
    return found


def check_lengths(*columns: Any) -> None:
    """Raise ValueError where columns (None: absent) differ in length."""
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: {sorted(lengths)}")


def _by_error(
    sample: Resampler, apart: FloatArray, scale: Scale, errors: Sequence[Sequence[str]]
) -> dict[str, Metric]:
    """Mean distance (nominal: accuracy) over the rows that hold each kind of error."""
    scores = 1 - apart if numbers_of(scale) is None else apart
    kinds = [set(row) or {"none"} for row in errors]
    return {
        kind: mean_metric(np.where([kind in row for row in kinds], scores, np.nan), sample)
        for kind in sorted(set().union(*kinds))
    }
