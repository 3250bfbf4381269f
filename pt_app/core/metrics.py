"""Agreement numbers from counts of (label, verdict) pairs, and ROUGE-L of a feedback.

Verdicts lie on a scale of K values, so every number here is a function of the K x K table of
counts. All functions take tables with any leading axes, so that the thousands of resamples of a
bootstrap cost one call.
"""

import numpy as np
import numpy.typing as npt

from pt_app.core.words import words

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def agreement(tables: FloatArray, values: FloatArray | None) -> dict[str, FloatArray]:
    """Return the agreement of verdicts with labels for each of the `tables` of counts.

    Args:
        tables: counts by label and verdict [..., K, C].
        values: the numbers of an ordered scale [K] (then C = K); None: a nominal scale, whose
            columns past K are verdicts that are never right.

    Returns:
        Each number in the leading shape of `tables`; NaN if it is undefined (no rows, or a
        constant column by whose spread it would divide).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return _nominal(tables) if values is None else _ordered(tables, values)


def _ordered(tables: FloatArray, values: FloatArray) -> dict[str, FloatArray]:
    n = tables.sum((-2, -1))
    difference = values[None, :] - values[:, None]  # verdict - label, in units of the scale
    distance = np.abs(difference)

    def mean(weights: FloatArray) -> FloatArray:
        return np.asarray(np.tensordot(tables, weights, 2) / n, np.float64)

    return {
        "mae": mean(distance),
        "rmse": np.sqrt(mean(distance**2)),
        "bias": mean(difference),
        "kappa": _kappa(tables, np.sign(distance)),
        "kappa_linear": _kappa(tables, distance),
        "kappa_quadratic": _kappa(tables, distance**2),
        "alpha": _alpha(tables, distance**2),
        "pearson": _correlation(tables, values, values),
        "spearman": _correlation(tables, _midranks(tables.sum(-1)), _midranks(tables.sum(-2))),
        "kendall": _kendall(tables),
        "exact": mean((distance == 0).astype(np.float64)),
        "within_1": mean((distance <= 1 + 1e-9).astype(np.float64)),
    }


def _nominal(tables: FloatArray) -> dict[str, FloatArray]:
    k, columns = tables.shape[-2:]
    right = np.diagonal(tables, axis1=-2, axis2=-1)
    both = tables.sum(-1) + tables.sum(-2)[..., :k]
    occurs = both > 0
    f1 = np.where(occurs, 2 * right / both, 0.0)
    return {
        "accuracy": right.sum(-1) / tables.sum((-2, -1)),
        "kappa": _kappa(tables, 1 - np.eye(k, columns)),
        "alpha": _alpha(tables, 1 - np.eye(k, columns)),
        "mcc": _matthews(tables),
        "f1_macro": f1.sum(-1) / occurs.sum(-1),
    }


def _kappa(tables: FloatArray, weights: FloatArray) -> FloatArray:
    """Return 1 - observed / expected disagreement (Cohen 1968); NaN if all labels are equal.

    A constant verdict on labels that differ has kappa 0 by the formula, and keeps it.
    """
    rows, columns = tables.sum(-1), tables.sum(-2)
    observed = np.tensordot(tables, weights, 2) * tables.sum((-2, -1))
    expected = ((rows @ weights) * columns).sum(-1)
    defined = (rows > 0).sum(-1) > 1
    return np.where(defined, 1 - observed / expected, np.nan)


def _alpha(tables: FloatArray, weights: FloatArray) -> FloatArray:
    """Return Krippendorff's alpha of label and verdict as two raters: 1 - observed / expected.

    Unlike kappa it expects both to draw from one pool (2011, "Computing Krippendorff's
    Alpha-Reliability"). `weights` [K, C] are squared distances (interval level) or nominal. NaN if
    all labels and verdicts are one value.
    """
    k, columns = tables.shape[-2:]
    pool = tables.sum(-2)
    pool[..., :k] += tables.sum(-1)
    n = pool.sum(-1)
    square = weights if columns == k else 1 - np.eye(columns)
    observed = np.tensordot(tables, weights, 2) / tables.sum((-2, -1))
    expected = ((pool @ square) * pool).sum(-1) / (n * (n - 1))
    return np.where((pool > 0).sum(-1) > 1, 1 - observed / expected, np.nan)


def _matthews(tables: FloatArray) -> FloatArray:
    """Return Matthews' correlation coefficient of label and verdict for K classes (Gorodkin 2004).

    NaN if all labels or all verdicts are equal.
    """
    labels, verdicts = tables.sum(-1), tables.sum(-2)
    n = tables.sum((-2, -1))
    right = np.diagonal(tables, axis1=-2, axis2=-1).sum(-1)
    shared = (labels * verdicts[..., : labels.shape[-1]]).sum(-1)
    spread = [n**2 - (margin**2).sum(-1) for margin in (labels, verdicts)]
    coefficient: FloatArray = (right * n - shared) / np.sqrt(spread[0] * spread[1])
    return np.where((spread[0] > 0) & (spread[1] > 0), coefficient, np.nan)


def _kendall(tables: FloatArray) -> FloatArray:
    """Return Kendall's tau-b (1945): concordant less discordant pairs, corrected for ties."""
    aligned = np.zeros_like(tables)  # rows with a lower label and a lower verdict than each cell's
    aligned[..., 1:, 1:] = tables.cumsum(-2).cumsum(-1)[..., :-1, :-1]
    opposed = np.zeros_like(tables)  # rows with a lower label and a higher verdict
    higher = tables[..., ::-1].cumsum(-1)[..., ::-1].cumsum(-2)
    opposed[..., 1:, :-1] = higher[..., :-1, 1:]
    pairs = (tables * (aligned - opposed)).sum((-2, -1))
    n = tables.sum((-2, -1))
    untied = [n**2 - (margin**2).sum(-1) for margin in (tables.sum(-1), tables.sum(-2))]
    return np.asarray(2 * pairs / np.sqrt(untied[0] * untied[1]), np.float64)


def _correlation(tables: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return Pearson's r of label scores `x` and verdict scores `y` [..., K] over the rows."""
    rows, columns = tables.sum(-1), tables.sum(-2)
    n = tables.sum((-2, -1))[..., None]
    x = x - (rows * x).sum(-1, keepdims=True) / n
    y = y - (columns * y).sum(-1, keepdims=True) / n
    covariance = (x * (tables @ y[..., None])[..., 0]).sum(-1)
    spread = np.sqrt((rows * x**2).sum(-1) * (columns * y**2).sum(-1))
    defined = ((rows > 0).sum(-1) > 1) & ((columns > 0).sum(-1) > 1)
    return np.where(defined, covariance / spread, np.nan)


def _midranks(margin: FloatArray) -> FloatArray:
    """Return each value's rank among the rows, ties sharing the middle of their ranks."""
    return margin.cumsum(-1) - margin + (margin + 1) / 2


def rouge_l(reference: str, text: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004), 0 to 1.

    Words are those of `pt_app.core.words`, accents kept: the tokenizer of the `rouge_score`
    package drops everything but a-z and 0-9, so that "não" becomes "n o", and nothing is left of
    Chinese. Two texts without a word agree (1.0).
    """
    from rapidfuzz.distance import LCSseq

    first, second = words(reference), words(text)
    if not first or not second:
        return float(first == second)
    return 2 * float(LCSseq.similarity(first, second)) / (len(first) + len(second))
