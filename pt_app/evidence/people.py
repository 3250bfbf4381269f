"""How far people agree with each other: what a judge can be expected to reach, and no more.

Raw agreement, Fleiss' kappa, Krippendorff's alpha, and one rater's correlation with the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from pt_app.eval_model.metrics import FloatArray
from pt_app.eval_model.records import JudgeExample
from pt_app.eval_model.verdicts import Scale
from pt_app.evidence.intervals import Resampler

# Pairs and raters are told one by one up to so many raters.
MOST_RATERS = 10
# Alpha is computed anew for each resample, some milliseconds each: fewer than for other numbers.
RESAMPLES = 500
LEVELS = {"score": ("nominal", "ordinal", "interval")}


@dataclass(frozen=True)
class Ratings:
    """What each rater said of each unit: `values` [units, raters], NaN where nothing was said.

    Nominal verdicts stand for their places on the scale. `groups` [units] are the bootstrap's.
    """

    raters: tuple[str, ...]
    values: FloatArray
    groups: tuple[str, ...]


def ratings_of(examples: Sequence[JudgeExample], scale: Scale) -> Ratings:
    """Lay out the annotators' verdicts; rows with fewer than two are left out.

    A rater's second verdict on a row is not counted.
    """
    rows = [example for example in examples if len(example.annotators) > 1]
    raters = sorted({a.rater for row in rows for a in row.annotators}, key=_by_number)
    column = {rater: i for i, rater in enumerate(raters)}
    code: dict[Any, float] = {str(value): float(i) for i, value in enumerate(scale.values)}
    values = np.full((len(rows), len(raters)), np.nan)
    for i, row in enumerate(rows):
        for said in reversed(row.annotators):
            number = said.verdict if scale.task == "score" else code[str(said.verdict)]
            values[i, column[said.rater]] = float(number)
    return Ratings(tuple(raters), values, tuple(row.group for row in rows))


def _by_number(name: str) -> tuple[float, str]:
    return (float(name) if name.isdigit() else math.inf, name)


def agreement_of(examples: Sequence[JudgeExample], scale: Scale) -> dict[str, Any] | None:
    """Measure the agreement among the raters of the rows; None where no row has two.

    Numbers are {"value", "low", "high", "n"} with n units, intervals by the cluster bootstrap over
    groups. "raw" is the share of pairs of ratings of a unit that are equal, "pairs" the same for
    each two raters. Ordinal and interval alpha, and "one_vs_rest", are for scores alone.
    """
    ratings = ratings_of(examples, scale)
    if len(ratings.values) == 0:
        return None
    counts = value_counts(ratings.values)
    sample = Resampler(ratings.groups, RESAMPLES)
    found: dict[str, Any] = {
        "units": len(ratings.values),
        "raters": len(ratings.raters),
        "ratings": int(counts.sum()),
        "raw": _estimated(sample, counts, raw_agreement),
        "fleiss_kappa": _estimated(sample, counts, fleiss_kappa),
    }
    for level in LEVELS.get(scale.task, ("nominal",)):
        domain = np.unique(ratings.values[~np.isnan(ratings.values)])
        found[f"alpha_{level}"] = _estimated(
            sample, counts, lambda c, d=domain, m=level: alpha(c, d, m)
        )
    if len(ratings.raters) <= MOST_RATERS:
        found["pairs"] = pair_agreement(ratings)
    if scale.task == "score":
        found["one_vs_rest"] = one_against_rest(ratings)
    return found


def value_counts(values: FloatArray) -> FloatArray:
    """Count how often each value was said of each unit: [units, values]."""
    domain = np.unique(values[~np.isnan(values)])
    return (values[:, :, None] == domain).sum(axis=1).astype(np.float64)


def raw_agreement(counts: FloatArray) -> float:
    """Share of equal pairs among all pairs of ratings of a unit."""
    raters = counts.sum(axis=1)
    pairs = (raters * (raters - 1)).sum()
    return float((counts * (counts - 1)).sum() / pairs) if pairs else math.nan


def fleiss_kappa(counts: FloatArray) -> float:
    """Fleiss 1971; units with unequally many raters weigh alike, as usually generalised."""
    raters = counts.sum(axis=1)
    observed = ((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    return float((observed - chance) / (1 - chance)) if chance < 1 else math.nan


def alpha(counts: FloatArray, domain: FloatArray, level: str) -> float:
    """Krippendorff's alpha of value counts [units, values] (package krippendorff)."""
    import krippendorff

    if (counts.sum(axis=0) > 0).sum() < 2:
        return math.nan  # one value alone: no disagreement could have been
    return float(
        krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement=level)
    )


def pair_agreement(ratings: Ratings) -> list[dict[str, Any]]:
    """Give for each two raters the share of units on which they said the same."""
    pairs = []
    for a, b in combinations(range(len(ratings.raters)), 2):
        both = ~np.isnan(ratings.values[:, [a, b]]).any(axis=1)
        if both.any():
            same = ratings.values[both, a] == ratings.values[both, b]
            names = {"a": ratings.raters[a], "b": ratings.raters[b]}
            pairs.append(names | {"agreement": float(same.mean()), "n": int(both.sum())})
    return pairs


def one_against_rest(ratings: Ratings) -> dict[str, Any]:
    """Correlate (Pearson) each rater with the mean of the others on the same units.

    "mean" is over the raters' columns, "pooled" over all ratings at once: there a rater who marks
    lower than others counts as disagreeing.
    """
    values = ratings.values
    given = ~np.isnan(values)
    sums, counts = np.nansum(values, axis=1), given.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = (sums[:, None] - np.nan_to_num(values)) / (counts[:, None] - given)
    usable = given & (counts[:, None] > 1)
    by_rater = [
        {"rater": name, "pearson": _pearson(values[k, i], rest[k, i]), "n": int(k.sum())}
        for i, name in enumerate(ratings.raters)
        if (k := usable[:, i]).sum() > 2
    ]
    correlations = [one["pearson"] for one in by_rater if one["pearson"] is not None]
    sample = Resampler(ratings.groups)

    def pooled(weights: FloatArray) -> dict[str, FloatArray]:
        unit, rater = np.nonzero(usable)
        return {
            "pooled": _weighted_pearson(values[unit, rater], rest[unit, rater], weights[:, unit])
        }

    def mean(weights: FloatArray) -> dict[str, FloatArray]:
        columns = [
            _weighted_pearson(values[k, i], rest[k, i], weights[:, k])
            for i in range(len(ratings.raters))
            if (k := usable[:, i]).sum() > 2
        ]
        return (
            {"mean": np.nanmean(columns, axis=0)}
            if columns
            else {"mean": np.full(len(weights), np.nan)}
        )

    n = int(usable.sum())
    found: dict[str, Any] = {"by_rater": by_rater if len(ratings.raters) <= MOST_RATERS else []}
    for name, statistic, size in (("mean", mean, len(correlations)), ("pooled", pooled, n)):
        one = sample.estimate(statistic, values.size)[name]
        found[name] = {"value": one.value, "low": one.low, "high": one.high, "n": size}
    return found


def _pearson(x: FloatArray, y: FloatArray) -> float | None:
    value = float(_weighted_pearson(x, y, np.ones((1, len(x))))[0])
    return value if math.isfinite(value) else None


def _weighted_pearson(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Pearson's correlation of x and y [n] under each row of weights [r, n]."""
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_mean, y_mean = weights @ x / total, weights @ y / total
        covariance = weights @ (x * y) / total - x_mean * y_mean
        spread = (weights @ (x * x) / total - x_mean**2) * (weights @ (y * y) / total - y_mean**2)
        result: FloatArray = covariance / np.sqrt(spread)
    return result


def _estimated(sample: Resampler, counts: FloatArray, number: Any) -> dict[str, Any]:
    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        # Units drawn twice are counted twice, as two units.
        drawn = (np.repeat(counts, row.astype(int), axis=0) for row in weights)
        return {"it": np.array([number(one) for one in drawn])}

    one = sample.estimate(statistic, counts.size)["it"]
    return {"value": one.value, "low": one.low, "high": one.high, "n": len(counts)}
