"""Measures of a judge on the test rows of a set, as functions of which rows are drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.orders import flipped
from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.calibration import fit_temperature, with_temperature
from pt_app.evidence.summary import FAIL

# Takes the indices of the drawn rows, with repetitions; NaN where the number is undefined.
Statistic = Callable[[IntArray], float]
LEAST = 1e-6  # a probability in the log score


@dataclass(frozen=True)
class Judged:
    """What one judge says of the rows of a test set.

    Attributes:
        rows: its rows of predictions.jsonl.
        scale: the scale of all verdicts.
        held_out: kinds of errors that no training row has.
        fail_from: the probability of FAIL from which on F1 counts a row as failed; None: as the
            verdicts say.
        temperature: recalibrates the probabilities of the log score, as `calibration.json` does
            those of a judge.
    """

    rows: Sequence[Prediction]
    scale: Scale
    held_out: Sequence[str] = ()
    fail_from: float | None = None
    temperature: float = 1.0

    def labels(self) -> FloatArray:
        """Return the labels as numbers [n]."""
        return np.array([float(row.label) for row in self.rows])

    def numbers(self) -> FloatArray:
        """Return the expected scores [n]; a verdict's number where there are no probabilities."""
        read = [row.verdict if row.expected is None else row.expected for row in self.rows]
        return np.array([math.nan if value is None else float(value) for value in read])

    def chances(self) -> FloatArray | None:
        """Return the probabilities [n, v], of pairs the mean of both orders; None without."""
        if any(row.probabilities is None for row in self.rows):
            return None
        return np.array([row.probabilities for row in self.rows], np.float64)

    def fitted_temperature(self) -> float:
        """Return the temperature of least log loss on these rows; 1 without probabilities."""
        chances = self.chances()
        if chances is None:
            return 1.0
        values = list(self.scale.values)
        return fit_temperature(chances, np.array([values.index(row.label) for row in self.rows]))

    def verdicts(self) -> list[Verdict | None]:
        """Return the verdicts [n]."""
        return [row.verdict for row in self.rows]

    def votes(self) -> FloatArray:
        """Return how many annotators gave each verdict [n, v]."""
        cast = [[a.verdict for a in row.annotators or ()] for row in self.rows]
        return np.array([[own.count(v) for v in self.scale.values] for own in cast], np.float64)


def _correlation(name: str) -> Callable[[Judged], Statistic]:
    def of(judged: Judged) -> Statistic:
        from scipy import stats

        correlate = {
            "spearman": stats.spearmanr,
            "pearson": stats.pearsonr,
            "kendall": stats.kendalltau,
        }[name]
        x, y = judged.numbers(), judged.labels()

        def statistic(at: IntArray) -> float:
            if len(np.unique(x[at])) < 2 or len(np.unique(y[at])) < 2:
                return math.nan
            return float(correlate(x[at], y[at])[0])

        return statistic

    return of


def _mean(values: Sequence[float] | FloatArray) -> Statistic:
    array = np.array(values, np.float64)

    def statistic(at: IntArray) -> float:
        drawn = array[at][~np.isnan(array[at])]
        return float(drawn.mean()) if len(drawn) else math.nan

    return statistic


def _mae(judged: Judged) -> Statistic:
    return _mean(np.abs(judged.numbers() - judged.labels()))


def _rps(judged: Judged) -> Statistic:
    """The ranked probability score, 0 to 1; of a verdict alone its distance on that width."""
    values, labels = np.array(judged.scale.values, np.float64), judged.labels()
    width = values[-1] - values[0]
    chances = judged.chances()
    if chances is None:
        return _mean(np.abs(judged.numbers() - labels) / width)
    apart = chances.cumsum(axis=1)[:, :-1] - (values[:-1] >= labels[:, None])
    return _mean((apart**2 * np.diff(values)).sum(axis=1) / width)


def _accuracy(judged: Judged) -> Statistic:
    pairs = zip(judged.verdicts(), judged.rows, strict=True)
    return _mean([float(verdict == row.label) for verdict, row in pairs])


def _accuracy_held_out(judged: Judged) -> Statistic:
    kinds = set(judged.held_out)
    pairs = zip(judged.verdicts(), judged.rows, strict=True)
    return _mean(
        [float(v == row.label) if kinds & set(row.errors or ()) else math.nan for v, row in pairs]
    )


def _f1_fail(judged: Judged) -> Statistic:
    said = np.array([verdict == "FAIL" for verdict in judged.verdicts()])
    true = np.array([row.label == "FAIL" for row in judged.rows])
    chances = judged.chances()
    if chances is not None and judged.fail_from is not None:
        said = chances[:, FAIL] >= judged.fail_from

    def statistic(at: IntArray) -> float:
        either = said[at].sum() + true[at].sum()
        return float(2 * (said & true)[at].sum() / either) if either else math.nan

    return statistic


def threshold_of_f1(fail: FloatArray, is_fail: FloatArray) -> float:
    """Return the probability of FAIL from which on failing rows gives the greatest F1 on these.

    The verdict of least expected loss is not FAIL from one half on where F1 is the measure, but
    from half of the F1 that can be reached (Lipton et al. 2014, arXiv 1402.1892).

    Args:
        fail: the probability of FAIL [n].
        is_fail: whether the label is FAIL, 1 or 0 [n].
    """
    order = np.argsort(-fail, kind="stable")
    hits, failed = np.cumsum(is_fail[order]), np.arange(1, len(fail) + 1)
    f1 = 2 * hits / (failed + is_fail.sum())
    last = np.append(np.diff(fail[order]) != 0, True)  # rows of equal probability fail together
    return float(fail[order][np.argmax(np.where(last, f1, -1.0))])


def _log_score(judged: Judged) -> Statistic:
    """The mean log-probability of the annotators' votes.

    A judge without probabilities is given the shares of the votes on the test rows with each of its
    verdicts, the best that its verdicts allow: this favours it.
    """
    votes, chances = judged.votes(), judged.chances()
    if chances is None:
        verdicts = judged.verdicts()
        chances = np.empty_like(votes)
        for verdict in set(verdicts):
            own = np.array([other == verdict for other in verdicts])
            chances[own] = votes[own].sum(axis=0) / max(votes[own].sum(), 1.0)
    else:
        chances = with_temperature(chances, judged.temperature)
    score = (votes * np.log(np.maximum(chances, LEAST))).sum(axis=1)

    def statistic(at: IntArray) -> float:
        cast = votes[at].sum()
        return float(score[at].sum() / cast) if cast else math.nan

    return statistic


def _flips_share(judged: Judged) -> Statistic:
    """The share of pairs whose likeliest verdict is another one in the other order."""
    own = [(row.in_one_order, row.swapped) for row in judged.rows]
    return _mean([math.nan if b is None else float(flipped(b) != a) for a, b in own])


MEASURES: dict[str, Callable[[Judged], Statistic]] = {
    **{name: _correlation(name) for name in ("spearman", "pearson", "kendall")},
    "mae": _mae,
    "rps": _rps,
    "accuracy": _accuracy,
    "accuracy_held_out": _accuracy_held_out,
    "f1_fail": _f1_fail,
    "log_score": _log_score,
    "flips": _flips_share,
}
