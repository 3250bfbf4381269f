"""What labels are taken for: a scale that holds them, meanings; unknown ones are asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pt_app.core.verdicts import Scale
from pt_app.judge_data.proposing.columns import Column
from pt_app.judge_data.proposing.guessing import guess_labels
from pt_app.judge_data.proposing.inspecting import inspect
from tests.strangers import answer, graded, source, translations, write


@pytest.mark.parametrize(
    ("labels", "scale"),
    [
        ([1, 2, 3], "1-5"),
        ([0, 3, 5], "0-5"),
        ([2, 9], "0-10"),
        ([7, 85], "0-100"),
        (["0,5", "0,25"], "0-1:0.25"),
        ([1.5, 4], "1-5:0.5"),
        ([-2, 1], "-2-2"),
        ([1, 2, 3, 4] * 15, "1-4"),
        (list(range(1, 8)) * 10, "1-7"),
        (list(range(1, 11)) * 10, "1-10"),
        (list(range(0, 101, 20)) * 10, "0-100:10"),
    ],
)
def test_the_scale_is_the_usual_one_that_holds_the_labels(
    tmp_path: Path, labels: Sequence[Any], scale: str
) -> None:
    rows = [{"src": source(i), "mt": answer(i), "score": n} for i, n in enumerate(labels)]
    proposal = inspect(str(write(tmp_path, "csv", rows)))
    assert f"task      score, scale {scale}" in proposal.lines()
    assert f"--scale {scale}" in " ".join(proposal.flags)
    assert "cannot be used" not in "\n".join(proposal.lines())


@given(st.lists(st.decimals(-50, 2000, places=1), min_size=1, max_size=80))
def test_a_proposed_scale_holds_every_label(labels: list[Any]) -> None:
    guess = guess_labels([Column("score", map(str, labels))], pair=False)
    if guess.scale in ("", "pass_fail"):
        assert guess.remark or guess.scale
        return
    values = Scale.from_name(guess.scale).values
    assert {float(label) for label in labels} <= {float(value) for value in values}


@pytest.mark.parametrize(
    ("labels", "pair", "meanings"),
    [
        ("0 1 2", True, {"0": "tie", "1": "A", "2": "B"}),
        ("1.0 2.0", True, {"1.0": "A", "2.0": "B"}),
        ("1 0.5 0", True, {"1": "A", "0.5": "tie", "0": "B"}),
        ("response_2 first draw", True, {"response_2": "B", "first": "A", "draw": "tie"}),
        ("a B Tie", True, {}),
        ("0 1", False, {"0": "FAIL", "1": "PASS"}),
        ("True False", False, {"True": "PASS", "False": "FAIL"}),
        ("Não Sim", False, {"Não": "FAIL", "Sim": "PASS"}),
        ("pass FAIL", False, {}),
        ("low high medium", False, {"low": "1", "high": "3", "medium": "2"}),
    ],
)
def test_usual_labels_get_their_meanings(labels: str, pair: bool, meanings: dict[str, str]) -> None:
    guess = guess_labels([Column("label", labels.split())], pair)
    assert guess.meanings == meanings
    assert not guess.unknown


def test_labels_without_a_known_meaning_are_asked_for(tmp_path: Path) -> None:
    rows = [graded(i) | {"correct": ("yes", "no", "sort of")[i % 3]} for i in range(9)]
    said = "\n".join(inspect(str(write(tmp_path, "csv", rows))).lines())
    assert "say what sort of mean" in said
    assert "next, with MEANINGS put in:" in said
    assert "'yes=PASS,no=FAIL,sort of=MEANINGS'" in said


def test_labels_finer_than_any_scale_are_said(tmp_path: Path) -> None:
    rows = [translations(i) | {"score": i / 7} for i in range(9)]
    said = " ".join(" ".join(inspect(str(write(tmp_path, "csv", rows))).lines()).split())
    assert "finer than a judge's scale" in said
    assert "--scale SCALE" in said
