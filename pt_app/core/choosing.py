"""The verdict that a distribution over a scale's verdicts stands for: that of least expected loss.

Which loss depends on what the verdict is measured with: squared error and quadratic kappa ask for
the mean, absolute error for the median, exact agreement for the mode (Gneiting 2011, "Making and
evaluating point forecasts").
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import get_args

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.settings import VerdictRule
from pt_app.core.verdicts import Scale, Verdict

# Two verdicts whose expected losses (in steps of the scale, or their squares) are this close are a
# tie: rounding decides between them.
TIE = 1e-5
EQUAL = 1e-12  # losses of equal shares differ by no more, which is rounding
FAR = 0.1  # of the scale's range: a greedy answer that is farther from the verdict is counted
FAR_LINE = (
    "%s: in %d of %d rows the greedy answer says another verdict (scores: by over %g of the range)"
)


def resolved_rule(rule: str, scale: Scale) -> VerdictRule:
    """Return the rule that "auto" stands for on a scale: mean for scores, else mode.

    Raises:
        UserError: for another word, and for a mean or median of verdicts that are no numbers.
    """
    if rule not in get_args(VerdictRule):
        raise UserError(f"--verdict_rule {rule}: choose of {', '.join(get_args(VerdictRule))}")
    if rule == "auto":
        return "mean" if scale.task == "score" else "mode"
    if scale.task != "score" and rule != "mode":
        raise UserError(f"--verdict_rule {rule}: {scale.name} has no numbers: use mode or auto")
    return rule  # type: ignore[return-value]


def choose(probabilities: Sequence[float], scale: Scale, rule: VerdictRule) -> Verdict:
    """Return the verdict of least expected loss; of equal ones the lowest, and of a pair a tie.

    Args:
        probabilities: of the scale's verdicts [K].
        scale: the scale.
        rule: "mean" (squared loss: the value nearest to the mean), "median" (absolute loss) or
            "mode" (0 for the right verdict, else 1).
    """
    values, losses = _expected_losses(probabilities, scale, rule)
    best = np.flatnonzero(losses <= losses.min() * (1 + EQUAL) + EQUAL)
    # Either candidate would depend on which of them is shown first.
    return "tie" if scale.task == "pairwise" and len(best) > 1 else values[best[0]]


def is_tied(probabilities: Sequence[float], scale: Scale, rule: VerdictRule) -> bool:
    """Return whether rounding decides between the two verdicts of least expected loss."""
    _, losses = _expected_losses(probabilities, scale, rule)
    first, second = np.partition(losses, 1)[:2]
    return bool(second - first < TIE)


def mean_of(probabilities: Sequence[float], scale: Scale) -> float | None:
    """Return the expected score; None if the verdicts are no numbers."""
    if scale.task != "score":
        return None
    return sum(float(n) * p for n, p in zip(scale.values, probabilities, strict=True))


def apart(verdict: Verdict | None, greedy: Verdict | None, scale: Scale) -> bool:
    """Return whether a verdict and the greedy answer's differ by over a tenth of the range.

    Without numbers: whether they differ at all. A parse failure is counted as such, not here.
    """
    if verdict is None or greedy is None:
        return False
    if scale.task != "score":
        return verdict != greedy
    low, high = float(scale.values[0]), float(scale.values[-1])
    return abs(float(verdict) - float(greedy)) > FAR * (high - low) + 1e-9


def _expected_losses(
    probabilities: Sequence[float], scale: Scale, rule: VerdictRule
) -> tuple[Sequence[Verdict], FloatArray]:
    """Return verdicts and the expected loss of each."""
    if rule == "mode":  # a judge that speaks a grid knows its bins alone
        return scale.line_values, 1 - np.array(scale.gathered(probabilities))
    losses = _losses(len(scale.values), squared=rule == "mean")
    return scale.values, losses @ np.asarray(probabilities, np.float64)


@lru_cache(maxsize=16)
def _losses(count: int, squared: bool) -> FloatArray:
    """Return the loss of each verdict for each true one [K, K], in steps of a scale of numbers."""
    places = np.arange(count, dtype=np.float64)
    distance = np.abs(places[:, None] - places)
    return distance**2 if squared else distance
