"""Intervals, the strict rule, baselines and comparisons of a judge's verdicts."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from benchmarks.intervals import coverage
from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray, agreement
from pt_app.core.results import JudgeResults
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import intervals
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.coding import agreement_of_sums
from pt_app.evidence.comparison import compare
from pt_app.evidence.intervals import Resampler, percentile_interval
from pt_app.evidence.summary import baseline_results, summarise
from tests.test_metrics import contingency

TEN = Scale.from_name("0-10")
PASS_FAIL = Scale.from_name("pass_fail")
ORDERED = {"mae", "rmse", "bias", "exact", "within_1", "pearson", "spearman"} | {
    "kappa",
    "kappa_linear",
    "kappa_quadratic",
    "alpha",
    "kendall",
}


def _judged(
    groups: int, rows: int = 3, noise: float = 1.0, seed: int = 0
) -> tuple[list[Verdict], list[Verdict], list[str]]:
    """Labels and verdicts of `groups` sources, whose rows share part of label and of error."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1.5, (groups, 1))
    label = np.clip(np.round(5 + shared + rng.normal(0, 2, (groups, rows))), 0, 10)
    error = rng.normal(0, 0.8, (groups, 1)) + rng.normal(0, 1, (groups, rows))
    verdict = np.clip(np.round(label + noise * error), 0, 10)
    names = [f"source {i}" for i in range(groups) for _ in range(rows)]
    return label.astype(int).ravel().tolist(), verdict.astype(int).ravel().tolist(), names


def _summary(**given: Any) -> JudgeResults:
    labels, verdicts, names = _judged(30)
    groups = given.pop("groups", names)
    rows: dict[str, Any] = {"labels": labels, "verdicts": verdicts, "greedy": verdicts}
    rows |= {"sample": Resampler(groups, 200, given.pop("seed", 0)), "scale": TEN}
    return summarise(**(rows | given))


def test_bootstrap_equals_a_loop_that_repeats_the_drawn_rows() -> None:
    labels, verdicts, groups = (np.array(column) for column in _judged(25))
    sample, drawn = Resampler(groups.tolist(), 60, seed=3), list[FloatArray]()

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        drawn.append(weights)
        return agreement(contingency(labels, verdicts, (11, 11), weights), np.arange(11.0))

    found = sample.estimate(statistic)["kappa_quadratic"]
    times = np.concatenate(drawn[1:]).astype(int)  # the first call is the rows as they are
    loop = []
    for one in times:
        rows = np.repeat(np.arange(len(labels)), one)
        loop.append(sk.cohen_kappa_score(labels[rows], verdicts[rows], weights="quadratic"))
    assert times.shape == (60, 75)
    low, high, _ = percentile_interval(np.array(loop), 25)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_whole_groups_are_drawn() -> None:
    seen = list[FloatArray]()

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        seen.append(weights)
        return {"rows": weights.sum(-1)}

    groups = [*range(20), *range(20)]  # two rows each
    Resampler(groups, 2000, seed=1).estimate(statistic)
    weights = np.concatenate(seen[1:])
    assert weights.shape == (2000, 40)
    assert (weights[:, :20] == weights[:, 20:]).all()
    assert (weights[:, :20].sum(-1) == 20).all()
    assert weights.mean(0) == pytest.approx(1, abs=0.1)  # all as often


def test_chunks_bound_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _summary()
    monkeypatch.setattr(intervals, "CHUNK_NUMBERS", 1000)
    assert _summary() == whole


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    assert _summary(seed=4) == _summary(seed=4)
    assert _summary(seed=4).metrics["mae"] != _summary(seed=5).metrics["mae"]


def test_dependent_rows_widen_the_interval() -> None:
    labels, verdicts, groups = _judged(40, rows=8)
    rows = {"labels": labels, "verdicts": verdicts, "scale": TEN}
    by_group = summarise(**rows, sample=Resampler(groups)).metrics["bias"]
    by_row = summarise(**rows, sample=Resampler(range(len(labels)))).metrics["bias"]
    assert by_group.value == by_row.value
    assert by_group.high - by_group.low > 1.3 * (by_row.high - by_row.low)


@pytest.mark.parametrize("groups", [6, 12, 60])
def test_intervals_cover_the_truth_in_about_95_of_100_data_sets(groups: int) -> None:
    found = coverage(groups, sets=300, resamples=400)
    assert set(found) == ORDERED
    # 300 sets at 95 %: 0.95 +- 0.0126 (one standard deviation); a root mean square is skewed
    bounds = {name: (0.88 if name == "rmse" else 0.91, 0.99) for name in found}
    assert not {n: c for n, c in found.items() if not bounds[n][0] <= c <= bounds[n][1]}


def test_summary_gives_every_number_with_interval_and_n() -> None:
    summary = _summary(rouge=[0.5] * 90)
    assert set(summary.metrics) == ORDERED
    names = ORDERED | {"rouge_l"}
    assert set(summary.answers) == names | {f"{name}_strict" for name in names}
    for metric in [*summary.metrics.values(), *summary.answers.values()]:
        assert set(metric.as_json()) == {"value", "low", "high", "n"}
        assert metric.low <= metric.value + 1e-12
        assert metric.value <= metric.high + 1e-12
        assert metric.n == 90
    assert (summary.n, summary.groups, summary.few_groups) == (90, 30, False)
    json.dumps(summary.as_json(), allow_nan=False)


def test_a_failure_leaves_the_plain_number_and_is_the_farthest_verdict_in_the_strict_one() -> None:
    labels: list[Verdict] = [9, 2, 5, 7]
    said: list[Verdict | None] = [9, 3, None, None]
    summary = summarise(labels, labels, Resampler("abcd"), TEN, said)
    metrics = summary.answers
    assert metrics == summarise(labels, said, Resampler("abcd"), TEN).metrics
    assert summary.parse_failures == 2
    assert (metrics["mae"].value, metrics["mae"].n) == (0.5, 2)
    # 5 is as far from 0 as from 10; 7 is farthest from 0
    assert (metrics["mae_strict"].value, metrics["mae_strict"].n) == ((0 + 1 + 5 + 7) / 4, 4)
    assert metrics["bias_strict"].value == (0 + 1 - 5 - 7) / 4
    assert metrics["exact_strict"].value == 0.25
    assert summary.metrics["exact"].value == 1.0


def test_a_failure_is_never_right_on_a_nominal_scale() -> None:
    labels: list[Verdict] = ["PASS", "FAIL", "FAIL", "PASS"]
    summary = summarise(labels, ["PASS", "FAIL", None, None], Resampler("abcd"), PASS_FAIL)
    metrics = summary.metrics
    assert metrics["accuracy"].value == 1.0
    assert metrics["accuracy_strict"].value == 0.5
    assert metrics["f1_macro_strict"].value == pytest.approx(2 / 3)


def test_without_ties_a_tied_verdict_counts_half() -> None:
    labels: list[Verdict] = ["A", "B", "A", "tie", "B"]
    said: list[Verdict | None] = ["A", "tie", "B", "A", None]
    summary = summarise(labels, said, Resampler("abcde"), Scale.from_name("pairwise"))
    plain, strict = (summary.metrics[f"accuracy_no_ties{end}"] for end in ("", "_strict"))
    assert (plain.value, plain.n) == (0.5, 3)
    assert (strict.value, strict.n) == (pytest.approx(1.5 / 4), 4)


def test_rouge_counts_only_rows_whose_label_has_feedback_and_a_failure_as_nothing() -> None:
    metrics = summarise(
        [1, 2, 3], [1, 2, 3], Resampler("abc"), TEN, [1, None, 3], rouge=[0.8, 0.6, None]
    ).answers
    assert (metrics["rouge_l"].value, metrics["rouge_l"].n) == (pytest.approx(0.8), 1)
    assert metrics["rouge_l_strict"].value == pytest.approx(0.4)
    assert metrics["rouge_l_strict"].n == 2


def test_a_judge_whose_every_answer_fails_has_no_plain_number() -> None:
    summary = _summary(greedy=[None] * 90, rouge=[0.1] * 90)
    kappa = summary.answers["kappa_quadratic"]
    undefined = {"value": None, "low": None, "high": None, "n": 0, "reason": "no rows"}
    assert kappa.as_json() == undefined
    assert summary.answers["kappa_quadratic_strict"].value < 0
    assert summary.answers["rouge_l_strict"].value == 0
    json.dumps(summary.as_json(), allow_nan=False)


def test_equal_labels_give_null_with_its_reason() -> None:
    kappa = _summary(labels=[7] * 90).metrics["kappa_quadratic"]
    assert (kappa.value, kappa.low, kappa.n) == (None, None, 90)
    assert kappa.reason == "all labels or all verdicts are equal"


def test_one_group_has_no_interval_and_few_groups_are_flagged() -> None:
    one = _summary(groups=["a"] * 90)
    assert one.metrics["mae"].value > 0
    assert (one.metrics["mae"].low, one.metrics["mae"].high) == (None, None)
    assert _summary(groups=[i % 19 for i in range(90)]).few_groups
    assert not _summary(groups=[i % 20 for i in range(90)]).few_groups


def test_rouge_and_verdict_mass_of_few_groups_stay_between_0_and_1() -> None:
    sample = Resampler("abcd")
    nearly = [1.0, 1.0, 1.0, 0.2]
    rouge = summarise([5] * 4, [5] * 4, sample, TEN, rouge=nearly).metrics["rouge_l"]
    rounded = [1.0 + 1e-12, 1.0, 1.0, 0.2]  # a sum of exponentials
    for metric in (rouge, sample.share(nearly), sample.share(rounded)):
        assert metric.value == pytest.approx(0.8)
        assert 0 <= metric.low < 0.8 < metric.high <= 1


def test_a_number_undefined_in_many_resamples_has_no_interval() -> None:
    # One row of three groups has another label: 30 % of the resamples lack it.
    summary = summarise([7, 7, 3], [7, 6, 3], Resampler("abc"), TEN)
    kappa = summary.metrics["kappa_quadratic"]
    assert kappa.value is not None
    assert kappa.low is None


def test_error_kinds_have_their_own_mean_and_n() -> None:
    errors = [["gender"], ["gender", "tense"], []]
    summary = summarise([5, 5, 10], [7, 4, 10], Resampler("abc"), TEN, [5, 5, 10], errors=errors)
    found = {kind: (one.value, one.n) for kind, one in summary.by_error.items()}
    assert found == {"gender": (1.5, 2), "tense": (1.0, 1), "none": (0.0, 1)}


def test_a_rule_has_the_numbers_of_a_judge() -> None:
    labels, _, groups = _judged(30)
    seven = Baseline("majority", [7] * len(labels))
    rule = baseline_results(seven, labels, Resampler(groups), TEN)
    assert rule.verdict == 7
    assert rule.metrics["kappa_quadratic"].value == pytest.approx(0, abs=1e-12)
    expected = np.mean(np.abs(np.array(labels) - 7))
    assert rule.metrics["mae"].value == pytest.approx(expected)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    labels, a, groups = _judged(60, noise=1.0)
    b = [value if i % 5 else (10 if value < 5 else 0) for i, value in enumerate(map(int, a))]
    found = compare(labels, a, b, Resampler(groups), TEN, names=("tuned", "stock"))
    single = {
        name: summarise(labels, v, Resampler(groups), TEN).metrics["kappa_quadratic"]
        for name, v in (("a", a), ("b", b))
    }
    assert found.value == pytest.approx(single["a"].value - single["b"].value)
    assert (found.a, found.b, found.metric) == ("tuned", "stock", "kappa_quadratic")
    assert found.n == 180
    assert found.low > 0
    assert found.high - found.low < (
        single["a"].high - single["b"].low - (single["a"].low - single["b"].high)
    )


def test_a_judge_does_not_differ_from_itself() -> None:
    labels, verdicts, groups = _judged(30)
    found = compare(labels, verdicts, verdicts, Resampler(groups), TEN)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    nominal: list[Verdict] = ["PASS", "FAIL"] * 20
    assert compare(nominal, nominal, nominal, Resampler(range(40)), PASS_FAIL).metric == "kappa"


def test_mean_has_the_interval_of_a_normal_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = Resampler(range(401)).mean([*values.tolist(), None])
    assert (found.value, found.n) == (pytest.approx(values.mean()), 400)
    half = 1.96 * values.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_a_verdict_off_the_scale_names_row_and_scale() -> None:
    with pytest.raises(
        UserError, match=r"verdict 11 in row 2 is off the scale 0-10: allowed are 0 to 10"
    ):
        summarise([1, 2], [1, 11], Resampler("ab"), TEN)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        summarise([1, 2], [1], Resampler("ab"), TEN)


@pytest.mark.parametrize("name", ["0-10", "pairwise", "pass_fail"])
def test_numbers_of_no_row_at_all_are_not_defined(name: str) -> None:
    none = np.array([], dtype=np.int64)
    (columns,), statistic = agreement_of_sums(none, Scale.from_name(name), none)
    numbers = statistic(np.zeros((3, columns.shape[1])))
    assert all(value.shape == (3,) and np.isnan(value).all() for value in numbers.values())


@pytest.mark.parametrize("name", ["0-100", "1-5", "0-10:0.5", "pairwise"])
def test_other_scales_agree_with_sklearn(name: str) -> None:
    scale, rng = Scale.from_name(name), np.random.default_rng(0)
    picks = rng.integers(0, len(scale.values), (2, 60))
    picks[1, ::2] = picks[0, ::2]
    labels, verdicts = ([scale.values[i] for i in column] for column in picks)
    summary = summarise(labels, verdicts, Resampler(range(60), 50), scale)
    assert summary.metrics["kappa"].value == pytest.approx(sk.cohen_kappa_score(*picks))


def test_two_people_of_pandalm_agree_as_sklearn_says() -> None:
    file = Path(os.environ.get("JUDGE_REAL_DATA", "../shared/data")) / "pandalm/testset-v1.json"
    if not file.exists():
        pytest.skip(f"{file} is absent: set JUDGE_REAL_DATA")
    rows = json.loads(file.read_text(encoding="utf-8"))
    names: list[Verdict] = ["tie", "A", "B"]
    first, second = ([names[int(row[f"annotator{i}"])] for row in rows] for i in (1, 2))
    groups = [(row["instruction"], row["input"]) for row in rows]
    summary = summarise(first, second, Resampler(groups), Scale.from_name("pairwise"))
    kappa = summary.metrics["kappa"]
    assert (summary.n, summary.groups) == (999, 170)
    assert kappa.value == pytest.approx(sk.cohen_kappa_score(first, second))
    assert 0 < kappa.low < kappa.value < kappa.high < 1
