"""Several people's labels become one by a stated rule."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale
from pt_app.judge_data.labels import reduce

# Training flushes denormal numbers, and pytest may have trained in this process.
NUMBERS = st.floats(-5, 120, allow_subnormal=False)
FIVE, PAIRS, PASS = (Scale.from_name(name) for name in ("1-5", "pairwise", "pass_fail"))


@pytest.mark.parametrize(
    ("scale", "how", "labels", "expected"),
    [
        (FIVE, "", [4, 5], 5),
        (FIVE, "", [1, 2, 2], 2),
        (FIVE, "median", [1, 2, 5, 5], 2),
        (FIVE, "majority", [1, 1, 5, 5, 3], 1),
        (Scale.from_name("0-10:0.5"), "mean", [7, 7.5, 7], 7),
        (PAIRS, "", ["A", "B", "A"], "A"),
        (PAIRS, "", ["A", "B", "tie"], "tie"),
        (PAIRS, "", ["A", "B"], "tie"),
        (PASS, "", ["PASS", "FAIL"], "FAIL"),
    ],
)
def test_labels_become_one_by_the_stated_rule(
    scale: Scale, how: str, labels: list[Any], expected: Any
) -> None:
    assert reduce(labels, scale, how) == expected


def test_a_rule_that_a_task_does_not_have_is_refused() -> None:
    with pytest.raises(
        UserError, match="--reduce mean is not a rule of the task pairwise: use majority"
    ):
        reduce(["A"], PAIRS, "mean")


@settings(deadline=None)
@given(st.data())
def test_a_reduced_label_is_always_on_the_scale(draw: st.DataObject) -> None:
    scale = Scale.from_name(draw.draw(st.sampled_from(["0-10", "1-5", "0-100", "0-10:0.5"])))
    how = draw.draw(st.sampled_from(["mean", "median", "majority"]))
    # A label off the scale that wins is not bent onto it: the row is refused.
    one_label = st.sampled_from(scale.values) if how == "majority" else NUMBERS
    labels = draw.draw(st.lists(one_label, min_size=1, max_size=6))
    one = reduce(labels, scale, how)
    assert scale.normalise(one) == one
