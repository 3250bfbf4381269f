"""Where `judge data split` puts rows: no group and no duplicate on two sides, and none moved."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample, Label
from pt_app.core.verdicts import Scale
from pt_app.judge_data.checking import check_examples
from pt_app.judge_data.duplicates import links
from pt_app.judge_data.options import SplitPlan
from pt_app.judge_data.splitting import Placement, place, place_units, strata_of, units_of

SCALE = Scale.from_name("0-10")
WORDS = ("uma", "casa", "velha", "com", "janelas", "verdes", "fica", "atrás", "da", "igreja")
few = settings(max_examples=60, deadline=None)


def example(
    name: str, source: str = "", candidate: str = "Sim.", verdict: Any = 5, **own: Any
) -> JudgeExample:
    """One row of fields; its group is its source unless another is told."""
    source = source or f"source of {name}"
    own = {"group": source, "task": "score", **own}
    label = Label(verdict=verdict)
    return JudgeExample(id=name, source=source, candidate=candidate, label=label, **own)


def sentence(number: int, change: int = 0) -> str:
    """A sentence of 20 words, far from those of other numbers; `change` alters it a little."""
    rng = random.Random(number)
    words = [f"{word}{rng.randint(0, 99)}" for word in WORDS * 2]
    changed = [" ".join(words), " ".join(words).upper() + "!", " ".join(["outra", *words[1:]])]
    return changed[change]


@st.composite
def rows(draw: st.DrawFn, texts: int = 60) -> list[JudgeExample]:
    """Rows whose groups, sources and candidates repeat each other here and there."""
    text = st.builds(sentence, st.integers(0, texts), st.integers(0, 2))
    row = st.tuples(st.integers(0, texts), text, text, st.integers(0, 10))
    drawn = draw(st.lists(row, min_size=2, max_size=30))
    return [
        example(f"{i}", source, candidate, verdict, group=f"g{group}")
        for i, (group, source, candidate, verdict) in enumerate(drawn)
    ]


ratios = st.tuples(st.floats(0.05, 1), st.floats(0, 1), st.floats(0.05, 1))


def plan_of(shares: Sequence[float] = (0.8, 0.1, 0.1), **flags: Any) -> SplitPlan:
    return SplitPlan(ratios=",".join(map(str, shares)), **flags)


def split_of(placement: Placement) -> dict[str, str]:
    """The split of each row that was placed, by its id."""
    return {row.id: split for split, part in placement.splits.items() for row in part}


def places_of(placement: Placement) -> dict[str, str]:
    """What splits.json would say."""
    return {row.group: split for split, part in placement.splits.items() for row in part}


def assert_apart(placement: Placement) -> None:
    """No group is on two sides, and a check finds no leak."""
    sides = {(row.group, split) for split, part in placement.splits.items() for row in part}
    assert len(sides) == len({group for group, _ in sides})
    report = check_examples({s: p for s, p in placement.splits.items() if p}, SCALE)
    assert [leak.line() for leak in report.leaks] == []


@few
@given(rows(), ratios, st.integers(0, 3))
def test_no_group_and_no_duplicate_is_ever_on_two_sides(
    examples: list[JudgeExample], shares: tuple[float, float, float], seed: int
) -> None:
    plan = plan_of(shares, seed=seed)
    wanted = [split for split, share in plan.shares.items() if share]
    if len(units_of(examples, links(examples))) < len(wanted):
        with pytest.raises(UserError, match="cannot fill"):
            place(examples, plan)
        return
    placement = place(examples, plan)
    assert_apart(placement)
    assert sorted(split_of(placement)) == sorted(row.id for row in examples), "every row once"
    assert all(placement.splits[split] for split in wanted)


@few
@given(rows(), rows(texts=20), ratios)
def test_added_rows_move_no_group_and_leak_nothing(
    first: list[JudgeExample], more: list[JudgeExample], shares: tuple[float, float, float]
) -> None:
    try:
        before = place(first, plan_of(shares))
    except UserError:
        assume(False)
    own = [row for part in before.splits.values() for row in part]
    new = [row.model_copy(update={"id": f"new {row.id}"}) for row in more]
    after = place([*own, *new], plan_of(shares), places_of(before), len(own))
    assert_apart(after)
    assert split_of(before).items() <= split_of(after).items(), "old rows stay"
    left_out = [row.id for row in after.left_out]
    assert sorted([*split_of(after), *left_out]) == sorted(row.id for row in [*own, *new])


@few
@given(rows(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(
    examples: list[JudgeExample], rng: random.Random
) -> None:
    shuffled = rng.sample(examples, len(examples))
    try:
        placement = place(examples, plan_of(seed=1))
    except UserError:
        assume(False)
    assert split_of(placement) == split_of(place(shuffled, plan_of(seed=1)))


def test_labels_are_balanced_and_the_seed_decides() -> None:
    rng = random.Random(0)
    verdicts = rng.choices(range(11), weights=range(1, 12), k=2000)
    examples = [
        example(f"{i}", f"source {i // rng.randint(2, 5)}", verdict=verdict)
        for i, verdict in enumerate(verdicts)
    ]
    one = place(examples, plan_of())
    assert {s: len(part) for s, part in one.splits.items()} == {
        "train": 1600,
        "val": 200,
        "test": 200,
    }
    whole = Counter(verdicts)
    for part in one.splits.values():
        counts = Counter(row.label.verdict for row in part if row.label)
        assert all(abs(counts[v] - len(part) * n / 2000) <= 2 for v, n in whole.items())
    assert split_of(one) == split_of(place(examples, plan_of()))
    assert split_of(one) != split_of(place(examples, plan_of(seed=1)))
    assert one.notes[-1].startswith(
        "labels that would have to change to match the distribution over all rows: train 0."
    )


@pytest.mark.parametrize("val", [5e-324, 1e-300, 1e300])
def test_shares_of_any_size_make_a_split(val: float) -> None:
    examples = [example(f"{i}") for i in range(100)]
    sizes = [len(part) for part in place(examples, plan_of((0.8, val, 0.2))).splits.values()]
    assert sizes == ([1, 98, 1] if val > 1 else [79, 1, 20])


def test_many_labels_are_balanced_by_fifths_of_their_order() -> None:
    examples = [example(f"{i}", verdict=i / 10) for i in range(1000)]
    test = place(examples, plan_of()).splits["test"]
    fifths = Counter(int(row.label.verdict // 20) for row in test if row.label)
    assert fifths == dict.fromkeys(range(5), 20)


def test_new_groups_fill_what_the_label_balance_lacks() -> None:
    old = [example(f"{i}", verdict=0) for i in range(10)]
    places = {row.group: "train" if i < 9 else "test" for i, row in enumerate(old)}
    new = [example(f"new {i}", verdict=i % 2 * 10) for i in range(20)]
    halves = place([*old, *new], plan_of((0.5, 0, 0.5)), places, len(old)).splits
    labels = {s: Counter(row.label.verdict for row in p if row.label) for s, p in halves.items()}
    assert labels == {"train": {0: 10, 10: 5}, "val": {}, "test": {0: 10, 10: 5}}


def test_a_duplicate_of_a_placed_row_goes_with_it() -> None:
    old = [example(f"{i}", sentence(i)) for i in range(10)]
    places = {row.group: "test" if i == 3 else "train" for i, row in enumerate(old)}
    near = example("near", sentence(3, change=2))
    accented = example("case", sentence(3, change=1))
    where = split_of(place([*old, near, accented], plan_of(), places, len(old)))
    assert (where["near"], where["case"]) == ("test", "test")
    apart = place([*old, near], plan_of(near=1), places, len(old))
    assert split_of(apart)["near"] == "val", "near duplicates are not looked for with --near 1"


def test_a_new_row_that_links_two_splits_is_left_out_and_said() -> None:
    old = [example("a", sentence(1)), example("b", sentence(2), sentence(3))]
    places = {sentence(1): "train", sentence(2): "test"}
    link = example("link", sentence(1, change=2), sentence(3))
    placement = place([*old, link, example("c")], plan_of((0.5, 0, 0.5)), places, len(old))
    assert [row.id for row in placement.left_out] == ["link"]
    assert sorted(split_of(placement)) == ["a", "b", "c"]
    assert any(note.startswith("1 rows left out") and "link" in note for note in placement.notes)


def test_into_takes_new_rows_and_leaves_out_those_that_stand_elsewhere() -> None:
    old = [example("a", sentence(1)), example("b", sentence(2))]
    places = {sentence(1): "train", sentence(2): "test"}
    new = [example("same", sentence(1)), example("near", sentence(1, 2)), example("c")]
    placement = place([*old, *new], plan_of(into="test"), places, len(old))
    assert split_of(placement) == {"a": "train", "b": "test", "c": "test"}
    assert [row.id for row in placement.left_out] == ["same", "near"]


def test_duplicates_that_were_on_two_sides_stay_until_anew() -> None:
    old = [example("a", sentence(1)), example("b", sentence(1, 1)), example("c")]
    places = {old[0].group: "train", old[1].group: "test", old[2].group: "train"}
    placement = place(old, plan_of((0.5, 0, 0.5)), places, len(old))
    assert split_of(placement) == {"a": "train", "b": "test", "c": "train"}
    assert any("in two splits already" in note for note in placement.notes)
    anew = split_of(place(old, plan_of((0.5, 0, 0.5))))
    assert anew["a"] == anew["b"] != anew["c"]


def test_boilerplate_under_many_sources_keeps_nothing_together() -> None:
    refusal = "I am sorry but as a language model I cannot do that for you"
    examples = [example(f"{i}", sentence(i), refusal) for i in range(30)]
    placement = place(examples, plan_of())
    assert {s: len(part) for s, part in placement.splits.items()} == {
        "train": 24,
        "val": 3,
        "test": 3,
    }


@few
@given(rows(), st.integers(2, 6))
def test_units_of_folds_hold_every_row_once(examples: list[JudgeExample], folds: int) -> None:
    units = units_of(examples)
    names = [str(fold) for fold in range(folds)]
    if len(units) < folds:
        with pytest.raises(UserError, match="cannot fill"):
            place_units(units, strata_of(examples), dict.fromkeys(names, 1.0), 0)
        return
    where = place_units(units, strata_of(examples), dict.fromkeys(names, 1.0), 0)
    assert sorted(row for unit in units for row in unit.rows) == list(range(len(examples)))
    assert set(where.values()) == set(names)


# --- by time ---


def at(name: str, time: object, source: str = "") -> JudgeExample:
    return example(name, source, meta={"time": time})


def times_of(part: Sequence[JudgeExample]) -> list[Any]:
    return sorted(row.meta["time"] for row in part)


def test_by_time_trains_on_the_oldest_and_tests_on_the_newest() -> None:
    days = [f"2026-01-{day:02}" for day in range(1, 31)]
    random.Random(0).shuffle(days)
    splits = place([at(day, day) for day in days], plan_of(by="time")).splits
    assert [len(part) for part in splits.values()] == [24, 3, 3]
    assert times_of(splits["train"])[-1] < times_of(splits["val"])[0]
    assert times_of(splits["test"]) == ["2026-01-28", "2026-01-29", "2026-01-30"]


def test_by_time_a_group_is_as_old_as_its_newest_row_and_equal_times_stay_together() -> None:
    examples = [at(f"{i}", i // 5) for i in range(50)]
    examples += [at("old", 0, "shared"), at("new", 9, "shared")]
    splits = place(examples, plan_of(by="time")).splits
    assert {"old", "new"} <= {row.id for row in splits["test"]}
    sides = [{row.meta["time"] for row in part if row.id != "old"} for part in splits.values()]
    assert not sides[0] & sides[1]
    assert not sides[1] & sides[2]


def test_by_time_added_rows_go_where_their_time_is_and_move_none() -> None:
    old = [at(f"{i}", i) for i in range(10)]
    before = place(old, plan_of((0.6, 0.2, 0.2), by="time"))
    new = [at("early", 2.5), at("middle", 6.5), at("late", 99)]
    after = place([*old, *new], plan_of((0.6, 0.2, 0.2), by="time"), places_of(before), len(old))
    where = split_of(after)
    assert split_of(before).items() <= where.items()
    assert (where["early"], where["middle"], where["late"]) == ("train", "val", "test")


def test_times_without_a_zone_are_utc_wherever_the_machine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    noon = ["2026-01-01T12:00:00+02:00", "2026-01-01T11:00:00", "2026-01-01T12:00:00Z"]
    splits = place([at(one, one) for one in noon], plan_of((1, 1, 1), by="time")).splits
    monkeypatch.undo()
    time.tzset()
    assert [part[0].id for part in splits.values()] == noon


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        (["2026-01-01", None, "2026-01-03"], "1, field meta.time: None is no date"),
        (["2026-01-01", "soon", "2026-01-03"], "'soon' is no date"),
        ([1, "2026-01-01", 3], "'2026-01-01' is no number, as the first row's is"),
        ([1, float("nan"), 3], "nan is no number"),
        ([1, 1, 2], "2 times cannot fill 3 splits"),
    ],
)
def test_times_that_cannot_be_ordered_are_refused(times: list[object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        place([at(f"{i}", time) for i, time in enumerate(times)], plan_of(by="time"))


# --- by row, and flags ---


def test_by_row_says_what_it_leaks_and_keeps_the_groups_for_later() -> None:
    examples = [example(f"{i}", f"source {i // 10}") for i in range(100)]
    placement = place(examples, plan_of(by="row"))
    assert [len(part) for part in placement.splits.values()] == [80, 10, 10]
    (note,) = [note for note in placement.notes if note.startswith("--by row leaks: ")]
    leaked = int(note.split()[3])
    sides = [{row.source for row in part} for part in placement.splits.values()]
    assert leaked == sum(sum(f"source {i}" in side for side in sides) > 1 for i in range(10)) > 0
    rows = [row for part in placement.splits.values() for row in part]
    again = place(rows, plan_of())
    assert_apart(again)
    assert {row.id: row for part in again.splits.values() for row in part} == {
        row.id: row for row in examples
    }, "no trace of the split by row is left"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"ratios": "0.8,0.2"}, "three numbers"),
        ({"ratios": "a,b,c"}, "three numbers"),
        ({"ratios": "0,0.5,0.5"}, "the first above 0"),
        ({"ratios": "nan,0.1,0.1"}, "the first above 0"),
        ({"ratios": "inf,1,1"}, "the first above 0"),
        ({"ratios": "0.9,-0.1,0.2"}, "the first above 0"),
        ({"folds": 1}, "choose 2 to 100"),
        ({"folds": -3}, "choose 2 to 100"),
        ({"folds": 5, "by": "time"}, "leave out --by time"),
        ({"folds": 5, "by": "row"}, "leave out --by row"),
    ],
)
def test_plans_that_make_no_split_are_refused(flags: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        SplitPlan(**flags)


def test_fewer_groups_than_splits_are_refused_with_a_remedy() -> None:
    rows = [example("a"), example("b")]
    with pytest.raises(UserError, match=r"2 groups cannot fill 3 splits \(train, val, test\): add"):
        place(rows, plan_of())
    assert len(split_of(place(rows, plan_of((0.5, 0, 0.5))))) == 2
