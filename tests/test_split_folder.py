"""`judge data split`: folders parted anew by group or row, and in folds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.core.settings import By
from pt_app.judge_data.relabel import read_back, write_blind
from tests.rows import write_rows
from tests.test_folder import GROUPS, build, bytes_of, card_of, examples, split, where
from tests.test_split import example, sentence


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
    assert any("every group stays" in line for line in summary)
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
    with pytest.raises(UserError, match=r"judge_train.json:2: .*split them again with .*--anew"):
        split(folder)
    assert bytes_of(folder) == before


def test_by_row_marks_the_folder_and_split_by_group_fixes_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    build(folder)
    with pytest.raises(UserError, match="was split by group: add --by group, or split it again"):
        split(folder, by="row")
    summary = split(folder, by="row", anew=True)
    assert any(line.startswith("--by row leaks: ") for line in summary)
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
    assert summary[1] == "  1: 48 train (16 groups), 12 test (4 groups), no leak"


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


@pytest.mark.parametrize("by", get_args(By))
def test_a_folder_is_read_whatever_its_split_keeps_together(tmp_path: Path, by: By) -> None:
    """Import rows, split them again and train on them."""
    lines = [
        f"source number {i} of {i * 7},reply {i * 3},{i % 5},2026-01-{i + 1:02}\n"
        for i in range(30)
    ]
    (tmp_path / "rows.csv").write_text("source,candidate,label,time\n" + "".join(lines))
    out = str(tmp_path / "out")
    for command in (["import", str(tmp_path / "rows.csv"), "--out", out], ["split", out, "--anew"]):
        result = CliRunner().invoke(app, ["data", *command, "--by", by])
        assert result.exit_code == 0, result.exception
        data = read_dataset(Path(out), allow_leaks=True)
        assert len(data.train) + len(data.val) + len(data.test) == 30
        assert data.card.split.by == by


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
    with pytest.raises(UserError, match=r"is not there: name|holds no rows: name"):
        split(tmp_path / "data")


def test_a_place_that_is_no_split_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "d")
    path = tmp_path / "d" / "splits.json"
    places = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(places | {next(iter(places)): "nowhere"}), encoding="utf-8")
    with pytest.raises(UserError, match="in 'nowhere': use train, val, test"):
        split(tmp_path / "d")
