"""Pairs in both orders: what is flipped, what is not supervised, what is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pt_app.core.orders import (
    both_orders,
    flipped,
    names_a_candidate,
    swapped,
)
from pt_app.core.records import JudgeExample, Label
from pt_app.evidence.biases import by_order, first_preference


def pair(verdict: str = "A", feedback: str = "", **own: object) -> JudgeExample:
    return JudgeExample.model_validate(
        {
            "id": "p",
            "group": "g",
            "source": "s",
            "candidates": ("one text", "another text"),
            "label": {"verdict": verdict, "feedback": feedback},
            **own,
        }
    )


@given(st.sampled_from(["A", "B", "tie"]))
def test_a_pair_swapped_twice_is_the_pair(verdict: str) -> None:
    once = swapped(pair(verdict, "Shorter and right."))
    assert once is not None
    twice = swapped(once)
    assert twice is not None
    assert twice.model_copy(update={"id": "p"}) == pair(verdict, "Shorter and right.")


def test_the_other_order_has_other_places_the_other_winner_and_the_same_group() -> None:
    other = swapped(pair("A"))
    assert other is not None
    assert other.candidates == ("another text", "one text")
    assert other.label is not None
    assert other.label.verdict == "B"
    assert (other.id, other.group) == ("p#swapped", "g")


def test_ties_stay_ties_and_unknown_stays_unknown() -> None:
    assert [flipped(v) for v in ("A", "B", "tie", None, 7)] == ["B", "A", "tie", None, 7]


@pytest.mark.parametrize(
    "feedback",
    [
        "A is better.",
        "The first answer is wrong.",
        "Response 2 misses the point.",
        "Candidate b is fluent.",
        "the latter is shorter",
        "Both fail, but B less so.",
    ],
)
def test_a_comment_that_names_a_candidate_is_not_supervised_in_the_other_order(
    feedback: str,
) -> None:
    other = swapped(pair("A", feedback))
    assert other is not None
    assert other.label == Label(verdict="B")


@pytest.mark.parametrize(
    "feedback",
    ["Um verbo falta.", "It omits a date.", "Plan b, no.", "Vitamin-rich", "D.A.'s term"],
)
def test_a_comment_that_names_no_candidate_is_kept_in_both_orders(feedback: str) -> None:
    assert not names_a_candidate(Label(verdict="A", feedback=feedback))


def test_chat_rows_and_single_candidates_have_one_order() -> None:
    chat = pair(prompt="Which is better?")
    single = JudgeExample(id="s", source="x", candidate="y", label=Label(verdict=1))
    assert both_orders([chat, single]) == [chat, single]
    assert [row.id for row in both_orders([pair(), chat])] == ["p", "p#swapped", "p"]


def test_consistency_counts_pairs_whose_winner_stays() -> None:
    verdicts, others = ["A", "A", "tie", None, "B"], ["B", "A", "tie", "A", None]
    found = by_order(["A"] * 5, verdicts, others)["order_consistency"]
    assert found.tolist() == pytest.approx([1.0, 0.0, 1.0, np.nan, np.nan], nan_ok=True)


def test_a_judge_that_always_likes_the_first_place_prefers_it_wholly() -> None:
    found = first_preference(["A", "A", "B", "tie", "tie"], ["A", "B", "B", "tie", "A"])
    assert found.tolist() == pytest.approx([1.0, 0.5, 0.0, np.nan, 1.0], nan_ok=True)
