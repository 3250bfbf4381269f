"""Agreement among people: against the packages that others use, and the figures of real sets."""

import json
import math
from fractions import Fraction
from itertools import combinations_with_replacement
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.evidence import people
from pt_app.judge_data.formats import get
from pt_app.judge_data.options import FormatOptions
from pt_app.judge_data.reading.tables import open_table
from tests.real_data import real

TEN = Scale.from_name("0-10")


def rated(*rows: list[object], scale: str = "0-10", group: str = "") -> list[JudgeExample]:
    task = Scale.from_name(scale).task
    return [
        JudgeExample.model_validate(
            {"id": str(i), "group": group or str(i), "task": task, "annotators": row}
        )
        for i, row in enumerate(rows)
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.none() | st.integers(0, 4), min_size=4, max_size=4), min_size=3, max_size=12
    ),
    st.sampled_from(["nominal", "ordinal", "interval"]),
    st.integers(0, 1000),
)
def test_alpha_is_the_packages_for_any_ratings_and_resample(
    rows: list[list[int | None]], level: str, seed: int
) -> None:
    ratings = people.ratings_of(
        [JudgeExample(group=str(i), annotators=row) for i, row in enumerate(rows)],
        TEN,
    )
    if len(ratings.values) < 2 or len(np.unique(ratings.values[~np.isnan(ratings.values)])) < 2:
        return
    domain, counts = people.value_counts(ratings.values)
    weights = np.random.default_rng(seed).integers(0, 3, (1, len(counts))).astype(float)
    drawn = np.repeat(counts, weights[0].astype(int), axis=0)
    if (drawn.sum(axis=0) > 0).sum() < 2:
        return
    reference = krippendorff.alpha(
        value_counts=drawn, value_domain=domain, level_of_measurement=level
    )
    ours = people.alpha(counts, weights, domain, level)
    assert ours[0] == pytest.approx(reference, abs=1e-9)


def test_fleiss_kappa_of_the_example_in_the_paper() -> None:
    # Fleiss 1971 as worked out in the article "Fleiss' kappa" of Wikipedia: 0.210.
    counts = np.array(
        [
            *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
            *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
        ],
        dtype=float,
    )
    assert people.fleiss_kappa(counts, np.ones((1, 10)))[0] == pytest.approx(0.210, abs=5e-4)


def test_one_rater_is_compared_with_the_mean_of_the_others_on_the_same_rows() -> None:
    values = np.random.default_rng(0).integers(0, 11, (50, 4))
    found = people.agreement_of(rated(*values.tolist()), TEN)
    assert found is not None
    by_hand = [
        np.corrcoef(values[:, i], np.delete(values, i, axis=1).mean(axis=1))[0, 1] for i in range(4)
    ]
    one = found["one_vs_rest"]
    assert [rater["pearson"] for rater in one["by_rater"]] == pytest.approx(by_hand)
    assert one["mean"]["value"] == pytest.approx(np.mean(by_hand))
    rest = np.stack([np.delete(values, i, axis=1).mean(axis=1) for i in range(4)], axis=1)
    pooled = np.corrcoef(values.ravel(), rest.ravel())[0, 1]
    assert one["pooled"]["value"] == pytest.approx(pooled)
    assert one["pooled"]["n"] == 200


@pytest.mark.parametrize("scale", ["0-10", "pairwise"])
def test_each_two_annotators_have_sklearns_kappa_with_interval_and_n(scale: str) -> None:
    values, rng = list(Scale.from_name(scale).values), np.random.default_rng(3)
    truth = rng.integers(0, len(values), 80)
    said = np.where(
        rng.random((80, 3)) < 0.7, truth[:, None], rng.integers(0, len(values), (80, 3))
    )
    rows: list[list[object]] = [[values[place] for place in row] for row in said]
    for row in rows[:20]:
        row[2] = None  # the third annotator labelled 60 rows
    found = people.agreement_of(rated(*rows, scale=scale), Scale.from_name(scale))
    assert found is not None
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [
        ("1", "2"),
        ("1", "3"),
        ("2", "3"),
    ]
    for pair, (a, b) in zip(found["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        x, y = said[(20 if b == 2 else 0) :, [a, b]].T
        assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(x, y))
        assert pair["agreement"]["value"] == pytest.approx((x == y).mean())
        if scale == "0-10":
            quadratic = cohen_kappa_score(x, y, weights="quadratic")
            assert pair["kappa_quadratic"]["value"] == pytest.approx(quadratic)
        else:
            assert "kappa_quadratic" not in pair
        for name in set(pair) - {"a", "b"}:
            assert pair[name]["low"] < pair[name]["value"] < pair[name]["high"]
            assert pair[name]["n"] == len(x)
    assert ["raters 1 and 3: Cohen's kappa", "60"] in [
        [row[0], row[3]] for row in people.table(found)
    ]


def test_two_annotators_of_one_label_have_no_kappa_and_a_constant_one_has_none_above_zero() -> None:
    found = people.agreement_of(rated([3, 3], [3, 3], [3, 3]), TEN)
    assert found is not None
    assert found["pairs"][0]["kappa"]["value"] is None
    assert found["pairs"][0]["kappa_quadratic"]["value"] is None
    found = people.agreement_of(rated([3, 1], [3, 2], [3, 3]), TEN)
    assert found is not None
    assert found["pairs"][0]["kappa"]["value"] == 0


def test_rows_with_one_rater_say_nothing_of_agreement() -> None:
    assert people.agreement_of(rated([3], [None, 4], []), TEN) is None


def test_an_annotators_second_verdict_on_a_row_does_not_count() -> None:
    once = [[3, 4], [2, 2], [5, 3], [4, 4]]
    twice = [*once[:-1], [4, 4, {"rater": "1", "verdict": 0}]]
    alone = [{"rater": "1", "verdict": 3}, {"rater": "1", "verdict": 9}]
    for rows in (rated(*twice), rated(*twice, alone)):
        assert people.agreement_of(rows, TEN) == people.agreement_of(rated(*once), TEN)
        assert people.ceiling(rows, TEN) == people.ceiling(rated(*once), TEN)


def test_annotators_without_a_name_are_different_ones() -> None:
    unnamed = [[{"verdict": a}, {"verdict": b}] for a, b in ((3, 4), (2, 2), (5, 3))]
    named = rated([3, 4], [2, 2], [5, 3])
    assert people.agreement_of(rated(*unnamed), TEN) == people.agreement_of(named, TEN)


def test_an_annotator_may_have_any_name() -> None:
    names = ["²", "10", "9", "٣", "ana", "1.5"]
    row = [{"rater": name, "verdict": place} for place, name in enumerate(names)]
    ratings = people.ratings_of(rated(row), TEN)
    assert ratings.raters == ("٣", "9", "10", "1.5", "ana", "²")


@pytest.mark.parametrize("name", ["0-1:0.1", "1-5:0.5", "-1-1:0.2", "0-10"])
def test_the_others_stand_for_the_value_nearest_to_their_mean_the_lower_of_two(name: str) -> None:
    scale = Scale.from_name(name)
    size = len(scale.values)
    for count in (2, 3, 4):
        for places in combinations_with_replacement(range(size), count):
            nearest = Fraction(sum(places), count) - Fraction(1, 2)
            (found,) = people._consensus(np.array(places), scale).tolist()
            assert found == math.ceil(nearest), places


def test_intervals_of_few_rows_stay_within_the_bounds_of_agreement() -> None:
    found = people.agreement_of(rated(*[[i, i] for i in range(8)], [0, 1], [3, 5]), TEN)
    assert found is not None
    for name in ("raw", "fleiss_kappa", "alpha_nominal", "alpha_interval"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"] <= 1


def test_raters_of_equal_verdicts_agree_wholly_and_alpha_is_undefined_for_one_verdict() -> None:
    found = people.agreement_of(
        rated(["A", "A"], ["A", "A"], scale="pairwise"), Scale.from_name("pairwise")
    )
    assert found is not None
    assert found["raw"]["value"] == 1.0
    assert found["alpha_nominal"]["value"] is None
    assert "reason" not in found["alpha_nominal"]
    assert "one_vs_rest" not in found
    assert any("undefined" in row for row in people.table(found))


def test_more_groups_make_a_narrower_interval() -> None:
    """Thirty rows told thrice are thirty observations, not ninety."""
    rows = np.random.default_rng(1).integers(0, 3, (30, 2)).repeat(3, axis=0).tolist()
    apart = people.agreement_of(rated(*rows), TEN)
    together = [row.model_copy(update={"group": str(i // 3)}) for i, row in enumerate(rated(*rows))]
    joined = people.agreement_of(together, TEN)
    assert apart is not None
    assert joined is not None
    widths = [found["raw"]["high"] - found["raw"]["low"] for found in (apart, joined)]
    assert widths[0] < widths[1] / 1.3
    assert apart["raw"]["value"] == joined["raw"]["value"]


# --- the figures of real sets ---


def test_pandalms_annotators_agree_as_published() -> None:
    rows = json.loads(real("pandalm/testset-v1.json").read_text(encoding="utf-8"))
    names = {0: "tie", 1: "A", 2: "B"}
    labels = [[names[row[f"annotator{i}"]] for i in (1, 2, 3)] for row in rows]
    found = people.agreement_of(rated(*labels, scale="pairwise"), Scale.from_name("pairwise"))
    assert found is not None
    assert found["units"] == 999
    assert found["alpha_nominal"]["value"] == pytest.approx(0.864, abs=5e-4)
    pairs = sorted(pair["agreement"]["value"] for pair in found["pairs"])
    assert pairs[0] == pytest.approx(0.913, abs=5e-4)
    assert pairs[-1] == pytest.approx(0.929, abs=5e-4)


@pytest.mark.parametrize(
    ("part", "mean", "pooled"), [("dev", 0.590, 0.528), ("test", 0.576, 0.532)]
)
def test_mlqe_pes_raters_correlate_as_published(part: str, mean: float, pooled: float) -> None:
    path: Path = real(f"mlqe-pe/en-de-{part}.tar.gz")
    known = get("mlqe-pe")
    table = open_table(f"{path}::{known.member}", known.reading)
    scale = Scale.from_name(known.scale)
    made = known.convert(table.rows(), scale, FormatOptions(), lambda e: pytest.fail(str(e)))
    rows = [one.row for one in made if one.row]
    found = people.agreement_of(rated(*[row["annotators"] for row in rows], scale="0-100"), scale)
    assert found is not None
    assert found["units"] == 1000
    assert found["one_vs_rest"]["mean"]["value"] == pytest.approx(mean, abs=5e-4)
    assert found["one_vs_rest"]["pooled"]["value"] == pytest.approx(pooled, abs=5e-4)


def test_import_says_on_which_rows_people_are_measured(tmp_path: Path) -> None:
    rows = [f"source number {i * 7919},texto {i},{i % 5 + 1},{i % 3 + 1}" for i in range(40)]
    rows[3] = f"{rows[3].rpartition(',')[0]},"  # one label alone
    rows[7] = f"{rows[7].rpartition(',')[0]},often"
    (tmp_path / "v.csv").write_text("\n".join(["s,c,one,two", *rows]) + "\n")
    words = ["data", "import", str(tmp_path / "v.csv"), "--map=source=s,candidate=c,label=one+two"]
    out = f"--out={tmp_path / 'data'}"
    done = CliRunner().invoke(app, [*words, "--scale=1-5", out, "--drop_bad"])
    told = [line for line in done.output.splitlines() if line.startswith("agreement:")]
    assert told == ["agreement: 2 raters, 76 labels of the 38 rows kept that have two or more"]
    assert "raters 1 and 2: Cohen's kappa: " in done.output
