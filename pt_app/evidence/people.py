"""How far people agree with each other: what a judge can be expected to reach, and no more.

Raw agreement, Fleiss' kappa, Krippendorff's alpha, Cohen's kappa of each two raters, and one
rater's correlation with the others.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from pt_app.core.formatting import interval, number
from pt_app.core.metrics import FloatArray
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.ranks import weighted_pearson
from pt_app.evidence.summary import Metric, metric

# Pairs and raters are told one by one up to so many raters.
MOST_RATERS = 10
LEVELS = {"score": ("nominal", "ordinal", "interval")}


@dataclass(frozen=True)
class RatedRow:
    """What people said of one row, as (rater, verdict); its group is the bootstrap's."""

    group: Hashable
    said: Sequence[tuple[str, Verdict]]


@dataclass(frozen=True)
class Ratings:
    """What each rater said of each unit: `values` [units, raters], NaN where nothing was said.

    Nominal verdicts stand for their places on the scale. `groups` [units] are the bootstrap's.
    """

    raters: tuple[str, ...]
    values: FloatArray
    groups: tuple[Hashable, ...]


def ratings_of(rows: Sequence[RatedRow], scale: Scale) -> Ratings:
    """Lay out the annotators' verdicts; rows with fewer than two are left out.

    A rater's second verdict on a row is not counted.
    """
    rows = [row for row in rows if len(row.said) > 1]
    raters = sorted({rater for row in rows for rater, _ in row.said}, key=_by_number)
    column = {rater: i for i, rater in enumerate(raters)}
    code: dict[Any, float] = {str(value): float(i) for i, value in enumerate(scale.values)}
    values = np.full((len(rows), len(raters)), np.nan)
    for i, row in enumerate(rows):
        for rater, verdict in reversed(row.said):
            place = verdict if scale.task == "score" else code[str(verdict)]
            values[i, column[rater]] = float(place)
    return Ratings(tuple(raters), values, tuple(row.group for row in rows))


def _by_number(name: str) -> tuple[float, str]:
    return (float(name) if name.isdigit() else math.inf, name)


def agreement_of(examples: Sequence[JudgeExample], scale: Scale) -> dict[str, Any] | None:
    """Measure the agreement among the annotators of examples: see `agreement_among`."""
    rows = [RatedRow(e.group, [(a.rater, a.verdict) for a in e.annotators]) for e in examples]
    return agreement_among(rows, scale)


def agreement_among(rows: Sequence[RatedRow], scale: Scale) -> dict[str, Any] | None:
    """Measure the agreement among the raters of the rows; None where no row has two.

    Numbers are {"value", "low", "high", "n"} with n units, intervals by the cluster bootstrap over
    groups. "raw" is the share of pairs of ratings of a unit that are equal; "pairs" has for each
    two raters the share of equal labels, Cohen's kappa and, of scores, quadratic kappa. Ordinal and
    interval alpha, and "one_vs_rest", are for scores alone.
    """
    ratings = ratings_of(rows, scale)
    if len(ratings.values) == 0:
        return None
    domain, counts = value_counts(ratings.values)
    sample = Resampler(ratings.groups)
    levels = LEVELS.get(scale.task, ("nominal",))
    statistics = {"raw": raw_agreement, "fleiss_kappa": fleiss_kappa}
    statistics |= {f"alpha_{level}": partial(alpha, domain=domain, level=level) for level in levels}
    found: dict[str, Any] = {
        "units": len(counts),
        "raters": len(ratings.raters),
        "ratings": int(counts.sum()),
        **{name: _estimated(sample, counts, one) for name, one in statistics.items()},
    }
    if len(ratings.raters) <= MOST_RATERS:
        found["pairs"] = pair_agreement(ratings, quadratic=scale.task == "score")
    if scale.task == "score":
        found["one_vs_rest"] = one_against_rest(ratings)
    return found


def value_counts(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Give the values said, ascending [k], and how often each was said of each unit [units, k]."""
    domain = np.unique(values[~np.isnan(values)])
    counts = np.stack([(values == value).sum(axis=1) for value in domain], axis=1)
    return domain, counts.astype(np.float64)


def raw_agreement(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Share of equal pairs among all pairs of ratings of a unit, under weights [r, units]."""
    raters = counts.sum(axis=1)
    equal = weights @ (counts * (counts - 1)).sum(axis=1)
    result: FloatArray = equal / (weights @ (raters * (raters - 1)))
    return result


def fleiss_kappa(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Fleiss 1971; units with unequally many raters weigh alike, as usually generalised."""
    raters = counts.sum(axis=1)
    by_unit = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    observed = weights @ by_unit / weights.sum(axis=1)
    shares = weights @ counts / (weights @ raters)[:, None]
    chance = (shares**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = (observed - chance) / (1 - chance)
    return result


def alpha(counts: FloatArray, weights: FloatArray, domain: FloatArray, level: str) -> FloatArray:
    """Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability").

    Nominal values are compared as indicators, ordinal ones by their middle ranks, which makes both
    the interval alpha of other numbers; equal to the package krippendorff, for all resamples at
    once.
    """
    raters = counts.sum(axis=1)
    totals = weights @ counts  # [r, k]
    n = totals.sum(axis=1)
    if level == "nominal":
        within = (counts * (raters[:, None] - counts)).sum(axis=1) / (raters - 1)
        observed, expected = weights @ within, (n**2 - (totals**2).sum(axis=1)) / (n - 1)
    else:
        numbers = np.broadcast_to(domain, totals.shape)
        if level == "ordinal":
            numbers = np.cumsum(totals, axis=1) - totals / 2
        sums, squares = counts @ numbers.T, counts @ (numbers**2).T  # [units, r]
        within = (raters[:, None] * squares - sums**2) / (raters - 1)[:, None]
        observed = (weights * within.T).sum(axis=1)
        all_squares = (totals * numbers**2).sum(axis=1)
        expected = (n * all_squares - (totals * numbers).sum(axis=1) ** 2) / (n - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = 1 - observed / expected
    return result


def pair_agreement(ratings: Ratings, quadratic: bool) -> list[dict[str, Any]]:
    """Give for each two raters with common units the share of equal labels and Cohen's kappa.

    Each is a number with interval and n; with `quadratic` the quadratic kappa too.
    """
    pairs = []
    for a, b in combinations(range(len(ratings.raters)), 2):
        both = ~np.isnan(ratings.values[:, [a, b]]).any(axis=1)
        if not both.any():
            continue
        sample = Resampler([ratings.groups[i] for i in np.flatnonzero(both)])
        found = _kappas(ratings.values[both, a], ratings.values[both, b], sample)
        if not quadratic:
            del found["kappa_quadratic"]
        pairs.append({"a": ratings.raters[a], "b": ratings.raters[b], **found})
    return pairs


def _kappas(x: FloatArray, y: FloatArray, sample: Resampler) -> dict[str, Metric]:
    """Share of equal labels, kappa and quadratic kappa of two raters' labels [n].

    All three are functions of sums over rows: of each rater's labels by value, of their squares
    and products. That costs far less than a table of pairs of values where a scale is fine.
    """
    domain = np.unique([x, y])
    x, y = x - domain.mean(), y - domain.mean()  # against rounding alone
    by_value = [(column[:, None] == domain - domain.mean()) for column in (x, y)]
    moments = np.stack([np.ones_like(x), x == y, x, y, x**2 + y**2, x * y], axis=1)
    k = len(domain)

    def numbers(sums: FloatArray) -> dict[str, FloatArray]:
        n, equal, of_x, of_y, squares, products = sums[:, :6].T
        chance = (sums[:, 6 : 6 + k] * sums[:, 6 + k :]).sum(axis=1)
        apart, expected = squares - 2 * products, squares - 2 * of_x * of_y / n
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = np.where(chance < n**2, (n * equal - chance) / (n**2 - chance), np.nan)
            quadratic = np.where(expected > 1e-9 * n, 1 - apart / expected, np.nan)
            return {"agreement": equal / n, "kappa": kappa, "kappa_quadratic": quadratic}

    estimates = sample.estimate_sums(np.concatenate([moments, *by_value], axis=1), numbers)
    return {name: metric(one, len(x)) for name, one in estimates.items()}


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
            "pooled": weighted_pearson(
                values[unit, rater][None], rest[unit, rater][None], weights[:, unit]
            )
        }

    def mean(weights: FloatArray) -> dict[str, FloatArray]:
        columns = np.array(
            [
                weighted_pearson(values[k, i][None], rest[k, i][None], weights[:, k])
                for i in range(len(ratings.raters))
                if (k := usable[:, i]).sum() > 2
            ]
        ).reshape(-1, len(weights))
        defined = np.isfinite(columns)  # a rater with one verdict alone correlates with nobody
        with np.errstate(invalid="ignore"):
            return {"mean": np.where(defined, columns, 0).sum(axis=0) / defined.sum(axis=0)}

    n = int(usable.sum())
    found: dict[str, Any] = {"by_rater": by_rater if len(ratings.raters) <= MOST_RATERS else []}
    for name, statistic, size in (("mean", mean, len(correlations)), ("pooled", pooled, n)):
        one = sample.estimate(statistic, values.size)[name]
        found[name] = {"value": one.value, "low": one.low, "high": one.high, "n": size}
    return found


def _pearson(x: FloatArray, y: FloatArray) -> float | None:
    value = float(weighted_pearson(x[None], y[None], np.ones((1, len(x))))[0])
    return value if math.isfinite(value) else None


def _estimated(
    sample: Resampler, counts: FloatArray, number: Callable[[FloatArray, FloatArray], FloatArray]
) -> dict[str, Any]:
    one = sample.estimate(lambda weights: {"it": number(counts, weights)}, counts.size)["it"]
    return {"value": one.value, "low": one.low, "high": one.high, "n": len(counts)}


ROW = ("", "value", "95 % interval", "n")
_NAMES = {
    "raw": "raw agreement",
    "fleiss_kappa": "Fleiss' kappa",
    "alpha_nominal": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "mean": "one rater and the others' mean, Pearson (mean over raters)",
    "pooled": "one rater and the others' mean, Pearson (pooled)",
    "exact": "exact agreement",
    "kappa": "Cohen's kappa",
    "kappa_quadratic": "quadratic kappa",
}
_OF_PAIRS = {
    "agreement": "equal labels",
    "kappa": "Cohen's kappa",
    "kappa_quadratic": "quadratic kappa",
}


def table(agreement: Mapping[str, Any]) -> list[list[str]]:
    """Lay agreement among people out in rows of `ROW`."""
    numbers = {**agreement, **agreement.get("one_vs_rest", {})}
    rows = [_row(text, numbers[name]) for name, text in _NAMES.items() if name in numbers]
    for pair in agreement.get("pairs", ()):
        raters = f"raters {pair['a']} and {pair['b']}"
        rows += [
            _row(f"{raters}: {text}", pair[name])
            for name, text in _OF_PAIRS.items()
            if isinstance(pair.get(name), Mapping)
        ]
    return rows


def self_table(again: Mapping[str, Any]) -> list[list[str]]:
    """Lay a person's agreement with themselves out in rows of `ROW`."""
    return [_row(text, again[name]) for name, text in _NAMES.items() if name in again]


def lines(agreement: Mapping[str, Any]) -> list[str]:
    """Say the agreement among people in lines for a terminal, and on which rows it is measured."""
    head = f"people: {agreement['raters']} raters, {agreement['ratings']:,} labels of the "
    head += f"{agreement['units']:,} rows kept that have two or more"
    rows = [row for row in table(agreement) if row[2]]
    return [head, *(f"  {name}: {value} {interval} (n {n})" for name, value, interval, n in rows)]


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    if one["value"] is None:
        return [name, "undefined", "", f"{one['n']:,}"]
    return [name, number(one["value"]), interval(one) or "none", f"{one['n']:,}"]
