"""Agreement numbers against scipy and scikit-learn, on random and on degenerate rows."""

import math

import krippendorff
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from pt_app.core.metrics import FloatArray, IntArray, agreement, rouge_l
from pt_app.core.verdicts import Scale
from pt_app.evidence.coding import agreement_of_sums

VALUES = np.arange(11, dtype=float)


def contingency(
    labels: IntArray, verdicts: IntArray, shape: tuple[int, int], weights: FloatArray | None = None
) -> FloatArray:
    """Count rows by label and verdict: [r, K, C] with weights [r, n], or [K, C] without."""
    cells = np.eye(shape[0] * shape[1])[labels * shape[1] + verdicts]
    times = np.ones(len(labels)) if weights is None else weights
    counts: FloatArray = (times @ cells).reshape(*times.shape[:-1], *shape)
    return counts


def _rows(seed: int, k: int = 11, n: int = 200) -> tuple[IntArray, IntArray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return labels, np.clip(labels + rng.integers(-3, 4, n), 0, k - 1)


def _numbers(
    labels: IntArray, verdicts: IntArray, values: FloatArray | None = VALUES, k: int = 11
) -> dict[str, float]:
    found = agreement(contingency(labels, verdicts, (k, k)), values)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("step", [1.0, 0.5])
def test_ordered_numbers_equal_scipy_and_sklearn(seed: int, step: float) -> None:
    labels, verdicts = _rows(seed)
    x, y = labels * step, verdicts * step
    expected = {
        "mae": sk.mean_absolute_error(x, y),
        "rmse": math.sqrt(sk.mean_squared_error(x, y)),
        "bias": float(np.mean(y - x)),
        "kappa": sk.cohen_kappa_score(labels, verdicts),
        "kappa_linear": sk.cohen_kappa_score(labels, verdicts, weights="linear"),
        "kappa_quadratic": sk.cohen_kappa_score(labels, verdicts, weights="quadratic"),
        "alpha": krippendorff.alpha(np.stack([x, y]), level_of_measurement="interval"),
        "pearson": stats.pearsonr(x, y)[0],
        "spearman": stats.spearmanr(x, y)[0],
        "kendall": stats.kendalltau(x, y)[0],
        "exact": sk.accuracy_score(labels, verdicts),
        "within_1": float(np.mean(np.abs(y - x) <= 1)),
    }
    assert _numbers(labels, verdicts, VALUES * step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3])
def test_nominal_numbers_equal_sklearn(seed: int, k: int) -> None:
    labels, verdicts = _rows(seed, k, 40)
    assert _numbers(labels, verdicts, None, k) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, verdicts),
            "kappa": sk.cohen_kappa_score(labels, verdicts),
            "alpha": krippendorff.alpha(
                np.stack([labels, verdicts]), level_of_measurement="nominal"
            ),
            "f1_macro": sk.f1_score(labels, verdicts, average="macro"),
            "mcc": sk.matthews_corrcoef(labels, verdicts),
        }
    )


def test_f1_leaves_out_a_class_that_never_occurs() -> None:
    labels, verdicts = np.array([0, 0, 1]), np.array([0, 1, 1])
    expected = sk.f1_score(labels, verdicts, average="macro")
    assert _numbers(labels, verdicts, None, 3)["f1_macro"] == pytest.approx(expected)


def test_a_verdict_off_a_nominal_scale_is_wrong_and_no_class_of_its_own() -> None:
    labels, verdicts = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 2])
    found = agreement(contingency(labels, verdicts, (2, 3)), None)
    f1 = sk.f1_score(labels, verdicts, labels=[0, 1], average="macro")
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, verdicts))
    assert found["f1_macro"] == pytest.approx(f1)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, verdicts))


def test_leading_axes_give_the_number_of_each_table() -> None:
    pairs = [_rows(seed) for seed in range(6)]
    tables = np.stack([contingency(*pair, (11, 11)) for pair in pairs]).reshape(2, 3, 11, 11)
    found = agreement(tables, VALUES)
    for place, pair in enumerate(pairs):
        single = {name: value.reshape(6)[place] for name, value in found.items()}
        assert single == pytest.approx(_numbers(*pair))


def test_weights_count_rows_as_often_as_repeating_them() -> None:
    labels, verdicts = _rows(3, n=50)
    weights = np.random.default_rng(0).integers(0, 4, (7, 50))
    (columns,), statistic = agreement_of_sums(labels, Scale.from_name("0-10"), verdicts)
    found = statistic(weights @ columns)
    for row, times in enumerate(weights):
        repeated = _numbers(np.repeat(labels, times), np.repeat(verdicts, times))
        assert {name: value[row] for name, value in found.items()} == pytest.approx(repeated)


def test_constant_labels_leave_kappa_and_correlation_undefined() -> None:
    found = _numbers(np.full(9, 7), np.array([7, 6, 7, 7, 8, 7, 7, 7, 5]))
    undefined = {name for name, value in found.items() if math.isnan(value)}
    kappas = {"kappa", "kappa_linear", "kappa_quadratic"}
    assert undefined == kappas | {"pearson", "spearman", "kendall"}
    assert found["exact"] == pytest.approx(6 / 9)


def test_a_constant_verdict_has_kappa_zero_and_no_correlation() -> None:
    found = _numbers(_rows(1)[0], np.full(200, 7))
    for name in ("kappa", "kappa_linear", "kappa_quadratic"):
        assert found[name] == pytest.approx(0, abs=1e-12)
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])


@pytest.mark.parametrize("values", [VALUES, None])
def test_no_rows_leave_every_number_undefined(values: FloatArray | None) -> None:
    none = np.array([], dtype=np.int64)
    assert all(math.isnan(value) for value in _numbers(none, none, values).values())


def test_rouge_l_is_f1_of_the_longest_common_subsequence() -> None:
    # "the cat sat" is the longest: precision 3/4, recall 3/5
    score = rouge_l("the cat sat on it", "The cat quietly sat")
    assert score == pytest.approx(2 * 3 / (4 + 5))


def test_rouge_l_keeps_accents_and_ignores_how_they_are_encoded() -> None:
    assert rouge_l("não está", "NÃO ESTÁ") == 1.0
    assert rouge_l("não", "na\u0303o") == 1.0
    assert rouge_l("avó", "avô") == 0.0


def test_rouge_l_of_texts_without_words() -> None:
    assert rouge_l("", "...") == 1.0
    assert rouge_l("word", "") == 0.0
    assert rouge_l("", "word") == 0.0
