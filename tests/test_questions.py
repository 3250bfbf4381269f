"""Datasets that declare questions: what is read, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.questions import Declared, Question, only_scale
from pt_app.core.verdicts import Scale
from tests.question_rows import CARD, QUESTIONS, make_row, write_questions


def question(**declared: Any) -> Question:
    whole = {"instructions": "What?", **declared}
    return Question.of("q", Declared.model_validate(whole), "dataset.json, field questions.q")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "tickets")


def rewritten(folder: Path, card: dict[str, Any] | None = None, **row: Any) -> Path:
    """Change the card, or the first training row, of a folder."""
    if card is not None:
        (folder / "dataset.json").write_text(json.dumps({**CARD, **card}))
    if row:
        path = folder / "judge_train.json"
        lines = path.read_text().splitlines()
        lines[0] = json.dumps({**json.loads(lines[0]), **row})
        path.write_text("\n".join(lines))
    return folder


def test_a_row_is_an_example_for_each_question_that_it_has_a_label_for(folder: Path) -> None:
    data = read_dataset(folder)
    first = [row for row in data.train if row.id == "train-1"]  # has no label for offer
    assert [row.asks for row in first] == ["apologises", "quality", "overall"]
    assert len({row.state for row in data.train}) == 24
    assert len(data.train) == 24 * 3


def test_votes_and_annotators_become_shares_and_the_verdict_they_stand_for(folder: Path) -> None:
    labels = {
        "offer": {"votes": {"refund": 3, "nothing": 1}},
        "quality": {"annotators": {"ana": 2, "rui": 0}},
        "apologises": False,
    }
    data = read_dataset(rewritten(folder, labels=labels))
    first = {row.asks: row for row in data.train if row.id == "train-0"}
    verdicts = {name: row.label.verdict for name, row in first.items() if row.label}
    assert verdicts == {"apologises": "no", "offer": "refund", "quality": 1}  # 1 is the mean
    assert first["apologises"].shares == ()
    assert first["offer"].shares == (0, 0.75, 0.25)
    assert first["quality"].shares == (0.5, 0, 0.5)
    assert [one.rater for one in first["quality"].annotators] == ["ana", "rui"]


def test_the_data_of_one_question_have_its_scale_and_those_of_several_have_none(
    folder: Path,
) -> None:
    data = read_dataset(folder)
    with pytest.raises(UserError, match=r"takes one question, and there are 4 \(apologises"):
        _ = data.scale
    assert not isinstance(data.asked, Scale)
    one = data.about(data.asked[3:])
    assert one.scale.name == "0-10"
    assert {row.asks for row in one.train} == {"overall"}


def test_rows_are_drawn_with_all_of_their_examples(folder: Path) -> None:
    train = read_dataset(folder).train
    drawn = draw(train, 5, seed=3)
    names = {row.id for row in drawn}
    assert len(names) == 5
    assert list(drawn) == [row for row in train if row.id in names]


@pytest.mark.parametrize(
    ("declared", "lines"),
    [
        ({"type": "bool"}, ("Answer: yes\n", "Answer: no\n")),
        ({"type": "choice", "options": ["a", "b c"]}, ("Answer: a\n", "Answer: b c\n")),
        ({"type": "score", "levels": ["bad", "good"]}, ("Score: 0/1\n", "Score: 1/1\n")),
        ({"type": "score", "scale": "1-3"}, ("Score: 1/3\n", "Score: 2/3\n", "Score: 3/3\n")),
    ],
)
def test_a_question_has_a_scale_which_its_name_stands_for(
    declared: dict[str, Any], lines: tuple[str, ...]
) -> None:
    scale = question(**declared).scale
    assert scale.lines() == lines
    assert Scale.from_name(scale.name) == scale == only_scale((question(**declared),))
    assert scale.read(f"Fine.\n{lines[-1].lower()}ok") is not None


@pytest.mark.parametrize(
    ("declared", "listed", "brief", "sentence"),
    [
        ({"type": "bool"}, "", "Answer: yes or no", 'Answer "Answer: yes or no".'),
        (
            {"type": "bool", "criteria": {"true": "so", "false": "not so"}},
            "\n- yes: so\n- no: not so",
            "Answer: yes or no",
            'Answer "Answer: yes or no".',
        ),
        (
            {"type": "choice", "options": {"a": "first", "b": ""}},
            "\n- a: first\n- b",
            "Answer: OPTION",
            'Answer "Answer: OPTION".',
        ),
        (
            {"type": "choice", "options": ["a or b", "c"]},
            "\n- a or b\n- c",
            "Answer: OPTION",
            'Answer "Answer: OPTION".',
        ),
        (
            {"type": "choice", "options": ["a", "b, too"]},
            "\n- a\n- b, too",
            "Answer: OPTION",
            'Answer "Answer: OPTION".',
        ),
        (
            {"type": "score", "scale": "1-5:0.5", "legend": {"5": "very"}},
            "\n5: very",
            "Score: 1/5 to 5/5",
            'Answer "Score: N/5", where N is from 1 to 5.',
        ),
    ],
)
def test_a_question_ends_with_the_form_of_its_answer_a_line_or_of_earlier_templates_a_sentence(
    declared: dict[str, Any], listed: str, brief: str, sentence: str
) -> None:
    asked = question(**declared | {"instructions": "Is it?"})
    assert asked.brief == f"Question: Is it?{listed}\n{brief}"
    assert asked.text == f"Question: Is it?{listed}\n{sentence}"


def test_a_number_is_the_label_of_the_option_that_it_writes() -> None:
    declared = {"type": "choice", "instructions": "Which?", "options": ["1", "2"]}
    asked = question(**declared)
    assert [asked.verdict(cell) for cell in (1, "1", 1.0, True)] == ["1", "1", None, None]


def test_options_without_descriptions_stand_in_the_line_of_the_answer_in_the_order_asked() -> None:
    asked = question(type="choice", options=["a", "b c", "d"], instructions="Which?")
    assert asked.brief == "Question: Which?\nAnswer: a, b c or d"
    assert asked.backwards().brief == "Question: Which?\nAnswer: d, b c or a"
    assert asked.text == 'Question: Which?\n- a\n- b c\n- d\nAnswer "Answer: OPTION".'


def test_options_in_another_order_are_the_same_question_and_the_same_scale() -> None:
    given = question(type="choice", options={str(i): f"number {i}" for i in range(30)})
    other = given.shuffled("a seed")
    assert other.described != given.described
    assert sorted(other.described) == sorted(given.described)
    assert (other.scale, other.content, other) == (given.scale, given.content, given)
    assert given.shuffled("a seed").text == other.text
    assert given.shuffled("a seed").brief == other.brief
    assert question(type="bool").shuffled("x").text == question(type="bool").text
    assert question(type="bool").content != given.content


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ({"type": "choice", "options": ["a", "b", "a"]}, 'two options are named "a"'),
        ({"type": "choice", "options": ["a"]}, "1 options: give 2 to 255"),
        ({"type": "choice", "options": [str(i) for i in range(256)]}, "256 options"),
        ({"type": "choice", "options": ["a\nb", "c"]}, "cannot be the name of an option"),
        ({"type": "score", "levels": ["one"]}, "1 level is no scale"),
        ({"type": "score"}, "either levels"),
        ({"type": "score", "levels": ["a"] * 1002}, "levels: 1,002 levels: give 1,001 at most"),
        ({"type": "choice", "options": ["a\nb", "c"]}, r'"a\\nb" cannot be the name of an option'),
        ({"type": "score", "scale": "pairwise"}, "has no numbers"),
        ({"type": "score", "scale": "0-4", "legend": {"9": "x"}}, '"9" is off the scale'),
        ({"type": "bool", "options": ["a", "b"]}, "a bool question has none"),
        ({"type": "bool", "instructions": " "}, "instructions: they are empty"),
    ],
)
def test_a_declaration_that_cannot_be_asked_is_refused(
    declared: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        question(**declared)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"labels": {"offer": "voucher"}}, 'labels.offer: "voucher" is not allowed: allowed are r'),
        ({"labels": {"overall": 11}}, "labels.overall: 11 is not allowed: allowed are 0 to 10"),
        ({"labels": {"apologises": 1}}, "labels.apologises: 1 is not allowed: allowed are true"),
        ({"labels": {"tone": 1}}, "labels.tone: there is no such question: declared are apol"),
        (
            {"labels": {"offer": {"votes": {"refund": -1}}}},
            "votes.refund: -1 is no number of votes: give 0",
        ),
        ({"labels": {"offer": {"votes": {"refund": 0}}}}, "labels.offer.votes: all votes are 0"),
        (
            {"labels": {"offer": {"votes": {"refund": True}}}},
            "votes.refund: true is no number of votes",
        ),
        ({"labels": {"quality": {"annotators": {}}}}, "quality.annotators: there is none: give"),
        ({"labels": {}}, "field labels: the row has none: label it or leave it out"),
        ({"labels": None}, "field labels: the row has none"),
        ({"labels": []}, "field labels: they are no object"),
        ({"labels": ""}, "field labels: they are no object"),
        ({"labels": {"offer": {"yes": 1}}}, "labels.offer: it is no label"),
        ({"labels": {"quality": {"annotators": {"a": 7}}}}, "annotators.a: 7 is not allowed"),
        ({"reply": None}, "field reply: the row has none"),
        ({"id": ["a"]}, "field id: it is no name: write a text or a number"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_file_row_and_field(
    folder: Path, row: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        read_dataset(rewritten(folder, **row))
    assert "judge_train.json, line 1" in str(refused.value)


def test_a_question_without_a_label_in_training_is_refused(folder: Path) -> None:
    more = {**QUESTIONS, "tone": {"type": "bool", "instructions": "Is it polite?"}}
    with pytest.raises(UserError, match="no row has a label for tone"):
        read_dataset(rewritten(folder, {"questions": more}))


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ({"questions": {}}, "there is no question"),
        ({"state": []}, "field state: name the fields"),
        ({"state": ["labels"]}, "labels is no field of the state"),
        ({"questions": {"a b": QUESTIONS["overall"]}}, '"a b" is no name of a question'),
        (
            {"questions": dict.fromkeys(("a", "A"), QUESTIONS["overall"])},
            '"a" and "A" are one folder',
        ),
        ({"questions": {"a": {"type": "box"}}}, "questions.a.type"),
        (
            {"questions": {"Results.json": QUESTIONS["overall"]}},
            "Results.json: its results",
        ),
        ({"scale": "0-10"}, "field scale: each question has its own"),
        ({"rubrik": "Be strict."}, "field rubrik: it is not known: write rubric, or rename it"),
        ({"task": "score"}, 'field task: the task is score, and .*: write "task": "questions"'),
    ],
)
def test_a_card_that_cannot_be_used_is_refused(
    folder: Path, card: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        read_dataset(rewritten(folder, card))


def test_two_questions_of_one_name_are_refused_and_not_merged(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"quality"', '"overall"'))
    with pytest.raises(UserError, match='"overall" stands twice in one object'):
        read_dataset(folder)


def test_two_rows_of_one_id_are_refused(folder: Path) -> None:
    other = {**make_row("train", 5), "id": "train-3"}
    with pytest.raises(UserError, match='two rows have the id "train-3"'):
        read_dataset(rewritten(folder, **other))
