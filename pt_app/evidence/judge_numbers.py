"""All numbers of one judge from its prediction rows: agreement, confidence, biases, systems."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pt_app.core.choosing import apart
from pt_app.core.metrics import FloatArray, IntArray, rouge_l
from pt_app.core.results import Check, JudgeResults, Prediction, Recalibrated, Slice, Systems
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import biases, calibration, pass_fail
from pt_app.evidence.calibration import Confidence, Fitted
from pt_app.evidence.coding import distances, numbers_of, positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.options import EvidenceOptions
from pt_app.evidence.people import distance_to_shares
from pt_app.evidence.summary import FAIL, summarise
from pt_app.evidence.systems import groupings, pairwise_accuracy, soft_pairwise_accuracy


@dataclass(frozen=True)
class _Judged:
    """A judge's rows, and positions of their labels and verdicts (-1: none)."""

    rows: Sequence[Prediction]
    labels: IntArray
    verdicts: IntArray
    scale: Scale
    sample: Resampler
    evidence: EvidenceOptions
    fitted: Fitted | None


def judge_numbers(
    rows: Sequence[Prediction],
    sample: Resampler,
    scale: Scale,
    evidence: EvidenceOptions,
    fitted: Fitted | None,
) -> JudgeResults:
    """Return the numbers of one judge.

    Args:
        rows: the judge's rows of predictions.jsonl.
        sample: the groups of the rows.
        scale: the scale of labels and verdicts.
        evidence: what the user chose.
        fitted: calibration and threshold from other rows, if there are any.
    """
    numbers = _agreement(rows, sample, scale)
    numbers.far_from_greedy = sum(apart(row.verdict, row.answered, scale) for row in rows)
    labels = positions([row.label for row in rows], scale, "label")
    verdicts = positions([row.verdict for row in rows], scale, "verdict")
    judged = _Judged(rows, labels, verdicts, scale, sample, evidence, fitted)
    if any(row.verdict_mass is not None for row in rows):
        numbers.verdict_mass = sample.share([row.verdict_mass for row in rows])
    gaps = None
    if any(row.probabilities is not None for row in rows):
        gaps = _add_confidence(numbers, judged)
    numbers.checks = _checks(judged, gaps)
    numbers.slices = _slices(judged)
    _add_sources(numbers, judged)
    if any(row.in_both_orders for row in rows):
        numbers.orders = biases.orders(rows, [row.label for row in rows], sample)
    return numbers


def _agreement(rows: Sequence[Prediction], sample: Resampler, scale: Scale) -> JudgeResults:
    greedy = any("greedy" in row.model_fields_set for row in rows)
    numeric = scale.task == "score" and any(row.expected is not None for row in rows)
    rouge = [_rouge(row) for row in rows] if any(row.raw is not None for row in rows) else None
    numbers = summarise(
        [row.label for row in rows],
        [row.verdict for row in rows],
        sample,
        scale,
        [row.answered for row in rows] if greedy else None,
        [row.expected for row in rows] if numeric else (),
        rouge,
        [row.errors or [] for row in rows] if any(row.errors for row in rows) else None,
    )
    if any(row.in_both_orders for row in rows):
        _add_orders(numbers, rows, sample)
    return numbers


def _rouge(row: Prediction) -> float | None:
    return rouge_l(row.label_feedback, row.feedback or "") if row.label_feedback else None


def _add_orders(numbers: JudgeResults, rows: Sequence[Prediction], sample: Resampler) -> None:
    """Add the accuracy by order, the consistency, and how often the first position wins."""
    labels = [row.label for row in rows]
    by_order = biases.by_order(labels, *biases.verdicts_of_orders(rows))
    if numbers.greedy is not None:
        numbers.metrics |= {name: sample.share(values) for name, values in by_order.items()}
        answers = [row.answered for row in rows], [row.swapped_greedy for row in rows]
        by_order = biases.by_order(labels, *answers)
    # A row that was not judged in the other order stays out; a parse failure in either is wrong.
    judged = np.array([row.in_both_orders for row in rows])
    strict = {
        f"{name}_strict": np.where(judged, np.nan_to_num(values), np.nan)
        for name, values in by_order.items()
        if name != "first_preference"
    }
    # In place: `answers` is one of the two.
    numbers.answers.update({n: sample.share(values) for n, values in (by_order | strict).items()})


def _add_confidence(numbers: JudgeResults, judged: _Judged) -> FloatArray:
    """Add what follows from probabilities; return confidence - accuracy of each row [n]."""
    labels, verdicts, scale, sample = judged.labels, judged.verdicts, judged.scale, judged.sample
    evidence, fitted = judged.evidence, judged.fitted
    every = calibration.probabilities_of(judged.rows, scale)
    probabilities = np.where(verdicts[:, None] < 0, np.nan, every)  # of a verdict that was read
    usual = calibration.usual_tolerance(scale)
    tolerance = usual if evidence.tolerance is None else evidence.tolerance
    confidence = calibration.confidence_of(probabilities, verdicts, labels, scale, tolerance)
    rest = verdicts, labels, scale, sample, tolerance
    numbers.calibration = calibration.calibration(probabilities, *rest)
    if fitted is not None:
        recalibrated = calibration.with_temperature(probabilities, fitted.temperature)
        after = calibration.calibration(recalibrated, *rest)
        same = {name: getattr(after, name) for name in ("ece", "overconfidence", "brier")}
        numbers.mended = Recalibrated(temperature=fitted.temperature, rows=fitted.rows, **same)
    if (known := ~np.isnan(probabilities[:, 0])).any():
        threshold, target = None, evidence.target_accuracy
        # The threshold from validation rows holds for its own target and tolerance only.
        if fitted and (fitted.tolerance, fitted.threshold.target) == (tolerance, target):
            threshold = fitted.threshold.model_copy(update={"chosen_on": "validation"})
        sure, among = (
            Confidence(confidence.sure[known], confidence.right[known]),
            sample.among(known),
        )
        numbers.selective = calibration.selective(sure, among, target, threshold)
        covered = calibration.at_coverages(sure, verdicts[known], labels[known], scale, among)
        numbers.selective.at_coverage = covered
        numbers.selective.left_out = int((~known).sum())
    if (far := distance_to_shares(judged.rows, every, scale, sample)) is not None:
        numbers.annotator_distance = far
    if scale.task == "pass_fail":
        _add_pass_fail(numbers, every[:, FAIL], judged)
    return confidence.sure - confidence.right


def _add_pass_fail(numbers: JudgeResults, fail: FloatArray, judged: _Judged) -> None:
    """Add the areas below the curves, and the cheapest threshold on the probability of FAIL.

    Rows without probabilities, whose `fail` is NaN, are left out.
    """
    known = ~np.isnan(fail)
    fail, labels = fail[known], judged.labels[known]
    evidence, fitted = judged.evidence, judged.fitted
    costs = evidence.missed_fail_costs, evidence.false_alarm_costs
    areas = pass_fail.areas(fail, labels, judged.sample.among(known))
    numbers.roc_auc, numbers.pr_auc = areas["roc_auc"], areas["pr_auc"]
    # The threshold from validation rows (None: fail no row) is the cheapest at equal costs only.
    usable = fitted is not None and "operating" in fitted.model_fields_set
    if fitted is None or not usable or costs[0] != costs[1]:
        numbers.operating = pass_fail.operating_threshold(fail, labels, *costs)
    else:
        numbers.operating = pass_fail.cost_at(fail, labels, fitted.operating, *costs)
        numbers.operating.chosen_on = "validation"


def _checks(judged: _Judged, gaps: FloatArray | None) -> dict[str, Check]:
    """Return what is 0 for a judge without biases, by name; see docs/RESULTS_JSON.md."""
    rows, labels, scale, sample = judged.rows, judged.labels, judged.scale, judged.sample
    checks = {}
    if gaps is not None:
        checks["overconfidence"] = biases.mean_check(gaps, sample)
    if scale.task == "choice":  # an option is worth no more than another
        return biases.corrected(checks)
    errors = biases.errors_of(labels, judged.verdicts, scale)
    name = "first_place" if scale.task == "pairwise" else "generosity"
    checks = {name: biases.mean_check(errors, sample), **checks}
    if any(row.in_both_orders for row in rows):
        shares = biases.first_preference(*biases.verdicts_of_orders(rows))
        checks["order"] = biases.mean_check(shares - 0.5, sample)
    features = {"length": biases.length_of(rows, scale), "copied": biases.copied_of(rows, scale)}
    for name, feature in features.items():
        if not np.isnan(feature).all():
            checks[name] = biases.partial_correlation(errors, feature, labels, sample)
    return biases.corrected(checks)


def _slices(judged: _Judged) -> dict[str, dict[str, Slice]]:
    of_rows = [row.slices or {} for row in judged.rows]
    far = distances(judged.labels, judged.verdicts, judged.scale)
    return {
        name: biases.slices([_name(slices.get(name)) for slices in of_rows], far, judged.sample)
        for name in dict.fromkeys(name for slices in of_rows for name in slices)
    }


def _name(cell: Verdict | None) -> str | None:
    """Return the name of a slice; earlier versions stored the cells of a table as they were."""
    return None if cell is None else str(cell)


def _add_sources(numbers: JudgeResults, judged: _Judged) -> None:
    """Compare rows of one source, and the systems that wrote them, if verdicts are numbers."""
    values = numbers_of(judged.scale)
    kept = np.flatnonzero(judged.verdicts >= 0).tolist()
    groups = judged.sample.index[kept].tolist()
    if values is None or len(set(groups)) == len(groups):
        return
    rows = [judged.rows[i] for i in kept]
    labels, verdicts = values[judged.labels[kept]], values[judged.verdicts[kept]]
    expected = np.array([row.expected for row in rows], dtype=np.float64)
    scores = np.where(np.isnan(expected), verdicts, expected)
    add_sources(numbers, labels, scores, [row.system for row in rows], groups)


def add_sources(
    numbers: JudgeResults,
    labels: FloatArray,
    scores: FloatArray,
    systems: Sequence[Verdict | None],
    groups: Sequence[Hashable],
) -> None:
    """Add the pairwise accuracy within sources and, of the rows that name a system, theirs."""
    numbers.within_source_pairs = pairwise_accuracy(labels, scores, Resampler(groups))
    if kept := [i for i, system in enumerate(systems) if system]:
        names, groups = [str(systems[i]) for i in kept], [groups[i] for i in kept]
        labels, scores = labels[kept], scores[kept]
        within_source, within_system = groupings(labels, scores, names, Resampler(groups))
        numbers.systems = Systems(within_source=within_source, within_system=within_system)
        numbers.systems.between_systems = soft_pairwise_accuracy(labels, scores, names, groups)
