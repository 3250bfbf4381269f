"""Dataset folders: all there or nothing, read back to the letter, longer by --append, in folds."""

import csv
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.errors import UserError
from pt_app.eval_model.data import read_dataset
from pt_app.eval_model.records import JudgeExample
from pt_app.judge_data import writing
from pt_app.judge_data.folder import FoldsSummary, build_folder, split_folder
from pt_app.judge_data.relabel import read_back, write_blind
from pt_app.judge_data.splitting import SplitPlan
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
    plan = SplitPlan.of(**flags)
    return build_folder(out, rows or examples(), card, plan, append=append, progress=False)


def split(folder: Path, **flags: Any) -> Any:
    return split_folder(folder, SplitPlan.of(**flags), progress=False)


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


def test_another_command_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "data")
    before = bytes_of(tmp_path / "data")
    with pytest.raises(UserError, match="comes from another command: choose another folder"):
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
    def failing(path: Path, text: str) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        path.write_text(text, encoding="utf-8")

    build(tmp_path / "old")
    before = bytes_of(tmp_path)
    monkeypatch.setattr(writing, "_write_flushed", failing)
    for name, flags in (("new", {}), ("old", {"append": True})):
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
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
        ({}, {"by": "row"}, "was split by group: add --by group, or part it anew"),
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
    with pytest.raises(UserError, match=r"judge_test.json:13, field group: it stands in train too"):
        build(folder, append=True)


# --- split ---


def test_what_a_person_said_twice_stays_on_the_card_of_a_new_split(tmp_path: Path) -> None:
    folder, file = tmp_path / "data", tmp_path / "again.csv"
    build(folder)
    write_blind(folder, 60, file)
    head, *rows = csv.reader(file.read_text("utf-8-sig").splitlines())
    at = head.index("verdict")
    with open(file, "w", encoding="utf-8", newline="") as filled:
        csv.writer(filled).writerows([head, *([*row[:at], "5", *row[at + 1 :]] for row in rows)])
    read_back(folder, file)
    page = (folder / "README.md").read_text("utf-8")
    split(folder)
    assert "## Agreement with oneself" in page
    assert (folder / "README.md").read_text("utf-8") == page


def test_split_keeps_groups_where_they_are_until_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder)
    before = bytes_of(folder)
    summary = split(folder, ratios="0.5,0.25,0.25")
    assert any("every group stays" in line for line in summary.lines())
    assert bytes_of(folder) == before
    split(folder, ratios="0.5,0.25,0.25", anew=True)
    assert {s: n for s, n in card_of(folder)["split"].items() if s == "ratios"} == {
        "ratios": [0.5, 0.25, 0.25]
    }
    assert sorted(where(folder).values()).count("train") == 30


def test_split_places_rows_of_a_folder_without_splits_json_and_keeps_its_files(
    tmp_path: Path,
) -> None:
    folder = write_rows(tmp_path / "rows")
    by_hand = bytes_of(folder)
    ids = set(where(folder))
    split(folder, ratios="0.5,0.25,0.25")
    assert set(where(folder)) == ids
    assert bytes_of(folder / "before") == by_hand


def test_a_split_without_validation_leaves_no_old_file_of_it(tmp_path: Path) -> None:
    build(tmp_path / "data")
    split(tmp_path / "data", ratios="0.8,0,0.2", anew=True)
    assert not (tmp_path / "data" / "judge_val.json").exists()
    assert set(where(tmp_path / "data").values()) == {"train", "test"}


def test_split_loses_no_row_that_links_two_sides(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder, [example("a", sentence(1)), example("b", sentence(2))], ratios="1,0,1")
    link = example("link", sentence(1, 2), sentence(2), group="new")
    other = example("other", sentence(2, 2), sentence(3), group="new")
    lines = [json.dumps(row.as_row(read_dataset(folder).scale)) for row in (link, other)]
    with open(folder / "judge_train.json", "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    before = bytes_of(folder)
    with pytest.raises(UserError, match=r"judge_train.json:2: .*part them anew with .*--anew"):
        split(folder)
    assert bytes_of(folder) == before


def test_by_row_marks_the_folder_and_split_by_group_mends_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder)
    with pytest.raises(UserError, match="was split by group: add --by group, or part it anew"):
        split(folder, by="row")
    summary = split(folder, by="row", anew=True)
    assert any(line.startswith("--by row leaks: ") for line in summary.lines())
    card = card_of(folder)
    assert (card["split"]["by"], card["checks"]["by_row"]) == ("row", True)
    assert "LEAKS" in (folder / "README.md").read_text("utf-8").splitlines()[0]
    with pytest.raises(UserError, match="was split by row"):
        read_dataset(folder)
    split(folder, anew=True)
    data = read_dataset(folder)
    assert {row.group for row in data.train} <= {f"row source {i}" for i in range(GROUPS)}


def test_agreement_is_measured_by_group_however_the_rows_are_split(tmp_path: Path) -> None:
    said = [[{"rater": r, "verdict": (i % GROUPS + int(r)) % 4} for r in "12"] for i in range(60)]
    rows = [
        JudgeExample.model_validate(row.model_dump() | {"annotators": one})
        for row, one in zip(examples(), said, strict=True)
    ]
    build(tmp_path / "data", rows)
    by_group = card_of(tmp_path / "data")["agreement"]["alpha_interval"]
    split(tmp_path / "data", by="row", anew=True)
    by_row = card_of(tmp_path / "data")["agreement"]["alpha_interval"]
    assert by_row["high"] - by_row["low"] == pytest.approx(
        by_group["high"] - by_group["low"], rel=0.15
    )


def test_chat_rows_keep_their_group_through_a_split_by_row(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    folder.mkdir()
    rows = [
        {"input": f"Rate {i}", "output": "Score: 5/10", "group": f"g{i % 6}"} for i in range(60)
    ]
    for name in ("train", "test"):
        part = rows[:48] if name == "train" else rows[48:]
        (folder / f"judge_{name}.json").write_text(json.dumps(part))
    split(folder, by="row", ratios="0.8,0,0.2")
    split(folder, anew=True, ratios="0.8,0,0.2")
    data = read_dataset(folder)
    assert {row.group for row in (*data.train, *data.test)} == {f"g{i}" for i in range(6)}


# --- folds ---


def folds_of(folder: Path) -> list[Path]:
    return sorted((folder / "folds").iterdir(), key=lambda path: int(path.name))


def test_every_row_is_once_in_the_test_part_of_a_fold(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder)
    before = bytes_of(folder)
    summary = split(folder, folds=5)
    assert isinstance(summary, FoldsSummary)
    assert {name: data for name, data in bytes_of(folder).items() if "folds" not in name} == before
    tested: list[str] = []
    for number, fold in enumerate(folds_of(folder), start=1):
        data = read_dataset(fold)
        assert not data.val
        assert {row.id for row in (*data.train, *data.test)} == {row.id for row in examples()}
        tested += [row.id for row in data.test]
        assert card_of(fold)["fold"] == f"{number}/5"
        assert card_of(fold)["split"]["folds"] == 5
    assert sorted(tested) == sorted(row.id for row in examples())
    assert summary.lines()[1] == "  1: 48 train (16 groups), 12 test (4 groups), no leak"


def test_folds_of_an_earlier_split_are_gone_and_other_files_are_safe(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder)
    split(folder, folds=7)
    split(folder, folds=3)
    assert [path.name for path in folds_of(folder)] == ["1", "2", "3"]
    (folder / "folds" / "notes.txt").write_text("mine")
    before = bytes_of(folder)
    with pytest.raises(UserError, match=r"notes.txt is no fold: move it away first"):
        split(folder, folds=4)
    assert bytes_of(folder) == before


def test_each_fold_holds_the_template_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "user.txt").write_text("{rubric}\n{source}\n{candidate}\n")
    build(folder, card={"template": "../mine"})
    split(folder, folds=2)
    for fold in folds_of(folder):
        assert card_of(fold)["template"] == "template"
        assert (fold / "template" / "user.txt").read_text() == "{rubric}\n{source}\n{candidate}\n"


def test_folds_keep_groups_and_near_duplicates_together_after_a_split_by_row(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    rows = [example(f"{i}", sentence(i // 2, i % 2 * 2), group=f"g{i}") for i in range(24)]
    rows += [example(f"more {i}", group="one") for i in range(4)]
    build(folder, rows)
    split(folder, by="row", anew=True)
    split(folder, folds=3)
    for fold in folds_of(folder):
        data = read_dataset(fold)
        numbers = {int(row.id) // 2 for row in data.test if row.group != "one"}
        assert not numbers & {int(row.id) // 2 for row in data.train if row.group != "one"}
        assert sum(row.group == "one" for row in data.test) in (0, 4)


def test_more_folds_than_groups_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "data")
    with pytest.raises(UserError, match=r"20 groups cannot fill 21 splits \(1 to 21\)"):
        split(tmp_path / "data", folds=21)
    assert not (tmp_path / "data" / "folds").exists()


# --- the command ---


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--anew", "--seed", "3"], 0, "check: no leak"),
        (["--folds", "4"], 0, "4 folds; train one with --data_dir"),
        (["--by", "time", "--anew"], 2, "field meta.time: None is no date"),
        (["--ratios", "1,2"], 2, "write three numbers"),
    ],
)
def test_the_command_says_what_it_did(
    tmp_path: Path, flags: list[str], code: int, said: str
) -> None:
    build(tmp_path / "data")
    result = CliRunner().invoke(app, ["data", "split", str(tmp_path / "data"), *flags])
    shown = result.output + str(result.exception or "")
    assert said in shown
    assert (result.exit_code == 0) == (code == 0)


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir()], ids=["none", "empty"]
)
def test_a_folder_without_rows_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "data")
    with pytest.raises(UserError, match=r"is not there: make|holds no rows: name"):
        split(tmp_path / "data")
