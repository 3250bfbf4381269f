"""All numbers of one judge from its prediction rows: agreement, confidence, biases, systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray, rouge_l
from pt_app.core.orders import consistency, first_preference, flipped
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import biases, calibration, pass_fail
from pt_app.evidence.calibration import Confidence
from pt_app.evidence.coding import distances, numbers_of, positions
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.options import Asked
from pt_app.evidence.summary import FAIL, share_metric, summarise
from pt_app.evidence.systems import groupings, pairwise_accuracy, soft_pairwise_accuracy

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Verdicts:
    """Positions of the labels and of the verdicts whose biases are measured (-1: none)."""

    labels: IntArray
    verdicts: IntArray
    scale: Scale
    sample: Resampler


def judge_numbers(
    rows: Sequence[Row],
    sample: Resampler,
    scale: Scale,
    asked: Asked,
    fitted: Fitted | None = None,
) -> dict[str, Any]:
    """Return the numbers of one judge as results.json holds them (docs/RESULTS_JSON.md).

    Args:
        rows: the judge's rows of predictions.jsonl.
        sample: the groups of the rows.
        scale: the scale of labels and verdicts.
        asked: what the user chose.
        fitted: calibration and threshold from other rows, if there are any.
    """
    numbers = _agreement(rows, sample, scale)
    reading = "constrained" if "constrained" in numbers else "verdict"
    labels = positions([row["label"] for row in rows], scale, "label")
    verdicts = positions([row[reading] for row in rows], scale, "verdict")
    columns = _Verdicts(labels, verdicts, scale, sample)
    if any(row.get("verdict_mass") is not None for row in rows):
        numbers["verdict_mass"] = share_metric([row.get("verdict_mass") for row in rows], sample)
    gaps = None
    if any(row.get("probabilities") is not None for row in rows):
        given = [row.get("probabilities") for row in rows]
        probabilities = calibration.checked(given, scale, "probabilities")
        tolerance = asked.tolerance
        if tolerance is None:
            tolerance = calibration.usual_tolerance(scale)
        asked = replace(asked, tolerance=tolerance)
        confidence = calibration.confidence_of(probabilities, labels, scale, tolerance)
        gaps = confidence.sure - confidence.right
        numbers |= _calibration(probabilities, columns, tolerance, fitted)
        if not np.isnan(probabilities).any():
            numbers["selective"] = _selective(confidence, probabilities, columns, asked, fitted)
            if scale.task == "pass_fail":
                numbers |= _pass_fail(probabilities[:, FAIL], columns, asked, fitted)
    numbers["checks"] = _checks(rows, columns, gaps)
    numbers["slices"] = _slices(rows, columns)
    numbers |= _within_sources(rows, columns)
    if any("swapped" in row for row in rows):
        numbers["orders"] = biases.orders(rows, labels, verdicts, sample, scale)
    return numbers


def _agreement(rows: Sequence[Row], sample: Resampler, scale: Scale) -> dict[str, Any]:
    constrained = [row["constrained"] for row in rows]
    answered = any(row.get("raw") is not None for row in rows)
    has_errors = any(row.get("errors") for row in rows)
    numbers = summarise(
        [row["label"] for row in rows],
        [row["verdict"] for row in rows],
        None if None in constrained else constrained,
        sample,
        scale,
        rouge=[_rouge(row) for row in rows] if answered else None,
        errors=[row.get("errors") or [] for row in rows] if has_errors else None,
    )
    if any("swapped" in row for row in rows):
        _add_orders(numbers, rows, sample)
    return numbers


def _rouge(row: Row) -> float | None:
    label = row.get("label_feedback")
    return rouge_l(label, row.get("feedback") or "") if label else None


def _add_orders(numbers: dict[str, Any], rows: Sequence[Row], sample: Resampler) -> None:
    """Add the accuracy by order, the consistency, and how often the first position wins."""
    labels = [row["label"] for row in rows]
    for part, name, other in (
        ("metrics", "verdict", "swapped"),
        ("constrained", "constrained", "swapped_constrained"),
    ):
        if part in numbers and any(other in row for row in rows):
            both = [row[name] for row in rows], [row.get(other) for row in rows]
            by_order = _by_order(labels, *both) | {"first_preference": first_preference(*both)}
            numbers[part] |= {key: share_metric(v, sample) for key, v in by_order.items()}
    # A row that was not judged in the other order stays out; a parse failure in either is wrong.
    own = [row["verdict"] for row in rows], [row.get("swapped") for row in rows]
    for key, values in _by_order(labels, *own).items():
        strict = [
            float(bool(value)) if "swapped" in row else None
            for row, value in zip(rows, values, strict=True)
        ]
        numbers["metrics"][f"{key}_strict"] = share_metric(strict, sample)


def _by_order(
    labels: Sequence[Verdict], first: Sequence[Verdict | None], second: Sequence[Verdict | None]
) -> dict[str, list[float | None]]:
    """Return whether each pair is right in the other order, right in both, and the same in both.

    1 or 0; None where an order that counts gave no verdict.
    """
    pairs = list(zip(first, map(flipped, second), labels, strict=True))
    return {
        "accuracy_swapped": [None if b is None else float(b == label) for _, b, label in pairs],
        "accuracy_both_orders": [
            None if None in (a, b) else float(a == b == label) for a, b, label in pairs
        ],
        "order_consistency": consistency(first, second),
    }


def _calibration(
    probabilities: FloatArray, columns: _Verdicts, tolerance: float, fitted: Fitted | None
) -> dict[str, Any]:
    """Return the calibration, and with `fitted` that after the temperature ("mended")."""
    rest = columns.labels, columns.scale, columns.sample, tolerance
    numbers: dict[str, Any] = {"calibration": calibration.calibration(probabilities, *rest)}
    if fitted is not None:
        recalibrated = calibration.with_temperature(probabilities, fitted.temperature)
        after = calibration.calibration(recalibrated, *rest)
        numbers["mended"] = {"temperature": fitted.temperature, "rows": fitted.rows}
        numbers["mended"] |= {name: after[name] for name in ("ece", "overconfidence", "brier")}
    return numbers


def _selective(
    confidence: Confidence,
    probabilities: FloatArray,
    columns: _Verdicts,
    asked: Asked,
    fitted: Fitted | None,
) -> dict[str, Any]:
    """Return the numbers of selective judging.

    The threshold is the one from validation rows if its target and tolerance are those asked for.
    """
    labels, scale, sample = columns.labels, columns.scale, columns.sample
    threshold: dict[str, Any] | None = None
    chosen_for = asked.tolerance, asked.target_accuracy
    if fitted is not None and (fitted.tolerance, fitted.threshold["target"]) == chosen_for:
        threshold = dict(fitted.threshold) | {"chosen_on": "validation"}
    numbers = calibration.selective(confidence, sample, asked.target_accuracy, threshold)
    likeliest = probabilities.argmax(axis=1)
    surest = calibration.at_coverages(confidence, likeliest, labels, scale, sample)
    return numbers | {"at_coverage": surest}


def _pass_fail(
    fail: FloatArray, columns: _Verdicts, asked: Asked, fitted: Fitted | None
) -> dict[str, Any]:
    """Return the areas below the curves, and the cheapest threshold on the probability of FAIL."""
    labels, costs = columns.labels, (asked.missed_fail_costs, asked.false_alarm_costs)
    if fitted is None or fitted.operating is None:
        operating = pass_fail.operating_threshold(fail, labels, *costs)
    else:
        operating = pass_fail.cost_at(fail, labels, fitted.operating, *costs)
        operating["chosen_on"] = "validation"
    return pass_fail.areas(fail, labels, columns.sample) | {"operating": operating}


def _checks(
    rows: Sequence[Row], columns: _Verdicts, gaps: FloatArray | None
) -> dict[str, dict[str, Any]]:
    """Return what is 0 for a judge without biases, by name; see docs/RESULTS_JSON.md."""
    labels, scale, sample = columns.labels, columns.scale, columns.sample
    errors = biases.errors_of(labels, columns.verdicts, scale)
    name = "first_place" if scale.task == "pairwise" else "generosity"
    checks = {name: biases.mean_check(errors, sample)}
    if gaps is not None:
        checks["overconfidence"] = biases.mean_check(gaps, sample)
    if any("swapped" in row for row in rows):
        first, swapped = biases.columns_of_orders(rows)
        shares = first_preference([row[first] for row in rows], [row.get(swapped) for row in rows])
        checks["order"] = biases.mean_check(np.array(shares, dtype=np.float64) - 0.5, sample)
    features = {"length": biases.length_of(rows, scale), "copied": biases.copied_of(rows, scale)}
    for name, feature in features.items():
        if not np.isnan(feature).all():
            checks[name] = biases.partial_correlation(errors, feature, labels, sample)
    return biases.corrected(checks)


def _slices(rows: Sequence[Row], columns: _Verdicts) -> dict[str, Any]:
    of_rows = [row.get("slices") or {} for row in rows]
    apart = distances(columns.labels, columns.verdicts, columns.scale)
    return {
        name: biases.slices([slices.get(name) for slices in of_rows], apart, columns.sample)
        for name in dict.fromkeys(name for slices in of_rows for name in slices)
    }


def _within_sources(rows: Sequence[Row], columns: _Verdicts) -> dict[str, Any]:
    """Compare rows of one source, and the systems that wrote them, if verdicts are numbers."""
    numbers = numbers_of(columns.scale)
    kept = np.flatnonzero(columns.verdicts >= 0).tolist()
    groups = columns.sample.index[kept].tolist()
    if numbers is None or len(set(groups)) == len(groups):
        return {}
    scores = np.array(
        [
            numbers[columns.verdicts[i]] if rows[i].get("expected") is None else rows[i]["expected"]
            for i in kept
        ]
    )
    systems = [rows[i].get("system") for i in kept]
    return source_numbers(numbers[columns.labels[kept]], scores, systems, groups)


def source_numbers(
    labels: FloatArray, scores: FloatArray, systems: Sequence[Any], groups: Sequence[Any]
) -> dict[str, Any]:
    """Return the pairwise accuracy within sources and, if rows name systems, their statistics."""
    sample = Resampler(groups)
    numbers: dict[str, Any] = {"within_source_pairs": pairwise_accuracy(labels, scores, sample)}
    if any(systems):
        names = [str(system) for system in systems]
        numbers["systems"] = {
            **groupings(labels, scores, names, sample),
            "between_systems": soft_pairwise_accuracy(labels, scores, names, groups),
        }
    return numbers
