"""The numbers of one judge on one test set, of the rule it must beat, and of their difference."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pt_app.errors import UserError
from pt_app.eval_model.metrics import FloatArray, IntArray, agreement, contingency
from pt_app.eval_model.verdicts import Scale, Verdict
from pt_app.evidence.intervals import RESAMPLES, Estimate, Resampler, Statistic

Metric = dict[str, Any]  # {"value", "low", "high", "n"}, and "reason" where value is None


def summarise(
    labels: Sequence[Verdict],
    verdicts: Sequence[Verdict | None],
    constrained: Sequence[Verdict],
    groups: Sequence[Hashable],
    scale: Scale,
    rouge: Sequence[float | None] | None = None,
    errors: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """One judge's numbers, each {"value", "low", "high", "n"}; all columns have n rows.

    `verdicts` has None for a parse failure; `constrained` is the most likely allowed verdict of
    every row. `rouge` has None for a row whose label has no feedback; `errors` lists the kinds of
    error known to be in each row's candidate. "metrics" holds <name> over the rows that parsed
    and <name>_strict with each failure counted as wrong: on an ordered scale as the verdict
    farthest from the label, on a nominal one as a verdict outside it. "constrained" covers all
    rows. Raises UserError for a verdict off the scale, ValueError for columns of unequal length.
    """
    _check_lengths(labels, verdicts, constrained, groups, rouge, errors)
    sample = Resampler(groups, resamples, seed)
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    forced = positions(constrained, scale, "verdict")
    if (forced < 0).any():
        raise ValueError("`constrained` needs a verdict in every row: leave unscored rows out")
    metrics = _agreement(sample, label, verdict, scale)
    strict = _agreement(sample, label, count_failures_as_wrong(label, verdict, scale), scale)
    if rouge is not None:
        values = np.array([np.nan if value is None else value for value in rouge], dtype=float)
        metrics["rouge_l"] = _mean(sample, np.where(verdict < 0, np.nan, values))
        kept = np.where(np.isnan(values) | (verdict >= 0), values, 0.0)
        strict["rouge_l"] = _mean(sample, kept)
    summary: dict[str, Any] = {
        "metrics": metrics | {f"{name}_strict": value for name, value in strict.items()},
        "constrained": _agreement(sample, label, forced, scale),
        "parse_failures": int((verdict < 0).sum()),
        "n": len(label),
        "groups": sample.groups,
        "few_groups": sample.few_groups,
    }
    if errors is not None:
        summary["by_error"] = _by_error(sample, label, forced, scale, errors)
    return summary


def commonest_label(train_labels: Sequence[Verdict], scale: Scale) -> Verdict:
    """Give the commonest label of the training split; of equally common ones the scale's first.

    Raises UserError without training labels.
    """
    if not len(train_labels):
        raise UserError("the training split has no labels: the majority baseline needs them")
    counts = Counter(positions(train_labels, scale, "training label").tolist())
    commonest: int = min(counts, key=lambda position: (-counts[position], position))
    return scale.values[commonest]


def rule_baseline(
    verdicts: Sequence[Verdict],
    labels: Sequence[Verdict],
    groups: Sequence[Hashable],
    scale: Scale,
    name: str = "majority",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The numbers of a rule that answers `verdicts`, such as always the commonest label.

    "verdict" is the one that it always answers, or None where it answers several.
    """
    _check_lengths(verdicts, labels, groups)
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    sample = Resampler(groups, resamples, seed)
    return {
        "id": name,
        "name": name,
        "verdict": verdicts[0] if len(set(verdicts)) == 1 else None,
        "metrics": _agreement(sample, label, verdict, scale),
        "parse_failures": 0,
        "n": len(label),
    }


def compare(
    labels: Sequence[Verdict],
    a: Sequence[Verdict | None],
    b: Sequence[Verdict | None],
    groups: Sequence[Hashable],
    scale: Scale,
    metric: str | None = None,
    names: tuple[str, str] = ("adapter", "base"),
    reading: str = "constrained",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Difference a - b of one number on the same rows, with its paired interval.

    `metric` is the scale's headline number unless named; a None among the verdicts counts as
    wrong. `reading` is written into the result: what the verdicts of both are.
    """
    _check_lengths(labels, a, b, groups)
    metric = metric or headline(scale)
    label = positions(labels, scale, "label")
    numbers = [
        _table_statistic(
            label, count_failures_as_wrong(label, positions(v, scale, "verdict"), scale), scale
        )
        for v in (a, b)
    ]

    def difference(weights: FloatArray) -> dict[str, FloatArray]:
        return {metric: numbers[0](weights)[metric] - numbers[1](weights)[metric]}

    sample = Resampler(groups, resamples, seed)
    estimate = sample.estimate(difference, _table_size(scale))[metric]
    return {
        "a": names[0],
        "b": names[1],
        "metric": metric,
        "reading": reading,
        **_metric(estimate, len(label)),
    }


def mean_metric(
    values: Sequence[float | None],
    groups: Sequence[Hashable],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Metric:
    """Mean of `values` with its interval, rows of None left out (n says how many count)."""
    _check_lengths(values, groups)
    column = np.array([np.nan if value is None else value for value in values], dtype=float)
    return _mean(Resampler(groups, resamples, seed), column)


def strict_agreement(
    labels: Sequence[Verdict], verdicts: Sequence[Verdict | None], scale: Scale
) -> dict[str, float]:
    """The numbers alone, without intervals, a parse failure (None) counted as wrong."""
    label, verdict = positions(labels, scale, "label"), positions(verdicts, scale, "verdict")
    statistic = _table_statistic(label, count_failures_as_wrong(label, verdict, scale), scale)
    return {name: float(value[0]) for name, value in statistic(np.ones((1, len(label)))).items()}


def headline(scale: Scale) -> str:
    """The number a scale's agreement is first told by."""
    return "kappa" if numbers_of(scale) is None else "kappa_quadratic"


def numbers_of(scale: Scale) -> FloatArray | None:
    """The scale's values [K] where they are numbers; None for a nominal scale."""
    return np.array(scale.values, dtype=np.float64) if scale.task == "score" else None


def positions(verdicts: Sequence[Verdict | None], scale: Scale, what: str) -> IntArray:
    """Position of each verdict on the scale, -1 for None. Raises UserError for one off it."""
    known: dict[Verdict | None, int] = {value: i for i, value in enumerate(scale.values)}
    known[None] = -1
    for row, verdict in enumerate(verdicts):
        if verdict not in known:
            raise UserError(
                f"{what} {verdict!r} in row {row + 1} is off the scale {scale.name}: "
                f"use one of {_shortened(scale.values)}"
            )
    return np.array([known[verdict] for verdict in verdicts], dtype=np.int64)


def _shortened(values: Sequence[Verdict]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts if len(texts) < 13 else [*texts[:3], "...", texts[-1]])


def count_failures_as_wrong(labels: IntArray, verdicts: IntArray, scale: Scale) -> IntArray:
    """Replace each -1 by the position farthest from the label, or by K on a nominal scale.

    Of two equally far ends of a scale the lower one is taken.
    """
    numbers = numbers_of(scale)
    if numbers is None:
        return np.where(verdicts < 0, len(scale.values), verdicts)
    farthest = np.abs(numbers[:, None] - numbers[None, :]).argmax(-1)
    return np.where(verdicts < 0, farthest[labels], verdicts)


def _table_size(scale: Scale) -> int:
    return len(scale.values) * (len(scale.values) + 1)


def _table_statistic(labels: IntArray, verdicts: IntArray, scale: Scale) -> Statistic:
    """Agreement over the rows whose verdict is not -1."""
    numbers, k = numbers_of(scale), len(scale.values)
    keep = verdicts >= 0
    label, verdict = labels[keep], verdicts[keep]
    if numbers is None:
        shape = (k, k + 1)
    else:  # values that never occur change no number, and cost most of a table of 0-100
        used, places = np.unique(np.stack([label, verdict]), return_inverse=True)
        label, verdict = places.reshape(2, -1)
        numbers, shape = numbers[used], (len(used), len(used))

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        kept = weights if keep.all() else weights[:, keep]
        return agreement(contingency(label, verdict, shape, kept), numbers)

    return statistic


def _agreement(
    sample: Resampler, labels: IntArray, verdicts: IntArray, scale: Scale
) -> dict[str, Metric]:
    estimates = sample.estimate(_table_statistic(labels, verdicts, scale), _table_size(scale))
    n = int((verdicts >= 0).sum())
    return {name: _metric(estimate, n) for name, estimate in estimates.items()}


def _mean(sample: Resampler, values: FloatArray) -> Metric:
    """Mean over the rows that are not NaN."""
    present = ~np.isnan(values)
    kept = np.where(present, values, 0.0)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        with np.errstate(invalid="ignore"):
            return {"mean": (weights @ kept) / (weights @ present.astype(np.float64))}

    return _metric(sample.estimate(statistic)["mean"], int(present.sum()))


def _by_error(
    sample: Resampler,
    labels: IntArray,
    verdicts: IntArray,
    scale: Scale,
    errors: Sequence[Sequence[str]],
) -> dict[str, Metric]:
    """Mean |verdict - label| (nominal: accuracy) over the rows that hold each kind of error."""
    numbers = numbers_of(scale)
    if numbers is None:
        scores = (labels == verdicts).astype(np.float64)
    else:
        scores = np.abs(numbers[labels] - numbers[verdicts])
    kinds = [set(row) or {"none"} for row in errors]
    return {
        kind: _mean(sample, np.where([kind in row for row in kinds], scores, np.nan))
        for kind in sorted(set().union(*kinds))
    }


def _metric(estimate: Estimate, n: int) -> Metric:
    metric: Metric = {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": n,
    }
    if estimate.value is None:
        metric["reason"] = "no rows" if n == 0 else "all labels or all verdicts are equal"
    return metric


def _check_lengths(*columns: Sequence[object] | None) -> None:
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise ValueError(f"columns of unequal length: {sorted(lengths)}")
