"""Pass or fail: areas below curves, the threshold that costs least, a population's pass rate.

FAIL is the class that a judge is there to find.
"""

import math

import numpy as np
import numpy.typing as npt

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import Metrics, Operating, PassRate
from pt_app.evidence.intervals import CONFIDENCE, Resampler
from pt_app.evidence.ranks import Levels
from pt_app.evidence.summary import FAIL, PASS


def areas(fail: FloatArray, labels: IntArray, sample: Resampler) -> Metrics:
    """Return the areas below two curves of `fail`, the probability of FAIL [n].

    Rows of equal probability share one threshold.

    Returns:
        "roc_auc": the area below the ROC curve, the probability that a FAIL row has a higher one
        than a PASS row, equal ones counted half (Hanley and McNeil 1982); undefined if all labels
        are equal. "pr_auc": the average precision at finding FAIL, the sum over thresholds of
        precision times the recall gained; a judge that knows nothing reaches the share of FAIL.
    """
    levels, is_fail = Levels(-fail), (labels == FAIL).astype(np.float64)

    def of_curves(weights: FloatArray) -> dict[str, FloatArray]:
        rows, fails = levels.sums(weights), levels.sums(weights * is_fail)
        passes, covered, hits = rows - fails, rows.cumsum(axis=1), fails.cumsum(axis=1)
        precision = np.where(covered > 0, hits / covered, 0.0)
        all_fails = fails.sum(axis=1)
        ordered = (passes * (hits - fails / 2)).sum(axis=1)
        return {
            "roc_auc": ordered / (all_fails * passes.sum(axis=1)),
            "pr_auc": (precision * fails).sum(axis=1) / all_fails,
        }

    return sample.estimate(of_curves)


def operating_threshold(
    fail: FloatArray, labels: IntArray, missed: float, false_alarm: float
) -> Operating:
    """Find the probability of FAIL from which on failing a row costs least on these rows.

    Args:
        fail: the probability of FAIL [n].
        labels: positions of the labels on the scale [n].
        missed: the cost of passing a FAIL.
        false_alarm: the cost of failing a PASS.

    Returns:
        The threshold (None: fail no row), the mean cost per row there, and that of failing what is
        more likely a FAIL.
    """
    thresholds = [None, *np.unique(fail)[::-1].tolist()]
    choices = (cost_at(fail, labels, threshold, missed, false_alarm) for threshold in thresholds)
    return min(choices, key=lambda choice: choice.cost)  # of equally cheap ones the highest


def cost_at(
    fail: FloatArray, labels: IntArray, threshold: float | None, missed: float, false_alarm: float
) -> Operating:
    """Return what a threshold from other rows costs on these, as `operating_threshold` does."""

    def cost(failed: npt.NDArray[np.bool_]) -> float:
        wrong = missed * ((labels == FAIL) & ~failed) + false_alarm * ((labels == PASS) & failed)
        return float(wrong.mean())

    return Operating(
        threshold=threshold,
        cost=cost(fail >= (np.inf if threshold is None else threshold)),
        cost_of_likeliest=cost(fail > 0.5),
        missed_fail_costs=missed,
        false_alarm_costs=false_alarm,
        n=len(labels),
    )


def corrected_pass_rate(
    passed: int, population: int, labels: IntArray, verdicts: IntArray
) -> PassRate:
    """Estimate the share of a population that annotators would pass, from a judge's verdicts.

    The estimate is Rogan and Gladen's (1978), the interval Lang and Reiczigel's (2014), which
    covers both uncertainties, as in arXiv 2511.21140, "How to correctly report LLM-as-a-judge
    evaluations". Rows count as independent. It is undefined if the judge is no better than chance.

    Args:
        passed: how many of the population's rows the judge passed.
        population: how many rows it judged there.
        labels: labels of other rows [n], which tell the judge's two error rates.
        verdicts: its verdicts on them [n], -1 for none.
    """
    from scipy.special import ndtri

    parsed = verdicts >= 0
    of_pass, of_fail = parsed & (labels == PASS), parsed & (labels == FAIL)
    m1, m0 = int(of_pass.sum()), int(of_fail.sum())
    right1, right0 = int((verdicts[of_pass] == PASS).sum()), int((verdicts[of_fail] == FAIL).sum())
    rate = PassRate(value=None, low=None, high=None, n=population, labelled=m1 + m0)
    rate.raw = passed / population if population else None
    if not population or not m1 or not m0:
        rate.reason = "no rows"
        return rate
    q1, q0 = right1 / m1, right0 / m0
    z = -float(ndtri((1 - CONFIDENCE) / 2))
    n = population + z**2
    p = (passed + z**2 / 2) / n
    # One success and one failure more keep the rates off 0 and 1 (Lang and Reiczigel).
    m1, m0 = m1 + 2, m0 + 2
    s1, s0 = (right1 + 1) / m1, (right0 + 1) / m0
    slope = s1 + s0 - 1
    if q1 + q0 <= 1 or slope <= 0:
        rate.reason = "the judge tells pass from fail no better than chance"
        return rate
    middle = (p + s0 - 1) / slope
    spread1, spread0 = s1 * (1 - s1) / m1, s0 * (1 - s0) / m0
    shift = 2 * z**2 * (middle * spread1 - (1 - middle) * spread0)
    variance = p * (1 - p) / n + (1 - middle) ** 2 * spread0 + middle**2 * spread1
    reach = z * math.sqrt(variance) / slope
    exact = (passed / population + q0 - 1) / (q1 + q0 - 1)
    bounds = np.clip([exact, middle + shift - reach, middle + shift + reach], 0, 1)
    rate.value, rate.low, rate.high = bounds.tolist()
    return rate
