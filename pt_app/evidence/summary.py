"""The agreement numbers of one judge on one test set, and of a baseline it must beat."""

from collections.abc import Sequence, Sized

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import BaselineResults, JudgeResults, Metrics
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import coding
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.intervals import Resampler, with_counts
from pt_app.evidence.ranks import rank_agreement

PASS, FAIL = 0, 1  # positions on the scale of pass and fail


def summarise(
    labels: Sequence[Verdict],
    verdicts: Sequence[Verdict | None],
    sample: Resampler,
    scale: Scale,
    greedy: Sequence[Verdict | None] | None = None,
    expected: Sequence[float | None] = (),
    rouge: Sequence[float | None] | None = None,
    errors: Sequence[Sequence[str]] | None = None,
) -> JudgeResults:
    """Return one judge's numbers of agreement.

    Args:
        labels: the label of each row [n].
        verdicts: the judge's verdicts [n]; None for a parse failure.
        sample: the groups of the rows.
        scale: the scale of labels and verdicts.
        greedy: the verdicts of its greedy answers [n], None for a parse failure, if `verdicts` were
            chosen by their probabilities; None if `verdicts` are those of the answers.
        expected: the mean score of each row [n]; empty if they are not known.
        rouge: ROUGE-L of each row's feedback [n], None if its label has none.
        errors: the kinds of error known to be in each row's candidate [n].

    Returns:
        The numbers of answers are <name> over the rows that parsed and <name>_strict with each
        failure counted as wrong: on an ordered scale as the verdict farthest from the label, on a
        nominal one as a verdict outside of it. Correlations and squared error of verdicts that were
        chosen are those of `expected`, which need not be rounded for them.

    Raises:
        UserError: for a verdict off the scale.
        ValueError: for columns of unequal length.
    """
    check_lengths(labels, verdicts, greedy, expected or None, sample.index, rouge, errors)
    label, verdict = coding.coded(labels, verdicts, scale)
    answered = verdict if greedy is None else coding.positions(greedy, scale, "verdict")
    answers = _of_answers(sample, label, answered, scale, rouge)
    summary = JudgeResults(
        metrics=answers,
        parse_failures=int((answered < 0).sum()),
        n=len(label),
        groups=sample.groups,
        few_groups=sample.few_groups,
    )
    if greedy is not None:
        summary.metrics, summary.greedy = agreement_metrics(sample, label, verdict, scale), answers
    if expected:
        summary.metrics |= _of_expected(sample, label, expected, scale)
    if errors is not None:
        summary.by_error = _by_error(sample, coding.distances(label, verdict, scale), scale, errors)
    return summary


def _of_answers(
    sample: Resampler,
    labels: IntArray,
    verdicts: IntArray,
    scale: Scale,
    rouge: Sequence[float | None] | None,
) -> Metrics:
    metrics = agreement_metrics(sample, labels, verdicts, scale)
    wrong = coding.count_failures_as_wrong(labels, verdicts, scale)
    strict = agreement_metrics(sample, labels, wrong, scale)
    if rouge is not None:
        values = np.array(rouge, dtype=np.float64)  # None becomes NaN
        metrics["rouge_l"] = sample.share(np.where(verdicts < 0, np.nan, values))
        strict["rouge_l"] = sample.share(np.where(verdicts < 0, 0 * values, values))
    return metrics | {f"{name}_strict": value for name, value in strict.items()}


def _of_expected(
    sample: Resampler, labels: IntArray, expected: Sequence[float | None], scale: Scale
) -> Metrics:
    """Return correlations and squared error of expected scores, over the rows that have one."""
    values, scores = np.array(scale.values, np.float64)[labels], np.array(expected, np.float64)
    squares = with_counts((scores - values) ** 2)

    def rmse(sums: FloatArray) -> dict[str, FloatArray]:
        return {"rmse": np.sqrt(sums[:, 0] / sums[:, 1])}

    error = sample.estimate_sums(squares, rmse, int(squares[:, 1].sum()))
    return rank_agreement(values, scores, sample) | error


def baseline_results(
    baseline: Baseline, labels: Sequence[Verdict], sample: Resampler, scale: Scale
) -> BaselineResults:
    """Return the numbers of a baseline; its `verdict` is None if it answers several."""
    verdicts, expected = baseline.verdicts, baseline.expected
    check_lengths(verdicts, expected or None, labels, sample.index)
    label, verdict = coding.coded(labels, verdicts, scale)
    metrics = agreement_metrics(sample, label, verdict, scale)
    if expected:
        metrics |= _of_expected(sample, label, expected, scale)
    return BaselineResults(
        id=baseline.name,
        name=baseline.name,
        verdict=verdicts[0] if len(set(verdicts)) == 1 else None,
        metrics=metrics,
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
    nominal = coding.numbers_of(scale) is None
    scores, name = (1 - apart, "share") if nominal else (apart, "mean")
    kinds = [set(row) or {"none"} for row in errors]
    return {
        kind: sample.mean(np.where([kind in row for row in kinds], scores, np.nan), name)
        for kind in sorted(set().union(*kinds))
    }
