"""Pairs judged in both orders: what becomes of a verdict, and where the better one stands."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pt_app.core.metrics import IntArray
from pt_app.core.orders import flipped
from pt_app.core.verdicts import Scale
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import share_metric


def orders(
    rows: Sequence[Mapping[str, Any]],
    labels: IntArray,
    said: IntArray,
    sample: Resampler,
    scale: Scale,
) -> dict[str, Any]:
    """Which winner each order gave, counted, and the share right by the better one's place.

    "flips" has entries of "first", "swapped" (both as the winner in the first order; null: a parse
    failure) and "n". "right_if_better_is" gives the accuracy among the pairs whose label is A
    (shown first), and among those whose label is B.
    """
    likeliest = any(row.get("swapped_constrained") is not None for row in rows)
    names = ("constrained", "swapped_constrained") if likeliest else ("verdict", "swapped")
    counts = Counter((row[names[0]], flipped(row.get(names[1]))) for row in rows if names[1] in row)
    right = (labels == said).astype(np.float64)
    by_place = {
        place: share_metric(
            np.where((labels == scale.values.index(place)) & (said >= 0), right, np.nan), sample
        )
        for place in ("A", "B")
    }
    return {
        "flips": [
            {"first": first, "swapped": second, "n": n}
            for (first, second), n in sorted(counts.items(), key=str)
        ],
        "right_if_better_is": by_place,
    }
