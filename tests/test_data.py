"""Dataset folders: both shapes of row, and one line with file, row and field for each fault."""

import hashlib
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import JudgeData, read_dataset, to_dataset
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.records import Place, example_of
from pt_app.core.verdicts import Scale


def fields(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"row-{number}",
        "source": f"source {number}",
        "reference": "referência",
        "candidate": "candidata",
        "label": {"verdict": 7, "issues": ["gender"], "feedback": "Good."},
        **changes,
    }


def chat(number: int, answer: str = "Score: 7/10\nFeedback: Good.", **changes: Any) -> Any:
    turns = [
        {"role": "user", "content": f"Judge {number}: candidata"},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns, **changes}


class Folder:
    """A dataset folder that is right until a test writes something else into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines("train", [fields(1), fields(2)])
        self.lines("test", [fields(3)])

    def lines(self, split: str, rows: list[Any]) -> None:
        self.text(
            f"judge_{split}.json",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )

    def list(self, split: str, rows: Any) -> None:
        self.text(f"judge_{split}.json", json.dumps(rows, indent=1))

    def text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def read(self) -> JudgeData:
        return read_dataset(self.path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_folder_without_a_card_is_scored_0_to_10_with_the_default_template(folder: Folder) -> None:
    data = folder.read()
    assert (data.scale.name, data.card.template, data.card.task) == (
        "0-10",
        "translation",
        "score",
    )
    assert [len(data.train), len(data.val), len(data.test)] == [2, 0, 1]
    first = data.train[0]
    assert (first.group, first.where) == ("source 1", "judge_train.json:1")
    assert first.answer(data.scale) == "Score: 7/10\nIssues: gender\nFeedback: Good."


def test_card_gives_task_scale_and_rubric(folder: Folder) -> None:
    card = {"task": "pass_fail", "rubric": "Be strict.", "template": "mine", "more": 1}
    folder.text("dataset.json", json.dumps(card))
    own = {"label": {"verdict": "FAIL"}}
    folder.lines("train", [fields(1, **own, rubric="Be kind."), chat(2, "Verdict: PASS")])
    folder.lines("test", [fields(3, **own)])
    data = folder.read()
    assert (data.scale.name, data.card.template) == ("pass_fail", "mine")
    # The card's rubric is the template's part; a row's own stands before it.
    assert data.card.rubric == "Be strict."
    assert [row.rubric for row in data.train + data.test] == ["Be kind.", None, None]


def test_a_cards_template_is_looked_for_in_the_folder_and_then_by_its_name(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "prompts" / "mine").mkdir(parents=True)
    (folder.path / "prompts" / "mine" / "user.txt").write_text("Text: {candidate}\n")
    monkeypatch.chdir(folder.path.parent)
    relative = Path(folder.path.name)
    for name in ("prompts/mine", "./prompts/mine"):
        folder.text("dataset.json", json.dumps({"template": name}))
        template = Template.load(read_dataset(relative).card.template)
        assert (template.name, template.user) == ("mine", "Text: {candidate}")
    folder.text("dataset.json", '{"template": "translation"}')
    built_in = Template.load("translation")
    assert Template.load(folder.read().card.template) == built_in
    (folder.path / "translation").mkdir()
    (folder.path / "translation" / "user.txt").write_text("Own: {candidate}\n")
    monkeypatch.chdir(folder.path)
    assert Template.load(read_dataset(Path()).card.template).user == "Own: {candidate}"


def test_pairwise_rows_have_two_candidates(folder: Folder) -> None:
    folder.text("dataset.json", '{"task": "pairwise"}')
    pair = {"candidates": ["um", "dois"], "candidate": None, "label": {"verdict": "tie"}}
    folder.lines("train", [fields(1, **pair)])
    folder.lines("test", [fields(2, **pair, source=None, conversation=[
        {"role": "user", "content": "Hello"}])])  # fmt: skip
    data = folder.read()
    assert data.train[0].candidates == ("um", "dois")
    assert data.test[0].group == "Hello"


def test_a_list_and_lines_give_the_same_rows(folder: Folder) -> None:
    rows = [fields(1), chat(2), {"input": "Judge", "output": "Score: 3/10"}]
    folder.lines("train", rows)
    as_lines = folder.read().train
    folder.list("train", rows)
    assert folder.read().train == as_lines
    assert len(as_lines) == 3


def test_rows_without_id_are_named_by_split_and_row(folder: Folder) -> None:
    folder.text("judge_train.json", f"\n{json.dumps(chat(1))}\n")
    assert folder.read().train[0].id == "train-2"
    folder.lines("train", [fields(1, id=17)])
    assert folder.read().train[0].id == "17"


def test_chat_row_keeps_system_and_prompt_to_the_letter(folder: Folder) -> None:
    row = chat(1, "The text is fine.\n**score: 7**\nIssues: a; b")
    row["messages"].insert(0, {"role": "system", "content": " Be brief.\n"})
    row["messages"][1]["content"] = " Judge\u2028this \n"
    folder.lines("train", [row])
    data = folder.read()
    (example,) = data.train
    assert (example.system, example.prompt) == (" Be brief.\n", " Judge\u2028this \n")
    assert example.answer(data.scale) == "Score: 7/10\nIssues: a; b\nFeedback: The text is fine."


def test_group_of_a_chat_row_is_the_source_or_the_turn_without_the_candidate(
    folder: Folder,
) -> None:
    folder.lines("train", [
        chat(1, source="the  house", translation="candidata"),
        chat(2, translation="candidata"),
        chat(3),
        chat(4, source="", translation="", group="mine"),
        chat(5, source=" ", translation="Judge 5: candidata"),
    ])  # fmt: skip
    rows = folder.read().train
    groups = ["the house", "Judge 2:", "Judge 3: candidata", "mine", "Judge 5: candidata"]
    assert [row.group for row in rows] == groups
    assert [row.candidate for row in rows[:4]] == ["candidata", "candidata", None, ""]


def test_an_empty_candidate_is_a_row(folder: Folder) -> None:
    folder.lines("train", [fields(1, candidate="", label={"verdict": 0})])
    assert folder.read().train[0].candidate == ""


def test_a_byte_order_mark_is_not_data(folder: Folder) -> None:
    path = folder.path / "judge_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(folder.read().train) == 2


def test_hashes_are_of_the_files_and_a_changed_file_is_noted(folder: Folder) -> None:
    digest = hashlib.sha256((folder.path / "judge_test.json").read_bytes()).hexdigest()
    card = {"sha256": {"judge_test.json": digest, "judge_train.json": "0" * 64}}
    folder.text("dataset.json", json.dumps(card))
    data = folder.read()
    assert data.sha256["judge_test.json"] == digest
    assert sorted(data.sha256) == ["judge_test.json", "judge_train.json"]
    assert len(data.notes) == 1
    assert "judge_train.json" in data.notes[0]


def test_a_row_without_a_label_is_an_error(folder: Folder) -> None:
    folder.lines("test", [fields(3, label=None)])
    with pytest.raises(UserError, match=r"judge_test.json, line 1, field label"):
        folder.read()


def test_splits_json_agrees_or_is_an_error(folder: Folder) -> None:
    folder.text("splits.json", '{"source 1": "train", "source 3": "test"}')
    folder.read()
    folder.text("splits.json", '{"source 3": "val"}')
    with pytest.raises(UserError, match=r'splits.json places group "source 3" in val.*test.json:1'):
        folder.read()


def test_a_fault_of_two_splits_is_told_from_one_of_splits_json(folder: Folder) -> None:
    folder.text("splits.json", '{"source 1": "train"}')
    folder.lines("test", [fields(1, id="other")])
    with pytest.raises(UserError, match=r'"source 1" is in two splits: judge_train.json:1 and'):
        folder.read()


def test_an_annotators_huge_number_is_refused_on_other_scales_too(folder: Folder) -> None:
    folder.text("dataset.json", '{"task": "pass_fail"}')
    folder.lines("train", [fields(1, label={"verdict": "PASS"}, annotators=[10**400])])
    with pytest.raises(UserError, match=r"annotators.0.verdict: 1000.* is no verdict"):
        folder.read()


def test_a_carriage_return_ends_no_row(folder: Folder) -> None:
    rows = [json.dumps(fields(row)) for row in (1, 2)]
    (folder.path / TRAIN).write_bytes("\r\r\n".join(rows).encode())
    assert [row.where for row in folder.read().train] == [
        "judge_train.json:1",
        "judge_train.json:2",
    ]


def test_what_is_known_of_a_row_may_have_keys_of_any_type() -> None:
    row = fields(1, meta={"of": {(1, 2): "a pair", "self": []}})
    scale, place = Scale.from_name("0-10"), Place(Path(TRAIN), 1, lines=True)
    assert example_of(row, place, scale).meta == row["meta"]
    with pytest.raises(UserError, match=r"field meta: it holds half of a surrogate pair"):
        example_of(fields(1, meta={"of": [{"text": "\ud800"}]}), place, scale)


def write(split: str, *rows: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.lines(split, list(rows))


def text(name: str, content: str) -> Callable[[Folder], None]:
    return lambda folder: folder.text(name, content)


def raw(name: str, content: bytes) -> Callable[[Folder], None]:
    return lambda folder: (folder.path / name).write_bytes(content) and None


TRAIN = "judge_train.json"
USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "Score: 1/10"}
FAULTS: dict[str, tuple[Callable[[Folder], Any], str]] = {
    "no file": (lambda f: (f.path / TRAIN).unlink(), r"judge_train.json is not there"),
    "empty file": (text(TRAIN, ""), r"judge_train.json holds no rows: add rows"),
    "empty list": (text(TRAIN, "[]"), r"judge_train.json holds no rows"),
    "empty val": (text("judge_val.json", "\n"), r"judge_val.json holds no rows: .*remove"),
    "broken line": (
        text(TRAIN, json.dumps(fields(1)) + '\n{"a": 1,}\n'),
        r"judge_train.json is not JSON at line 2, column 9",
    ),
    "broken list": (text(TRAIN, '[\n{"a": }]'), r"not JSON at line 2, column 7"),
    "cut list": (text(TRAIN, '[{"a": 1},'), r"not JSON at line 1, column 1\d"),
    "not utf-8": (raw(TRAIN, b'{"a": "\xe9"}'), r"judge_train.json is not UTF-8 at byte 7 .*0xe9"),
    "half a character": (
        text(TRAIN, json.dumps(fields(1, candidate="\ud800"))),
        r"line 1.*surrogates not allowed",
    ),
    "deep nesting": (text(TRAIN, "[" * 100_000), r"judge_train.json"),
    "not an object": (text(TRAIN, "[1]"), r"row 1: a row must be an object"),
    "no user": (
        write("train", fields(1), {"messages": [ANSWER]}),
        r"line 2, field messages: no user turn",
    ),
    "no assistant": (write("train", {"messages": [USER]}), r"messages: no assistant turn"),
    "two users": (write("train", {"messages": [USER, ANSWER, USER]}), r"messages: 2 user turns"),
    "turned round": (write("train", {"messages": [ANSWER, USER]}), r"messages: .* comes first"),
    "unknown role": (
        write("train", {"messages": [{"role": "human", "content": "u"}]}),
        r"field messages.0.role: unknown role 'human'",
    ),
    "long role": (
        write("train", {"messages": [{"role": "\x1b[2J" + "x" * 5000, "content": "u"}]}),
        r"field messages.0.role: unknown role '\\x1b\[2Jx{53}\.\.\.': use system",
    ),
    "empty user turn": (
        write("train", chat(1), {"messages": [{"role": "user", "content": " \n"}, ANSWER]}),
        r"line 2, field messages.0.content: the user's turn is empty",
    ),
    "empty input": (
        write("train", {"input": "", "output": "Score: 1/10", "group": "g"}),
        r"line 1, field input: the user's turn is empty",
    ),
    "no input": (
        write("train", {"output": "Score: 1/10"}),
        r"line 1, field input: the row has none: a row needs input and output",
    ),
    "no output": (write("train", {"input": "u"}), r"field output: the row has none"),
    "no verdict": (
        write("train", chat(1), chat(2, "Fine.")),
        r'line 2, field messages.1.content: no line like "Score: N/10" .*"Score: N/10"',
    ),
    "two verdicts": (write("train", chat(1, "Score: 1\nScore: 2")), r"two verdicts"),
    "answer off the scale": (write("train", chat(1, "Score: 12/10")), r"content: .*off the scale"),
    "label off the scale": (
        write("train", fields(1, label={"verdict": 11})),
        r"field label.verdict: 11 is off the scale 0-10: allowed are 0 to 10",
    ),
    "NaN label": (
        write("train", fields(1, label={"verdict": float("nan")})),
        r"NaN is not in JSON, write null",
    ),
    "bool label": (write("train", fields(1, label={"verdict": True})), r"field label.verdict: "),
    "text as issues": (
        write("train", fields(1, label={"verdict": 1, "issues": "a"})),
        r"field label.issues: .*list",
    ),
    "number as candidate": (write("train", fields(1, candidate=5)), r"field candidate: .*string"),
    "no candidate": (write("train", {"source": "s"}), r"field candidate: the row has none"),
    "blank source": (write("train", fields(1, source=" ")), r"field source: the row has none"),
    "empty conversation": (
        write("train", fields(1, source=None, conversation=[{"role": "user", "content": ""}])),
        r"field source: the row has none",
    ),
    "no source": (write("train", fields(1, source=None)), r"field source: the row has none"),
    "unknown task": (write("train", fields(1, task="rank")), r"field task: "),
    "mixed task": (
        write("train", fields(1, task="pairwise", candidates=["a", "b"])),
        r"line 1, field task: pairwise, but the dataset's is score",
    ),
    "one id twice": (
        write("test", fields(3, id="row-2")),
        r'the id "row-2": judge_train.json:2 and judge_test.json:1, field id',
    ),
    "group in two splits": (
        write("test", fields(3, source="source  1")),
        r'group "source 1" is in two splits: judge_train.json:1 and judge_test.json:1',
    ),
    "unknown scale": (text("dataset.json", '{"scale": "stars"}'), r"dataset.json, field scale: "),
    "scale of another task": (
        text("dataset.json", '{"scale": "pairwise"}'),
        r"dataset.json, field scale: pairwise is no scale of the task score",
    ),
    "card of wrong type": (text("dataset.json", '{"rubric": 1}'), r"dataset.json, field rubric: "),
    "card with a scale twice": (
        text("dataset.json", '{"scale": "0-10", "scale": "1-5"}'),
        r'dataset.json, from line 1: "scale" stands twice in one object: correct it',
    ),
    "card is a list": (text("dataset.json", "[]"), r"dataset.json"),
    "splits of wrong type": (text("splits.json", '["a"]'), r"splits.json must be a JSON object"),
    "split of another name": (
        text("splits.json", '{"str": "dev"}'),
        r"""splits.json places group "str" in 'dev': use train, val, test""",
    ),
    "split that is a list, of a long group": (
        text("splits.json", json.dumps({"a\n" * 1000: []})),
        r'splits.json places group "(a ){28}a\.\.\." in \[\]: use train',
    ),
    "annotator's number too large for a float": (
        write("train", fields(1, annotators=[10**400])),
        r"line 1, field annotators.0.verdict: 1000.* is no verdict: allowed are 0 to 10",
    ),
    "broken splits": (text("splits.json", "{"), r"splits.json is not JSON at line 1, column 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_its_place(folder: Folder, fault: str) -> None:
    damage, says = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError) as caught:
        folder.read()
    message = str(caught.value)
    assert re.search(says, message), message
    assert "\n" not in message
    assert str(folder.path) in message or "judge_" in message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not there: .*--data_dir"):
        read_dataset(tmp_path / "nowhere")


def test_examples_become_a_dataset_of_the_datasets_package(folder: Folder) -> None:
    rows = folder.read().train
    table = to_dataset(rows, {"input_ids": [[1, 2], [3]]})
    assert table.column_names == ["id", "group", "where", "input_ids"]
    assert table[1] == {
        "id": "row-2",
        "group": "source 2",
        "where": "judge_train.json:2",
        "input_ids": [3],
    }


def test_a_folder_called_datasets_is_not_taken_for_the_package(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = types.ModuleType("datasets")
    shadow.__path__ = [str(folder.path)]
    monkeypatch.setitem(sys.modules, "datasets", shadow)
    with pytest.raises(UserError, match=r"datasets is not installed.*pip install datasets"):
        to_dataset(folder.read().train, {})
