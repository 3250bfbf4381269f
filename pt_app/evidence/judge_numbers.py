"""All numbers of one judge from its prediction rows: agreement, confidence, biases, systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray, rouge_l
from pt_app.core.orders import consistency, first_preference, flipped
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import biases
from pt_app.evidence.calibration import (
    calibration,
    checked,
    confidence_of,
    usual_tolerance,
    with_temperature,
)
from pt_app.evidence.coding import distances, numbers_of, positions
from pt_app.evidence.fitted import Fitted
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.order import orders
from pt_app.evidence.pass_fail import cost_at, operating_threshold, pr_auc, roc_auc
from pt_app.evidence.selective import at_coverages, selective
from pt_app.evidence.summary import FAIL, mean_metric, share_metric, summarise
from pt_app.evidence.systems import groupings, pairwise_accuracy, soft_pairwise_accuracy

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a user may choose: see `judge agree --help`. None: what is usual for the scale."""

    target_accuracy: float = 0.9
    tolerance: float | None = None
    missed_fail_costs: float = 1.0
    false_alarm_costs: float = 1.0


@dataclass(frozen=True)
class _Verdicts:
    """Positions of labels and of the verdicts that biases are looked for in (-1: none)."""

    labels: IntArray
    said: IntArray
    scale: Scale
    sample: Resampler


def judge_numbers(
    rows: Sequence[Row],
    sample: Resampler,
    scale: Scale,
    asked: Asked,
    fitted: Fitted | None = None,
) -> dict[str, Any]:
    """The numbers of one judge as results.json holds them (docs/RESULTS_JSON.md).

    `fitted` is what other rows taught about its confidence.
    """
    found = _agreement(rows, sample, scale)
    likeliest = "constrained" in found
    said = positions([row["constrained" if likeliest else "verdict"] for row in rows], scale, "")
    labels = positions([row["label"] for row in rows], scale, "label")
    columns = _Verdicts(labels, said, scale, sample)
    if any(row.get("verdict_mass") is not None for row in rows):
        found["verdict_mass"] = mean_metric([row.get("verdict_mass") for row in rows], sample)
    gaps = None
    if any(row.get("probabilities") is not None for row in rows):
        probabilities = checked([row.get("probabilities") for row in rows], scale, "probabilities")
        found |= _confidence(probabilities, columns, asked, fitted)
        gaps = found.pop("gaps")
    found["checks"] = _checks(rows, columns, gaps)
    found["slices"] = _slices(rows, columns)
    found |= _within_sources(rows, columns)
    if any("swapped" in row for row in rows):
        found["orders"] = orders(rows, labels, said, sample, scale)
    return found


def _agreement(rows: Sequence[Row], sample: Resampler, scale: Scale) -> dict[str, Any]:
    answered = any(row.get("raw") is not None for row in rows)
    rouge = [
        rouge_l(row["label_feedback"], row.get("feedback") or "")
        if row.get("label_feedback")
        else None
        for row in rows
    ]
    constrained = [row["constrained"] for row in rows]
    found = summarise(
        [row["label"] for row in rows],
        [row["verdict"] for row in rows],
        None if None in constrained else constrained,
        sample,
        scale,
        rouge=rouge if answered else None,
        errors=[row.get("errors") or [] for row in rows]
        if any(row.get("errors") for row in rows)
        else None,
    )
    if any("swapped" in row for row in rows):
        _add_orders(found, rows, sample)
    return found


def _add_orders(found: dict[str, Any], rows: Sequence[Row], sample: Resampler) -> None:
    """Add the accuracy by order, how far both orders agree, and how often the first place wins."""
    labels = [row["label"] for row in rows]
    names = [
        ("metrics", "verdict", "swapped"),
        ("constrained", "constrained", "swapped_constrained"),
    ]
    for part, name, other in names:
        if part not in found or not any(other in row for row in rows):
            continue
        both = [row[name] for row in rows], [row.get(other) for row in rows]
        for key, values in _by_order(labels, *both).items():
            found[part][key] = share_metric(values, sample)
        found[part]["first_preference"] = share_metric(first_preference(*both), sample)
    # A row that was not judged in the other order stays out; a parse failure in either is a miss.
    own = [row["verdict"] for row in rows], [row.get("swapped") for row in rows]
    for key, values in _by_order(labels, *own).items():
        strict = [
            float(bool(one)) if "swapped" in row else None
            for row, one in zip(rows, values, strict=True)
        ]
        found["metrics"][f"{key}_strict"] = share_metric(strict, sample)


def _by_order(
    labels: Sequence[Verdict], first: Sequence[Verdict | None], second: Sequence[Verdict | None]
) -> dict[str, list[float | None]]:
    """Say of each pair whether it is right in the other order, right in both, and the same in both.

    1, 0, or None where an order that it takes gave no verdict.
    """
    other = [flipped(verdict) for verdict in second]
    return {
        "accuracy_swapped": [
            None if said is None else float(said == label)
            for said, label in zip(other, labels, strict=True)
        ],
        "accuracy_both_orders": [
            None if None in (one, two) else float(one == label == two)
            for one, two, label in zip(first, other, labels, strict=True)
        ],
        "order_consistency": consistency(first, second),
    }


def _confidence(
    probabilities: FloatArray, columns: _Verdicts, asked: Asked, fitted: Fitted | None
) -> dict[str, Any]:
    """Calibration and selective judging over the rows that have probabilities."""
    scale, sample = columns.scale, columns.sample
    tolerance = usual_tolerance(scale) if asked.tolerance is None else asked.tolerance
    confidence = confidence_of(probabilities, columns.labels, scale, tolerance)
    found: dict[str, Any] = {
        "calibration": calibration(probabilities, columns.labels, scale, sample, tolerance),
        "gaps": confidence.sure - confidence.right,
    }
    if fitted is not None:
        mended = with_temperature(probabilities, fitted.temperature)
        after = calibration(mended, columns.labels, scale, sample, tolerance)
        names = ("ece", "overconfidence", "brier")
        found["mended"] = {"temperature": fitted.temperature, "rows": fitted.rows}
        found["mended"] |= {name: after[name] for name in names}
    if not np.isnan(probabilities).any():
        threshold = None
        if fitted is not None and fitted.tolerance == tolerance:
            same = fitted.threshold["target"] == asked.target_accuracy
            threshold = dict(fitted.threshold) | {"chosen_on": "validation"} if same else None
        found["selective"] = selective(confidence, sample, asked.target_accuracy, threshold)
        likeliest = probabilities.argmax(axis=1)
        found["selective"]["at_coverage"] = at_coverages(
            confidence, likeliest, columns.labels, scale, sample
        )
        if scale.task == "pass_fail":
            fail = probabilities[:, FAIL]
            costs = asked.missed_fail_costs, asked.false_alarm_costs
            found["roc_auc"] = roc_auc(fail, columns.labels, sample)
            found["pr_auc"] = pr_auc(fail, columns.labels, sample)
            found["operating"] = operating_threshold(fail, columns.labels, *costs)
            if fitted is not None and fitted.operating is not None:
                chosen = cost_at(fail, columns.labels, fitted.operating, *costs)
                found["operating"] = chosen | {"chosen_on": "validation"}
    return found


def _checks(
    rows: Sequence[Row], columns: _Verdicts, gaps: FloatArray | None
) -> dict[str, dict[str, Any]]:
    """What should be 0 for a judge without biases, by name; see docs/RESULTS_JSON.md."""
    labels, scale, sample = columns.labels, columns.scale, columns.sample
    errors = biases.errors_of(labels, columns.said, scale)
    name = "first_place" if scale.task == "pairwise" else "generosity"
    found = {name: biases.mean_check(errors, sample)}
    if gaps is not None:
        found["overconfidence"] = biases.mean_check(gaps, sample)
    if any("swapped" in row for row in rows):
        which = "constrained" if any(row.get("swapped_constrained") for row in rows) else "verdict"
        other = "swapped_constrained" if which == "constrained" else "swapped"
        first = first_preference([row[which] for row in rows], [row.get(other) for row in rows])
        liking = np.array([np.nan if one is None else one - 0.5 for one in first])
        found["order"] = biases.mean_check(liking, sample)
    features = {"length": biases.length_of(rows, scale), "copied": biases.copied_of(rows, scale)}
    for name, feature in features.items():
        if not np.isnan(feature).all():
            found[name] = biases.partial_correlation(errors, feature, labels, sample)
    return biases.corrected(found)


def _slices(rows: Sequence[Row], columns: _Verdicts) -> dict[str, Any]:
    names = {name: None for row in rows for name in row.get("slices") or ()}
    apart = distances(columns.labels, columns.said, columns.scale)
    return {
        name: biases.slices(
            [(row.get("slices") or {}).get(name) for row in rows], apart, columns.sample
        )
        for name in names
    }


def _within_sources(rows: Sequence[Row], columns: _Verdicts) -> dict[str, Any]:
    """Pairs of rows of one source, and the systems that wrote them, where verdicts are numbers."""
    numbers = numbers_of(columns.scale)
    kept = np.flatnonzero(columns.said >= 0).tolist()
    groups = columns.sample.index[kept].tolist()
    if numbers is None or len(set(groups)) == len(groups):
        return {}
    scores = np.array(
        [
            numbers[columns.said[i]] if rows[i].get("expected") is None else rows[i]["expected"]
            for i in kept
        ]
    )
    systems = [rows[i].get("system") for i in kept]
    return source_numbers(numbers[columns.labels[kept]], scores, systems, groups)


def source_numbers(
    labels: FloatArray, scores: FloatArray, systems: Sequence[Any], groups: Sequence[Any]
) -> dict[str, Any]:
    """Pairwise accuracy within sources; where rows name systems, the statistics of these."""
    sample = Resampler(groups)
    found: dict[str, Any] = {"within_source_pairs": pairwise_accuracy(labels, scores, sample)}
    if any(systems):
        names = [str(system) for system in systems]
        found["systems"] = {
            **groupings(labels, scores, names, sample),
            "between_systems": soft_pairwise_accuracy(labels, scores, names, groups),
        }
    return found
