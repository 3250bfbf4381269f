"""Dataset folders: all there or nothing, read back to the letter, longer by --append."""

import itertools
import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.judge_data.folder import build_folder, split_folder
from pt_app.judge_data.options import SplitPlan
from tests.rows import write_rows
from tests.test_split import example, sentence

CARD = {"task": "score", "scale": "0-10", "origin": "a test", "licence": "CC0"}
GROUPS = 20


def examples(count: int = 3 * GROUPS, name: str = "row") -> list[JudgeExample]:
    """Rows of twenty groups, labels in turns."""
    return [
        example(f"{name}-{i}", f"{name} source {i % GROUPS}", f"candidate {i}", i % 11)
        for i in range(count)
    ]


def build(out: Path, rows: list[JudgeExample] | None = None, **flags: Any) -> Any:
    append = flags.pop("append", False)
    card = CARD | flags.pop("card", {})
    plan = SplitPlan(**flags)
    return build_folder(out, rows or examples(), card, plan, append=append)


def split(folder: Path, **flags: Any) -> Any:
    return split_folder(folder, SplitPlan(**flags))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "dataset.json").read_text("utf-8"))
    return card


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def where(folder: Path) -> dict[str, str]:
    """The split of each row, by its id, as training reads it."""
    data = read_dataset(folder, allow_leaks=True)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {row.id: name for name, rows in splits.items() for row in rows}


def test_a_folder_is_read_back_to_the_letter_with_its_hashes_and_card(tmp_path: Path) -> None:
    odd = "line\r\n \x00\x0b\u2028\ufeff tab\t\u0301 end "
    rows = [row.model_copy(update={"candidate": f"{row.id} {odd}"}) for row in examples()]
    told = {"verdict": 3, "issues": ["gender"], "feedback": odd}
    annotators = [{"rater": "1", "verdict": 3}, {"rater": "2", "verdict": 4}]
    rows[0] = JudgeExample.model_validate(
        rows[0].model_dump() | {"label": told, "annotators": annotators, "meta": {"system": odd}}
    )
    summary = build(tmp_path / "data", rows)
    data = read_dataset(tmp_path / "data")
    read = {
        row.id: row.model_copy(update={"where": ""}) for row in (*data.train, *data.val, *data.test)
    }
    assert read == {row.id: row for row in rows}
    card = card_of(tmp_path / "data")
    for name, digest in card["sha256"].items():
        assert sha256((tmp_path / "data" / name).read_bytes()).hexdigest() == digest
    assert {"judge_train.json", "judge_val.json", "judge_test.json", "splits.json"} == set(
        card["sha256"]
    )
    assert card["split"] == {"by": "group", "ratios": [0.8, 0.1, 0.1], "seed": 0, "near": 0.9}
    assert (card["licence"], card["checks"]["leaks"], card["agreement"]["raters"]) == ("CC0", 0, 2)
    page = (tmp_path / "data" / "README.md").read_text("utf-8")
    assert "CC0" in page
    assert card["sha256"]["judge_test.json"] in page
    lines = summary.lines()
    assert (
        lines[0]
        == f"{tmp_path / 'data'}: 48 train (16 groups), 6 val (2 groups), 6 test (2 groups)"
    )
    assert "check: no leak" in lines


def test_splits_json_says_where_each_group_went(tmp_path: Path) -> None:
    build(tmp_path / "data")
    places = json.loads((tmp_path / "data" / "splits.json").read_text("utf-8"))
    assert len(places) == GROUPS
    sides = where(tmp_path / "data")
    assert {row.id: places[row.group] for row in examples()} == sides


def test_rows_without_id_or_group_get_their_own(tmp_path: Path) -> None:
    rows = [row.model_copy(update={"id": "", "group": ""}) for row in examples()]
    build(tmp_path / "data", rows)
    assert set(where(tmp_path / "data")) == {f"row-{i}" for i in range(1, 61)}
    places = json.loads((tmp_path / "data" / "splits.json").read_text("utf-8"))
    assert len(places) == GROUPS
    assert all(len(group) == 12 for group in places)


def test_times_of_a_parquet_file_are_written_as_text_and_nan_is_refused(tmp_path: Path) -> None:
    from datetime import date

    rows = examples()
    dated = [row.model_copy(update={"meta": {"time": date(2026, 1, 2)}}) for row in rows]
    build(tmp_path / "data", dated)
    assert read_dataset(tmp_path / "data").test[0].meta == {"time": "2026-01-02"}
    rows[7] = rows[7].model_copy(update={"meta": {"x": float("nan")}, "where": "file.parquet:8"})
    with pytest.raises(UserError, match="parquet:8: the row cannot be written as JSON"):
        build(tmp_path / "other", rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


# --- all or nothing ---


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "data")
    before = bytes_of(tmp_path / "data")
    assert not build(tmp_path / "data").written
    assert bytes_of(tmp_path / "data") == before


def test_descriptions_by_an_earlier_version_are_brought_up_to_date(tmp_path: Path) -> None:
    build(tmp_path / "data")
    now = bytes_of(tmp_path / "data")
    card = card_of(tmp_path / "data")
    card["checks"] = {"lengths": "measured in another way"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(card))
    (tmp_path / "data" / "README.md").write_text("of that version")
    assert build(tmp_path / "data").written
    assert bytes_of(tmp_path / "data") == now


@pytest.mark.parametrize("text", ['{"origin": "another"}', "[]", "{"])
def test_rows_of_another_origin_are_refused(tmp_path: Path, text: str) -> None:
    build(tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(text)
    with pytest.raises(UserError, match="comes from another command: choose another folder"):
        build(tmp_path / "data")


def test_another_command_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "data")
    before = bytes_of(tmp_path / "data")
    # Not every command that writes a folder has --append.
    remedy = r"choose another folder with --out, or delete it \(`judge data import --append` adds"
    with pytest.raises(UserError, match=f"comes from another command: {remedy}"):
        build(tmp_path / "data", seed=1)
    assert bytes_of(tmp_path / "data") == before


def test_rows_that_cannot_be_used_leave_nothing_behind(tmp_path: Path) -> None:
    twice = [example("a", "x"), example("a", "y"), example("b", "z")]
    with pytest.raises(UserError, match='two rows have the id "a"'):
        build(tmp_path / "data", twice)
    with pytest.raises(UserError, match="cannot fill 3 splits"):
        build(tmp_path / "data", [example("a"), example("b")])
    with pytest.raises(UserError, match=r"--near is 0\.2"):
        build(tmp_path / "data", near=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_half_way_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = itertools.count()

    def failing(file: int) -> None:
        if next(written) % 3 == 2:
            raise OSError(28, "No space left on device")

    build(tmp_path / "old")
    before = bytes_of(tmp_path)
    monkeypatch.setattr(os, "fsync", failing)
    for name, flags in (("new", {}), ("old", {"append": True})):
        problem = f"{tmp_path / name} cannot be written (No space left on device): make room"
        with pytest.raises(UserError, match=re.escape(problem)):
            build(tmp_path / name, examples(name="more"), **flags)
    with pytest.raises(UserError, match="No space left"):
        split(tmp_path / "old", folds=2)
    assert bytes_of(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(UserError, match="is a file: choose a folder"):
        build(tmp_path / "data")


# --- longer by --append ---


def test_appended_rows_move_none_and_both_imports_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    one = {"imports": [{"files": ["a.csv"], "read": 60, "kept": 60, "dropped": {}}]}
    two = {"imports": [{"files": ["b.csv"], "read": 60, "kept": 60, "dropped": {}}]}
    build(folder, card=one)
    before = where(folder)
    build(folder, examples(name="more"), append=True, card=two | {"licence": "CC-BY-4.0"})
    after = where(folder)
    assert before.items() <= after.items()
    assert len(after) == 120
    card = card_of(folder)
    assert [found["files"] for found in card["imports"]] == [["a.csv"], ["b.csv"]]
    assert (card["licence"], card["origin"]) == ("CC0; CC-BY-4.0", "a test")
    assert not read_dataset(folder).notes, "the hashes are those of the files"


def test_a_left_out_row_is_counted_in_the_summary_and_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder, [example("a", sentence(1))], into="train")
    build(folder, [example("b", sentence(2))], into="test", append=True)
    link = example("link", sentence(1, 2), sentence(9))
    same = example("same", sentence(2, 1), sentence(9))
    build(folder, [link, same, example("c")], append=True, ratios="0.5,0,0.5")
    assert set(where(folder)) == {"a", "b", "c"}
    assert card_of(folder)["split"]["left_out"] == 2
    split(folder, anew=True, ratios="0.5,0,0.5")
    assert card_of(folder)["split"]["left_out"] == 2, "those rows are still not there"


def test_rows_are_added_to_a_folder_made_by_hand_and_its_files_kept(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    (folder / "README.md").write_text("my notes")
    before, by_hand = where(folder), bytes_of(folder)
    summary = build(folder, append=True)
    assert before.items() <= where(folder).items()
    assert len(where(folder)) == len(before) + 60
    assert bytes_of(folder / "before") == by_hand
    assert "judge_test.json, README.md as they were are kept in" in summary.lines()[1]
    build(folder, examples(name="more"), append=True)
    assert not (folder / "before2").exists(), "what a command wrote is not kept"


@pytest.mark.parametrize(
    ("card", "flags", "problem"),
    [
        ({"scale": "1-5"}, {}, "field scale: 0-10, but that of the new rows is 1-5"),
        ({"task": "pairwise"}, {}, "field task: score, but that of the new rows is pairwise"),
        ({}, {"by": "row"}, "was split by group: add --by group, or split it again"),
    ],
)
def test_rows_of_another_make_are_not_added(
    tmp_path: Path, card: dict[str, str], flags: dict[str, Any], problem: str
) -> None:
    build(tmp_path / "data")
    before = bytes_of(tmp_path / "data")
    with pytest.raises(UserError, match=problem):
        build(tmp_path / "data", examples(name="more"), append=True, card=card, **flags)
    with pytest.raises(UserError, match='two rows have the id "row-0"'):
        build(tmp_path / "data", append=True)
    assert bytes_of(tmp_path / "data") == before


def test_added_rows_keep_their_rubric_and_take_the_template_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder, card={"rubric": "Is it fluent?", "template": "translation_any"})
    other = {"rubric": "Is it true?", "template": "response"}
    summary = build(folder, examples(name="more"), append=True, card=other)
    card = card_of(folder)
    assert (card["rubric"], card["template"]) == ("Is it fluent?", "translation_any")
    data = read_dataset(folder)
    rubrics = {row.id: row.rubric for row in (*data.train, *data.val, *data.test)}
    assert (rubrics["row-1"], rubrics["more-1"]) == (None, "Is it true?")
    assert "template stays translation_any, not response" in summary.lines()


def test_a_folder_with_a_group_on_two_sides_takes_no_more_rows(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "rows")
    text = (folder / "judge_train.json").read_text("utf-8").splitlines()[0]
    row = json.loads(text) | {"id": "again"}
    with open(folder / "judge_test.json", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"judge_test.json:13, field group: it is in train too"):
        build(folder, append=True)
