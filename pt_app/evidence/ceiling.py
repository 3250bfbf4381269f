"""What people reach among themselves, in the judge's own units: one person against the others."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import IntArray
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import agreement_of_sums, numbers_of, positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import metric


def ceiling(
    annotators: Sequence[Sequence[Verdict]], groups: Sequence[Hashable], scale: Scale
) -> dict[str, Any] | None:
    """Agreement of each person's verdict with what the others of that row say; None without two.

    `annotators` [n] has the verdicts of each row's people. The others' word is the value of the
    scale nearest to their mean; where verdicts are no numbers, their commonest, and of equally
    common ones each counts its share. "n" counts verdicts, "rows" the rows with two or more.
    """
    numbers = numbers_of(scale)
    said, others, weights, of_groups = list[int](), list[int](), list[float](), list[Hashable]()
    for verdicts, group in zip(annotators, groups, strict=True):
        if len(verdicts) < 2:
            continue
        places = positions(verdicts, scale, "an annotator's verdict")
        for i, place in enumerate(places):
            words = _word_of(np.delete(places, i), numbers)
            said += [int(place)] * len(words)
            others += words.tolist()
            weights += [1 / len(words)] * len(words)
            of_groups += [group] * len(words)
    if not said:
        return None
    (columns,), statistic = agreement_of_sums(np.array(others), scale, np.array(said))
    weighted = columns.multiply(np.array(weights)[:, None])
    sample = Resampler(of_groups)
    n = round(sum(weights))
    estimates = sample.estimate_sums(weighted.tocsr(), statistic)
    return {
        "name": "people",
        "metrics": {name: metric(one, n) for name, one in estimates.items()},
        "n": n,
        "rows": sum(len(verdicts) > 1 for verdicts in annotators),
        "groups": sample.groups,
        "few_groups": sample.few_groups,
    }


def _word_of(places: IntArray, numbers: Any) -> IntArray:
    """The positions that stand for what some people say, of equal weight."""
    if numbers is not None:
        return np.array([np.abs(numbers - numbers[places].mean()).argmin()])
    counts = np.bincount(places)
    return np.flatnonzero(counts == counts.max())
