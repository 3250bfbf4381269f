"""Verdicts: every scale writes and reads its own lines, and nothing else passes for one."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale, format_answer, read_comments

NAMES = ["0-10", "1-5", "0-100", "0-10:0.5", "0-1:0.1", "-2-2", "pairwise", "pass_fail"]


@st.composite
def scales(draw: st.DrawFn) -> Scale:
    """Any scale: a named one, or a range in steps of up to two decimals."""
    if draw(st.booleans()):
        return Scale.from_name(draw(st.sampled_from(NAMES)))
    step = Decimal(draw(st.integers(1, 500))) / 100
    low = Decimal(draw(st.integers(-5000, 5000))) / 100
    high = low + step * draw(st.integers(1, 200))
    return Scale.from_name(f"{low}-{high}:{step}")


@given(scales(), st.data())
def test_a_written_verdict_is_read_back(scale: Scale, data: st.DataObject) -> None:
    verdict = data.draw(st.sampled_from(scale.values))
    assert scale.parse(scale.line(verdict)) == verdict
    assert scale.parse(scale.line(verdict) + "Feedback: anything\nScore: 1/10") == verdict
    reading = scale.read(format_answer(scale, verdict, ["one", "two"], "Well."))
    assert reading is not None
    assert (reading.verdict, reading.issues, reading.feedback) == (verdict, ("one", "two"), "Well.")


@given(scales())
def test_lines_are_distinct_and_end_in_a_line_end(scale: Scale) -> None:
    assert len(set(scale.lines())) == len(scale.values)
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in scale.lines())
    assert [scale.parse(line) for line in scale.lines()] == list(scale.values)


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("0-10", "Score: 0/10\n", "Score: 10/10\n", 11),
        ("0-10:0.5", "Score: 0/10\n", "Score: 10/10\n", 21),
        ("1-5", "Score: 1/5\n", "Score: 5/5\n", 5),
        ("0-100", "Score: 0/100\n", "Score: 100/100\n", 101),
        ("pairwise", "Winner: A\n", "Winner: tie\n", 3),
        ("pass_fail", "Verdict: PASS\n", "Verdict: FAIL\n", 2),
    ],
)
def test_lines_of_the_scales(name: str, first: str, last: str, count: int) -> None:
    lines = Scale.from_name(name).lines()
    assert (lines[0], lines[-1], len(lines)) == (first, last, count)


def test_a_scale_is_its_values_however_they_are_written() -> None:
    assert Scale.from_name("1-5:1") == Scale.from_name("1.0-5") == Scale.from_name("1-5")
    assert Scale.from_name("1-5:0.5") != Scale.from_name("1-5")
    assert {Scale.from_name("0-10:1"): 1}[Scale.from_name("0-10")] == 1


def test_whole_numbers_are_ints_and_steps_are_exact() -> None:
    values = Scale.from_name("0-1:0.1").values
    assert values == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    assert [type(value) for value in values[:2]] == [int, float]


@pytest.mark.parametrize("name", ["", "10", "10-0", "0-10:3", "0-10:0", "-1--1", "stars"])
def test_what_is_no_scale_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a scale: use low-high"):
        Scale.from_name(name)


@pytest.mark.parametrize(
    "options", ["", "[", "5", "null", "[]", '["a"]', '["a", "a"]', '["a", 1]', '{"a": 1, "b": 2}']
)
def test_options_that_are_no_list_of_different_texts_are_no_scale(options: str) -> None:
    with pytest.raises(UserError, match="is not a scale: use choice: and a JSON list of two"):
        Scale.from_name(f"choice:{options}")


@pytest.mark.parametrize("name", ["5-1234", "0-1:0.0001", f"0-{'9' * 40}"])
def test_a_scale_of_too_many_values_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="has over 1001 values: widen its step"):
        Scale.from_name(name)


@pytest.mark.parametrize(
    "answer",
    ["", "Score: 11/10\n", "score: 7/10\n", " Score: 7/10\n", "Score: 7/5\n", "Score: 07/10\n",
     "Score: 7/10 good\n", "\nScore: 7/10\n", "Feedback: x\nScore: 7/10\n"],
)  # fmt: skip
def test_a_models_answer_must_start_with_a_verdict_to_the_letter(answer: str) -> None:
    assert Scale.from_name("0-10").parse(answer) is None


@pytest.mark.parametrize(
    ("name", "answer", "verdict", "issues", "feedback"),
    [
        ("0-10", "Fine.\nscore:7 / 10", 7, (), "Fine."),
        ("0-10", "**Score:** 7/10\n\n## Feedback: Good.\nAgain.", 7, (), "Good.\nAgain."),
        ("0-10", "- SCORE: 7. Nice\nIssues: a; b ;", 7, ("a", "b"), "Nice"),
        ("0-10", "Score: 7/10\nScore: 7.0/10", 7, (), ""),
        ("0-10:0.5", "Score: 7,5/10", 7.5, (), ""),
        ("1-5", "Score: 4 out of 5", 4, (), ""),
        ("0-10", "**Score: 7/10**", 7, (), ""),
        ("0-10", "Score: **7**/10.\nFine.", 7, (), "Fine."),
        ("0-10", "Score: 7/10, fine", 7, (), ", fine"),
        ("0-10", "Score: 7/10 - 2 errors", 7, (), "- 2 errors"),
        ("0-10", "Score: 7 (good)", 7, (), "(good)"),
        ("0-10", "<b>Fine</b>\n`Score: 7/10`", 7, (), "<b>Fine</b>"),
        ("pairwise", "Winner: **A**, by far", "A", (), ", by far"),
        ("pairwise", "Both are fine.\nwinner: TIE", "tie", (), "Both are fine."),
        ("pass_fail", "verdict: fail\nFeedback: wrong", "FAIL", (), "wrong"),
    ],
)
def test_a_persons_answer_is_read_leniently(
    name: str, answer: str, verdict: object, issues: tuple[str, ...], feedback: str
) -> None:
    reading = Scale.from_name(name).read(answer)
    assert reading is not None
    assert (reading.verdict, reading.issues, reading.feedback) == (verdict, issues, feedback)


@pytest.mark.parametrize(
    ("name", "answer", "why"),
    [
        ("0-10", "It is fine.", "no line like"),
        ("0-10", "The Score: 7/10", "no line like"),
        ("0-10", "Score: 7-8/10", "no line like"),
        ("0-10", "Score: 7%", 'no line like "Score: N/10"'),
        ("0-10", "Score: 7 %", "no line like"),
        ("0-10", "Score: 7.0.1/10", "no line like"),
        ("0-10", "Score: 7/10/2", "no line like"),
        ("0-10", "Score: 7/10 / 2", "no line like"),
        ("0-10", "Score: 7 points out of 10", "no line like"),
        ("0-10", "Score: 7 of ten", "no line like"),
        ("0-10", "Score: 7 or 8", "no line like"),
        ("0-10", "Score: 7/10th", "no line like"),
        ("0-10", "Score: 10x", "no line like"),
        ("0-10", "Score: 7½", "no line like"),
        ("0-10", "Score: 7/10\nScore: 8/10", "two verdicts"),
        ("0-10", "Score: 11/10", "off the scale"),
        ("0-10", "Score: 7.5/10", "off the scale"),
        ("0-10", "Score: 4/5", "off the scale"),
        ("0-10", "Score: -1/10", "off the scale"),
        ("pairwise", "Winner: Alice", 'no line like "Winner: A, B or tie"'),
        ("pairwise", "Winner: A/B", "no line like"),
        ("pairwise", "Winner: A or B", "no line like"),
        ("pairwise", "Winner: a tie", "no line like"),
        ("pass_fail", "Verdict: PASS/FAIL", 'no line like "Verdict: PASS or FAIL"'),
    ],
)
def test_an_unreadable_answer_says_why(name: str, answer: str, why: str) -> None:
    scale = Scale.from_name(name)
    assert scale.read(answer) is None
    assert why in scale.why_unreadable(answer)


def test_an_answer_without_comments_is_the_verdict_alone() -> None:
    scale = Scale.from_name("0-10")
    assert format_answer(scale, 7) == "Score: 7/10\n"
    assert format_answer(scale, 7.0, ["a\nb", "c"]) == "Score: 7/10\nIssues: a b; c"
    assert format_answer(scale, 7, [], " good\nenough\n") == "Score: 7/10\nFeedback: good\nenough"


def test_comments_are_split_into_issues_and_feedback() -> None:
    assert read_comments("Issues: a; b\nFeedback: well\ndone") == (["a", "b"], "well\ndone")


@pytest.mark.parametrize("verdict", [11, -1, 7.5, "7", True, None, float("nan"), [7]])
def test_only_the_scales_own_values_are_on_it(verdict: object) -> None:
    assert Scale.from_name("0-10").normalise(verdict) is None


def test_a_verdict_off_the_scale_is_not_written() -> None:
    with pytest.raises(UserError, match="11 is off the scale 0-10"):
        Scale.from_name("0-10").line(11)
    assert Scale.from_name("0-10").normalise(7.0) == 7
