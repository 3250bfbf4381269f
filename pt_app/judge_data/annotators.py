"""Combines the labels of several annotators into one, by a rule that the dataset card states."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median_low

from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale, Verdict

RULES = {
    "majority": {
        "score": "the commonest label; of equally common ones the lower of the middle two",
        "pairwise": "the commonest label; equally common ones make a tie",
        "pass_fail": "the commonest label; equally common ones make FAIL",
    },
    "mean": {"score": "the mean label, at the scale's nearest verdict (halves go up)"},
    "median": {"score": "the median label (of two in the middle the lower)"},
}


def rule(scale: Scale, how: str = "") -> str:
    """Describe the rule in words, "mean: ..."; an empty `how` stands for the task's usual rule.

    Raises:
        UserError: The task does not have that rule.
    """
    how = how or ("mean" if scale.task == "score" else "majority")
    if scale.task not in RULES.get(how, {}):
        allowed = ", ".join(name for name, tasks in RULES.items() if scale.task in tasks)
        raise UserError(f"--reduce {how} is not a rule of the task {scale.task}: use {allowed}")
    return f"{how}: {RULES[how][scale.task]}"


def reduce(verdicts: Sequence[Verdict], scale: Scale, how: str = "") -> Verdict:
    """Combine the labels of at least one annotator; see `RULES`.

    Raises:
        UserError: The task does not have that rule.
    """
    how = rule(scale, how).partition(":")[0]
    if how != "majority":
        numbers = [float(verdict) for verdict in verdicts]
        return nearest(fmean(numbers) if how == "mean" else median_low(numbers), scale)
    counts = Counter(verdicts)
    most = max(counts.values())
    commonest = [verdict for verdict, count in counts.items() if count == most]
    if len(commonest) == 1:
        return commonest[0]
    if scale.task == "score":
        return nearest(median_low(map(float, commonest)), scale)
    return "tie" if scale.task == "pairwise" else "FAIL"


def nearest(number: float, scale: Scale) -> Verdict:
    """Return the verdict of the scale nearest to a number, the upper of two equally near ones."""
    low, step = float(scale.values[0]), float(scale.values[1]) - float(scale.values[0])
    # 1e-9: a mean such as 2.4999999999999996 of 2 and 3 is a half.
    place = math.floor((number - low) / step + 0.5 + 1e-9)
    return scale.values[min(max(place, 0), len(scale.values) - 1)]
