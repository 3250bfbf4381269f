"""Agreement of a judge's verdicts with labels, as a metric of the `evaluate` library.

    import evaluate

    agreement = evaluate.load("path/to/judge_agreement")
    agreement.compute(predictions=[7, 3], references=[8, 3], groups=["a", "b"])

Needs numpy and scipy alone. The numbers are those of pt_app's results.json (docs/RESULTS_JSON.md).
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Kappas, Krippendorff's alpha, correlations, MAE, RMSE and bias of verdicts against labels on an
ordered scale; accuracy, F1 macro, kappa, alpha and MCC on a nominal one. Each with a 95 % interval
from a cluster bootstrap over groups, since rows of one source depend on each other.
"""
_KWARGS = """\
predictions: verdicts, numbers or names; "" or None is a parse failure, left out and counted.
references: labels, of the same kind.
groups: the source of each row; each row its own if not given.
resamples, seed: of the bootstrap (2000, 0). Under 20 groups there is no interval.
Returns {name: {"value", "low", "high", "n"}} and "parse_failures".
"""
FEW_GROUPS = 20


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS)
class JudgeAgreement(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS,
            features=[
                datasets.Features(
                    {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
                )
                for kind in ("float64", "string")
            ],
        )

    def _compute(self, predictions, references, groups=None, resamples=2000, seed=0):
        rows = list(zip(predictions, references, strict=True))
        index = _index(groups if groups is not None else range(len(rows)))
        read = np.array([not _is_empty(verdict) for verdict, _ in rows])
        ordered = all(
            isinstance(value, (int, float)) for row in rows for value in row if not _is_empty(value)
        )
        kept = [row for row, one in zip(rows, read, strict=True) if one]
        values = sorted({value for row in kept for value in row})
        place = {value: i for i, value in enumerate(values)}
        k, count = len(values), int(index.max()) + 1 if len(index) else 0
        tables = np.zeros((count, k, k))
        for (verdict, label), group in zip(kept, index[read], strict=True):
            tables[group, place[label], place[verdict]] += 1
        numbers = np.array(values, dtype=float) if ordered else None
        found = _numbers(tables.sum(axis=0)[None], numbers)
        drawn = _resampled(tables, numbers, resamples, seed) if count >= FEW_GROUPS else {}
        result = {
            name: _with_interval(value[0], drawn.get(name), count, int(read.sum()))
            for name, value in found.items()
        }
        return {**result, "parse_failures": int((~read).sum())}


def _is_empty(value):
    return value is None or value == "" or value != value


def _index(groups):
    places = {}
    return np.array([places.setdefault(group, len(places)) for group in groups], dtype=int)


def _resampled(tables, numbers, resamples, seed):
    rng, count = np.random.default_rng(seed), len(tables)
    chunk = max(1, (1 << 21) // count)
    parts = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(0, count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        parts.append(_numbers(np.tensordot(times.astype(float), tables, 1), numbers))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _with_interval(value, drawn, groups, n):
    from scipy.special import ndtr, stdtrit

    found = {
        "value": float(value) if np.isfinite(value) else None,
        "low": None,
        "high": None,
        "n": n,
    }
    if drawn is None or not np.isfinite(value):
        return found
    defined = drawn[np.isfinite(drawn)]
    if len(defined) >= 0.95 * len(drawn):
        tail = ndtr(np.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.025))
        found["low"], found["high"] = map(float, np.quantile(defined, [tail, 1 - tail]))
    return found


def _numbers(tables, values):
    """All numbers of tables [r, k, k] (labels down, verdicts across)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n = tables.sum((1, 2))
        differ = 1 - np.eye(tables.shape[1])
        if values is None:
            right = np.einsum("rkk->rk", tables)
            both = tables.sum(2) + tables.sum(1)
            f1 = np.where(both > 0, 2 * right / both, 0).sum(1) / (both > 0).sum(1)
            return {
                "accuracy": right.sum(1) / n,
                "f1_macro": f1,
                "kappa": _kappa(tables, differ),
                "alpha": _alpha(tables, differ),
                "mcc": _matthews(tables),
            }
        apart = values[None, :] - values[:, None]
        square = apart**2

        def mean(weights):
            return np.tensordot(tables, weights, 2) / n

        return {
            "mae": mean(np.abs(apart)),
            "rmse": np.sqrt(mean(square)),
            "bias": mean(apart),
            "kappa": _kappa(tables, differ),
            "kappa_linear": _kappa(tables, np.abs(apart)),
            "kappa_quadratic": _kappa(tables, square),
            "alpha": _alpha(tables, square),
            "pearson": _pearson(tables, values, values),
            "spearman": _pearson(tables, _midranks(tables.sum(2)), _midranks(tables.sum(1))),
            "kendall": _kendall(tables),
            "exact": mean(1.0 - differ),
            "within_1": mean((np.abs(apart) <= 1 + 1e-9).astype(float)),
        }


def _kappa(tables, weights):
    rows, columns, n = tables.sum(2), tables.sum(1), tables.sum((1, 2))
    expected = ((rows @ weights) * columns).sum(1)
    kappa = 1 - np.tensordot(tables, weights, 2) * n / expected
    return np.where((rows > 0).sum(1) > 1, kappa, np.nan)


def _alpha(tables, weights):
    pool = tables.sum(2) + tables.sum(1)
    n = pool.sum(1)
    expected = ((pool @ weights) * pool).sum(1) / (n * (n - 1))
    alpha = 1 - np.tensordot(tables, weights, 2) / tables.sum((1, 2)) / expected
    return np.where((pool > 0).sum(1) > 1, alpha, np.nan)


def _matthews(tables):
    rows, columns, n = tables.sum(2), tables.sum(1), tables.sum((1, 2))
    right = np.einsum("rkk->r", tables)
    spread = (n**2 - (rows**2).sum(1)) * (n**2 - (columns**2).sum(1))
    coefficient = (right * n - (rows * columns).sum(1)) / np.sqrt(spread)
    return np.where(spread > 0, coefficient, np.nan)


def _pearson(tables, x, y):
    rows, columns, n = tables.sum(2), tables.sum(1), tables.sum((1, 2))[:, None]
    x = x - (rows * x).sum(1, keepdims=True) / n
    y = y - (columns * y).sum(1, keepdims=True) / n
    shared = np.einsum("ri,rij,rj->r", x, tables, y)
    spread = np.sqrt((rows * x**2).sum(1) * (columns * y**2).sum(1))
    defined = ((rows > 0).sum(1) > 1) & ((columns > 0).sum(1) > 1)
    return np.where(defined, shared / spread, np.nan)


def _midranks(margin):
    return margin.cumsum(1) - margin / 2


def _kendall(tables):
    below, beside = np.zeros_like(tables), np.zeros_like(tables)
    below[:, 1:, 1:] = tables.cumsum(1).cumsum(2)[:, :-1, :-1]
    beside[:, 1:, :-1] = tables[:, :, ::-1].cumsum(2)[:, :, ::-1].cumsum(1)[:, :-1, 1:]
    pairs, n = (tables * (below - beside)).sum((1, 2)), tables.sum((1, 2))
    untied = [n**2 - (margin**2).sum(1) for margin in (tables.sum(2), tables.sum(1))]
    return 2 * pairs / np.sqrt(untied[0] * untied[1])
