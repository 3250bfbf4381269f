"""`judge bench intervals`: how often the intervals cover the truth, on simulated judges.

Sources differ in quality and in how well the judge reads them, so that rows of one source have
labels and errors in common: intervals that took rows for independent would be too narrow.
"""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from pt_app.core.metrics import IntArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import agreement_of_sums
from pt_app.evidence.intervals import Resampler

ROWS = 3  # of a source
SCALE = Scale.from_name("0-10")
MANY = 300_000  # sources that give the truth to three digits


def simulate(groups: int, seed: int) -> tuple[IntArray, IntArray]:
    """Labels and verdicts, [groups x ROWS] each, rows of one source side by side."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1.5, (groups, 1))
    labels = np.clip(np.round(5 + shared + rng.normal(0, 2, (groups, ROWS))), 0, 10)
    error = rng.normal(0, 0.8, (groups, 1)) + rng.normal(0, 1, (groups, ROWS))
    verdicts = np.clip(np.round(labels + error), 0, 10)
    return labels.astype(np.int64).ravel(), verdicts.astype(np.int64).ravel()


def coverage(groups: int, sets: int, resamples: int) -> dict[str, float]:
    """Share of `sets` simulated test sets whose interval holds the truth, for each number."""
    label, verdict = simulate(MANY, seed=0)
    (columns,), statistic = agreement_of_sums(label, SCALE, verdict)
    truth = {name: float(value[0]) for name, value in statistic(columns.sum(axis=0)).items()}
    covered = dict.fromkeys(truth, 0)
    index: Sequence[int] = np.repeat(np.arange(groups), ROWS).tolist()
    for seed in tqdm(range(1, sets + 1), desc="test sets"):
        label, verdict = simulate(groups, seed)
        (columns,), statistic = agreement_of_sums(label, SCALE, verdict)
        found = Resampler(index, resamples, seed).estimate_sums(columns, statistic)
        for name, one in found.items():
            if one.low is not None and one.high is not None:
                covered[name] += one.low <= truth[name] <= one.high
    return {name: count / sets for name, count in covered.items()}
