"""How far annotators agree with each other: the most that a judge can be expected to reach.

Raw agreement, Fleiss' kappa, Krippendorff's alpha, Cohen's kappa of each two raters, one rater's
correlation with the others, and one annotator's agreement with the others in the judge's numbers.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pt_app.core import results
from pt_app.core.formatting import ANNOTATORS, interval, number
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import agreement_of_sums, numbers_of, positions
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.ranks import mean_of_defined, weighted_pearson

MAX_RATERS = 10  # up to so many, raters and pairs of raters are reported one by one
Rated = JudgeExample | results.Prediction


@dataclass(frozen=True)
class Ratings:
    """The rating of each unit by each rater: `values` [units, raters], NaN for none.

    Nominal verdicts are given by their positions on the scale. `groups` [units] are for the
    bootstrap.
    """

    raters: tuple[str, ...]
    values: FloatArray
    groups: tuple[Hashable, ...]


def _verdicts(row: Rated) -> dict[str, Verdict]:
    """Return the verdict of each annotator of a row; of several by one of them, the first.

    Annotators without a name are different ones, and go by their place.
    """
    verdicts: dict[str, Verdict] = {}
    for place, label in enumerate(row.annotators or (), start=1):
        verdicts.setdefault(label.rater or str(place), label.verdict)
    return verdicts


def _rated_twice(rows: Sequence[Rated]) -> list[tuple[Hashable, dict[str, Verdict]]]:
    """Return group and verdicts of the rows that two annotators or more have labelled."""
    rated = [(row.group, _verdicts(row)) for row in rows]
    return [(group, verdicts) for group, verdicts in rated if len(verdicts) > 1]


def ratings_of(rows: Sequence[Rated], scale: Scale) -> Ratings:
    """Lay out the annotators' verdicts as a table, without the rows that have fewer than two."""
    rated = _rated_twice(rows)
    names = {rater for _, verdicts in rated for rater in verdicts}
    raters = sorted(names, key=lambda name: (float(name) if name.isdecimal() else math.inf, name))
    column = {rater: i for i, rater in enumerate(raters)}
    numbers = numbers_of(scale)
    values = np.full((len(rated), len(raters)), np.nan)
    for i, (_, verdicts) in enumerate(rated):
        for rater, verdict in verdicts.items():
            place = scale.values.index(verdict) if numbers is None else verdict
            values[i, column[rater]] = float(place)
    return Ratings(tuple(raters), values, tuple(group for group, _ in rated))


def agreement_among(rows: Sequence[Rated], scale: Scale) -> results.AnnotatorAgreement | None:
    """Measure the agreement among the raters of the rows; None if no row has two.

    Returns:
        Numbers with n units and intervals by the cluster bootstrap over groups. `raw` is the share
        of pairs of ratings of a unit that are equal; `pairs` has for each two raters the share of
        equal labels, Cohen's kappa and, for scores, quadratic kappa. Ordinal and interval alpha,
        and `one_vs_rest`, exist for scores only.
    """
    ratings = ratings_of(rows, scale)
    if len(ratings.values) == 0:
        return None
    domain, counts = value_counts(ratings.values)
    levels = ("nominal", "ordinal", "interval") if scale.task == "score" else ("nominal",)

    def numbers(weights: FloatArray) -> dict[str, FloatArray]:
        alphas = {f"alpha_{level}": alpha(counts, weights, domain, level) for level in levels}
        common = raw_agreement(counts, weights), fleiss_kappa(counts, weights)
        return {"raw": common[0], "fleiss_kappa": common[1]} | alphas

    metrics = Resampler(ratings.groups).estimate(numbers, size=counts.size)
    about = {"units": len(counts), "raters": len(ratings.raters), "ratings": int(counts.sum())}
    agreement = results.AnnotatorAgreement.model_validate(about | _without_reasons(metrics))
    if len(ratings.raters) <= MAX_RATERS:
        agreement.pairs = pair_agreement(ratings, quadratic=scale.task == "score")
    if scale.task == "score":
        agreement.one_vs_rest = one_against_rest(ratings)
    return agreement


def agreement_of(rows: Sequence[Rated], scale: Scale) -> results.JsonObject | None:
    """Measure the same as `agreement_among`, for dataset.json."""
    agreement = agreement_among(rows, scale)
    return agreement.as_json() if agreement else None


def ceiling(rows: Sequence[Rated], scale: Scale) -> results.Ceiling | None:
    """Measure each annotator's agreement with the others of that row; None if no row has two.

    The others stand for the value of the scale nearest to their mean, the lower one of two; if
    verdicts are not numbers, for their majority, and of equally common verdicts each counts its
    share.

    Returns:
        An entry like a judge's; `n` counts verdicts, `rows` the rows with two or more.
    """
    rated = _rated_twice(rows)
    own, others, weights, groups = list[int](), list[int](), list[float](), list[Hashable]()
    for group, verdicts in rated:
        places = positions([*verdicts.values()], scale, "an annotator's verdict")
        for i, place in enumerate(places.tolist()):
            opposite = _consensus(np.delete(places, i), scale)
            own += [place] * len(opposite)
            others += opposite.tolist()
            weights += [1 / len(opposite)] * len(opposite)
            groups += [group] * len(opposite)
    if not rated:
        return None
    (columns,), statistic = agreement_of_sums(np.array(others), scale, np.array(own))
    weighted = columns.multiply(np.array(weights)[:, None])
    sample, n = Resampler(groups), round(sum(weights))
    return results.Ceiling(
        name="people",
        metrics=sample.estimate_sums(weighted.tocsr(), statistic, n),
        n=n,
        rows=len(rated),
        groups=sample.groups,
        few_groups=sample.few_groups,
    )


def distance_to_shares(
    rows: Sequence[results.Prediction], chances: FloatArray, scale: Scale, sample: Resampler
) -> results.SharesDistance | None:
    """Measure how far a judge's distributions are from those of the annotators' verdicts.

    The earth mover's distance (Rubner et al. 2000): of numbers the area between the cumulative
    distributions, in units of the scale; without an order the total variation, 0 to 1.

    Args:
        rows: of the judge; those with two verdicts of annotators, or with votes, count.
        chances: its probabilities [n, K], NaN for a row without.
        scale: the scale.
        sample: the groups of the rows.

    Returns:
        The mean distance with n, beside that of one distribution for all rows; None without rows.
    """
    shares = np.array([_shares(row, scale) for row in rows])
    counted = ~np.isnan(shares[:, 0]) & ~np.isnan(chances[:, 0])
    if not counted.any():
        return None
    mean = np.broadcast_to(shares[counted].mean(axis=0), shares.shape)
    own, constant = (
        np.where(counted, _moved(part, shares, scale), np.nan) for part in (chances, mean)
    )
    return results.SharesDistance(judge=sample.mean(own), constant=sample.mean(constant))


def _shares(row: results.Prediction, scale: Scale) -> list[float]:
    """Return the share of each verdict [K] among a row's labels; NaN for fewer than two.

    Without annotators `shares` are of votes, and there for several alone.
    """
    given = [*_verdicts(row).values()]
    if len(given) > 1:
        return [given.count(value) / len(given) for value in scale.values]
    return list(row.shares) if row.shares and not given else [np.nan] * len(scale.values)


def _moved(a: FloatArray, b: FloatArray, scale: Scale) -> FloatArray:
    """Return the earth mover's distance of the distributions in each row [n]."""
    numbers = numbers_of(scale)
    if numbers is None:
        return np.asarray(np.abs(a - b).sum(axis=1) / 2, np.float64)
    apart = np.abs((a - b).cumsum(axis=1))[:, :-1]
    return np.asarray(apart @ np.diff(numbers), np.float64)


def _consensus(places: IntArray, scale: Scale) -> IntArray:
    """Return the positions that stand for some annotators' verdicts, all of equal weight."""
    if scale.task == "score":
        # The position nearest to the mean, the lower one of two: of whole numbers, since the mean
        # of values such as 0.1 and 0.2 is rounded, to one side or the other.
        return np.array([-((len(places) - 2 * places.sum()) // (2 * len(places)))])
    counts = np.bincount(places)
    return np.flatnonzero(counts == counts.max())


def value_counts(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the values that occur, ascending [k], and how often each unit has them [units, k]."""
    domain = np.unique(values[~np.isnan(values)])
    counts = np.stack([(values == value).sum(axis=1) for value in domain], axis=1)
    return domain, counts.astype(np.float64)


def raw_agreement(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the share of equal pairs among the pairs of ratings of a unit, weights [r, units]."""
    raters = counts.sum(axis=1)
    equal = weights @ (counts * (counts - 1)).sum(axis=1)
    return np.asarray(equal / (weights @ (raters * (raters - 1))), np.float64)


def fleiss_kappa(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Return Fleiss' kappa (1971); units with unequally many raters weigh alike, as is usual."""
    raters = counts.sum(axis=1)
    by_unit = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
    observed = weights @ by_unit / weights.sum(axis=1)
    shares = weights @ counts / (weights @ raters)[:, None]
    chance = (shares**2).sum(axis=1)
    return np.asarray((observed - chance) / (1 - chance), np.float64)


def alpha(counts: FloatArray, weights: FloatArray, domain: FloatArray, level: str) -> FloatArray:
    """Return Krippendorff's alpha (2011, "Computing Krippendorff's Alpha-Reliability").

    Nominal values are compared as indicators, ordinal ones by their middle ranks, which makes both
    the interval alpha of other numbers. The result equals that of the package krippendorff, but is
    computed for all resamples at once.
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
    return np.asarray(1 - observed / expected, np.float64)


def pair_agreement(ratings: Ratings, quadratic: bool) -> list[results.RaterPair]:
    """Return the share of equal labels and Cohen's kappa of each two raters with common units.

    Each is a number with interval and n; with `quadratic` the quadratic kappa is added.
    """
    pairs = []
    for a, b in combinations(range(len(ratings.raters)), 2):
        both = ~np.isnan(ratings.values[:, [a, b]]).any(axis=1)
        if not both.any():
            continue
        sample = Resampler([ratings.groups[i] for i in np.flatnonzero(both)])
        kappas = _kappas(ratings.values[both, a], ratings.values[both, b], sample)
        if not quadratic:
            del kappas["kappa_quadratic"]
        names = {"a": ratings.raters[a], "b": ratings.raters[b]}
        pairs.append(results.RaterPair.model_validate({**names, **kappas}))
    return pairs


def _kappas(x: FloatArray, y: FloatArray, sample: Resampler) -> results.Metrics:
    """Return the share of equal labels, kappa and quadratic kappa of two raters' labels [n].

    All three are functions of sums over rows: of each rater's labels by value, of their squares
    and products. On a fine scale that costs far less than a table of pairs of values.
    """
    domain = np.unique([x, y])
    x, y = x - domain.mean(), y - domain.mean()  # against rounding only
    by_value = [(column[:, None] == domain - domain.mean()) for column in (x, y)]
    moments = np.stack([np.ones_like(x), x == y, x, y, x**2 + y**2, x * y], axis=1)
    k = len(domain)

    def numbers(sums: FloatArray) -> dict[str, FloatArray]:
        n, equal, of_x, of_y, squares, products = sums[:, :6].T
        chance = (sums[:, 6 : 6 + k] * sums[:, 6 + k :]).sum(axis=1)
        apart, expected = squares - 2 * products, squares - 2 * of_x * of_y / n
        kappa = np.where(chance < n**2, (n * equal - chance) / (n**2 - chance), np.nan)
        quadratic = np.where(expected > 1e-9 * n, 1 - apart / expected, np.nan)
        return {"agreement": equal / n, "kappa": kappa, "kappa_quadratic": quadratic}

    return sample.estimate_sums(np.concatenate([moments, *by_value], axis=1), numbers)


def one_against_rest(ratings: Ratings) -> results.OneVersusRest:
    """Correlate (Pearson) each rater with the mean of the others on the same units.

    `mean` is over the raters, `pooled` over all ratings at once: there a rater who is stricter
    than the others counts as disagreeing.
    """
    values = ratings.values
    given = ~np.isnan(values)
    sums, counts = np.nansum(values, axis=1), given.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = (sums[:, None] - np.nan_to_num(values)) / (counts[:, None] - given)
    usable = given & (counts[:, None] > 1)
    unit, rater = np.nonzero(usable)
    columns = [(i, rows) for i, rows in enumerate(usable.T) if rows.sum() > 2]

    def by_column(weights: FloatArray) -> FloatArray:
        pairs = ((values[m, i][None], rest[m, i][None], weights[:, m]) for i, m in columns)
        return np.array([weighted_pearson(*pair) for pair in pairs]).reshape(-1, len(weights))

    def numbers(weights: FloatArray) -> dict[str, FloatArray]:
        own, others = values[unit, rater][None], rest[unit, rater][None]
        pooled = weighted_pearson(own, others, weights[:, unit])
        # A rater with a constant verdict has no correlation.
        return {"pearson": mean_of_defined(by_column(weights)), "pooled": pooled}

    alone = by_column(np.ones((1, len(values))))[:, 0].tolist()
    by_rater = [
        {"rater": ratings.raters[i], "pearson": r if np.isfinite(r) else None, "n": int(rows.sum())}
        for (i, rows), r in zip(columns, alone, strict=True)
        if len(ratings.raters) <= MAX_RATERS
    ]
    metrics = Resampler(ratings.groups).estimate(numbers, len(unit), values.size)
    metrics["mean"] = metrics.pop("pearson")
    metrics["mean"].n = int(np.isfinite(alone).sum())
    return results.OneVersusRest.model_validate({"by_rater": by_rater, **_without_reasons(metrics)})


def _without_reasons(metrics: results.Metrics) -> results.JsonObject:
    """Return the numbers without the reason for an undefined one, which is not told here."""
    return {
        name: metric.model_dump(exclude={"reason"}, exclude_unset=True)
        for name, metric in metrics.items()
    }


ROW = ("", "value", "95 % interval", "n")


def table(agreement: results.AnnotatorAgreement | Mapping[str, object]) -> list[list[str]]:
    """Lay out the agreement among annotators, or the same as JSON, in rows of `ROW`."""
    measured = results.AnnotatorAgreement.model_validate(agreement)
    rows = _rows(measured) + _rows(measured.one_vs_rest)
    for pair in measured.pairs:
        rows += _rows(pair, f"raters {pair.a} and {pair.b}: ")
    return rows


def self_table(again: Mapping[str, object]) -> list[list[str]]:
    """Lay out an annotator's agreement with themselves in rows of `ROW`."""
    return _rows(results.RaterPair.model_validate(again))


def lines(agreement: Mapping[str, object]) -> list[str]:
    """Return the agreement among annotators as lines, and on which rows it is measured."""
    measured = results.AnnotatorAgreement.model_validate(agreement)
    head = f"agreement: {measured.raters} raters, {measured.ratings:,} labels of the "
    head += f"{measured.units:,} rows kept that have two or more"
    rows = [row for row in table(measured) if row[2]]
    return [head, *(f"  {name}: {value} {interval} (n {n})" for name, value, interval, n in rows)]


def _rows(numbers: results.Stored | None, prefix: str = "") -> list[list[str]]:
    """Return a row for each number that has a name; bare numbers of older files have no row."""
    rows = []
    for name, text in ANNOTATORS.items():
        metric = getattr(numbers, name, None)
        if isinstance(metric, results.Metric):
            shown = [number(metric.value), interval(metric) or "none"]
            shown = ["undefined", ""] if metric.value is None else shown
            rows.append([f"{prefix}{text}", *shown, f"{metric.n:,}"])
    return rows
