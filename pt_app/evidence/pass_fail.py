"""Pass or fail: each class's recall, the threshold that costs least, and a population's pass rate.

FAIL is the class that a judge is there to find.
"""

import math
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.evidence.intervals import CONFIDENCE, Resampler
from pt_app.evidence.summary import FAIL, PASS, Metric, metric


def pr_auc(fail: FloatArray, labels: IntArray, sample: Resampler) -> Metric:
    """Average precision of `fail` (the probability of FAIL, [n]) at finding FAIL, and its interval.

    Sum over thresholds of precision times the recall won; rows of equal probability share one
    threshold. A judge that knows nothing has the share of FAIL.
    """
    order, starts, is_fail = _by_threshold(fail, labels)

    def area(weights: FloatArray) -> dict[str, FloatArray]:
        rows = np.add.reduceat(weights[:, order], starts, axis=1).cumsum(axis=1)
        hits = np.add.reduceat(weights[:, order] * is_fail, starts, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(rows > 0, hits.cumsum(axis=1) / rows, 0.0)
            return {"pr_auc": (precision * hits).sum(axis=1) / hits.sum(axis=1)}

    return metric(sample.estimate(area)["pr_auc"], len(labels))


def roc_auc(fail: FloatArray, labels: IntArray, sample: Resampler) -> Metric:
    """Area below the ROC curve of `fail` (the probability of FAIL, [n]) as a sign of FAIL.

    The probability that a FAIL row has a higher one than a PASS row, equal ones counted half
    (Hanley and McNeil 1982). Undefined where all labels are equal.
    """
    order, starts, is_fail = _by_threshold(fail, labels)

    def area(weights: FloatArray) -> dict[str, FloatArray]:
        rows = np.add.reduceat(weights[:, order], starts, axis=1)
        fails = np.add.reduceat(weights[:, order] * is_fail, starts, axis=1)
        passes = rows - fails
        above = fails.cumsum(axis=1) - fails / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = fails.sum(axis=1) * passes.sum(axis=1)
            return {"roc_auc": (passes * above).sum(axis=1) / pairs}

    return metric(sample.estimate(area)["roc_auc"], len(labels))


def _by_threshold(fail: FloatArray, labels: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Order the rows by falling probability of FAIL.

    Returns the order [n], where each level of equal probabilities starts in it, and whether each
    ordered row is a FAIL.
    """
    order = np.argsort(-fail, kind="stable")
    starts = np.flatnonzero(np.diff(-fail[order], prepend=-np.inf) > 0)
    return order, starts, (labels[order] == FAIL).astype(np.float64)


def operating_threshold(
    fail: FloatArray, labels: IntArray, missed: float = 1.0, false_alarm: float = 1.0
) -> dict[str, Any]:
    """The probability of FAIL from which on to fail a row, at least cost on these rows.

    `missed` is what passing a FAIL costs, `false_alarm` what failing a PASS costs. "cost" is the
    mean cost a row at the threshold, "cost_of_likeliest" that of the likelier verdict.
    """
    order = np.argsort(-fail, kind="stable")
    is_fail = (labels[order] == FAIL).astype(np.float64)
    failed = np.concatenate([[0.0], is_fail.cumsum()])
    alarms = np.concatenate([[0.0], (1 - is_fail).cumsum()])
    cost = missed * (is_fail.sum() - failed) + false_alarm * alarms
    ordered = fail[order]
    # A threshold cannot part rows of equal probability.
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) + 1
    places = np.concatenate([[0], ends])
    best = int(places[cost[places].argmin()])
    return {
        "threshold": None if best == 0 else float(ordered[best - 1]),
        "cost": float(cost[best] / len(labels)),
        "cost_of_likeliest": _cost(fail >= 0.5, labels, missed, false_alarm),
        "missed_fail_costs": missed,
        "false_alarm_costs": false_alarm,
        "n": len(labels),
    }


def cost_at(
    fail: FloatArray,
    labels: IntArray,
    threshold: float,
    missed: float = 1.0,
    false_alarm: float = 1.0,
) -> dict[str, Any]:
    """What a threshold found on other rows costs on these; as `operating_threshold` tells it."""
    return {
        "threshold": threshold,
        "cost": _cost(fail >= threshold, labels, missed, false_alarm),
        "cost_of_likeliest": _cost(fail >= 0.5, labels, missed, false_alarm),
        "missed_fail_costs": missed,
        "false_alarm_costs": false_alarm,
        "n": len(labels),
    }


def _cost(failed: Any, labels: IntArray, missed: float, false_alarm: float) -> float:
    """Mean cost a row of failing some."""
    cost = missed * ((labels == FAIL) & ~failed) + false_alarm * ((labels == PASS) & failed)
    return float(cost.mean())


def corrected_pass_rate(
    passed: int, population: int, labels: IntArray, verdicts: IntArray
) -> dict[str, Any]:
    """The share of a population that would pass a person, from a judge's verdicts on it.

    `passed` of `population` rows were passed; `labels` and `verdicts` are rows whose truth is
    known, from which the judge's two error rates are. The estimate is Rogan and Gladen's (1978),
    the interval Lang and Reiczigel's (2014), which covers both uncertainties; so arXiv 2511.21140,
    "How to correctly report LLM-as-a-judge evaluations". Rows count as independent. Null where the
    judge is no better than chance.
    """
    from scipy.special import ndtri

    known = verdicts >= 0
    of_pass, of_fail = known & (labels == PASS), known & (labels == FAIL)
    m1, m0 = int(of_pass.sum()), int(of_fail.sum())
    right1, right0 = int((verdicts[of_pass] == PASS).sum()), int((verdicts[of_fail] == FAIL).sum())
    found: dict[str, Any] = {"raw": passed / population if population else None, "n": population}
    found |= {"value": None, "low": None, "high": None, "labelled": m1 + m0}
    if not population or not m1 or not m0:
        return found | {"reason": "no rows"}
    q1, q0 = right1 / m1, right0 / m0
    if q1 + q0 <= 1:
        return found | {"reason": "the judge tells pass from fail no better than chance"}
    z = -float(ndtri((1 - CONFIDENCE) / 2))
    n = population + z**2
    p = (passed + z**2 / 2) / n
    m1, m0 = m1 + 2, m0 + 2
    s1, s0 = (right1 + 1) / m1, (right0 + 1) / m0
    slope = s1 + s0 - 1
    if slope <= 0:
        return found | {"reason": "the judge tells pass from fail no better than chance"}
    rate = (p + s0 - 1) / slope
    spread1, spread0 = s1 * (1 - s1) / m1, s0 * (1 - s0) / m0
    shift = 2 * z**2 * (rate * spread1 - (1 - rate) * spread0)
    variance = p * (1 - p) / n + (1 - rate) ** 2 * spread0 + rate**2 * spread1
    reach = z * math.sqrt(variance) / slope
    exact = (passed / population + q0 - 1) / (q1 + q0 - 1)
    return found | {
        "value": min(1.0, max(0.0, exact)),
        "low": min(1.0, max(0.0, rate + shift - reach)),
        "high": min(1.0, max(0.0, rate + shift + reach)),
    }
