"""Labelling again, blind: what the file tells, what comes back, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.errors import UserError
from pt_app.judge_data.relabel import opaque, read_back, write_blind
from tests.rows import write_rows

Row = dict[str, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data")


def labels_of(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("judge_*.json"):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            found[opaque(row["id"])] = row["label"]["verdict"]
    return found


def filled(file: Path, verdict: Callable[[Row], object], delimiter: str = ",", **how: str) -> Path:
    """Fill the verdicts in and save the file as a spreadsheet would."""
    with open(file, encoding="utf-8-sig", newline="") as read:
        rows = list(csv.DictReader(read))
    for row in rows:
        row["verdict"] = str(verdict(row))
    with open(file, "w", newline="", encoding=how.get("encoding", "utf-8-sig")) as written:
        writer = csv.DictWriter(written, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_the_file_tells_neither_label_nor_split_and_is_shuffled(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "again.csv"
    write_blind(folder, 20, file, seed=1)
    text = file.read_text("utf-8-sig")
    assert "train-" not in text
    assert "Two errors." not in text, "the label's feedback"
    with open(file, encoding="utf-8-sig", newline="") as read:
        rows = list(csv.DictReader(read))
    assert list(rows[0]) == ["row", "source", "reference", "candidate", "verdict", "comment"]
    assert len({row["row"] for row in rows}) == 20
    assert {row["verdict"] for row in rows} == {""}
    write_blind(folder, 20, tmp_path / "other.csv", seed=2)
    assert (tmp_path / "other.csv").read_text("utf-8-sig") != text


def test_rare_labels_are_labelled_again_too(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [
            {
                "id": f"{split}{i}",
                "source": f"{split} {i}",
                "candidate": "c",
                "label": {"verdict": 3},
            }
            for i in range(50)
        ]
        rows[7]["label"] = {"verdict": 9}
        (folder / f"judge_{split}.json").write_text(json.dumps(rows), "utf-8")
    file = tmp_path / "again.csv"
    write_blind(folder, 4, file)
    known = labels_of_list(folder)
    with open(file, encoding="utf-8-sig", newline="") as read:
        drawn = [known[row["row"]] for row in csv.DictReader(read)]
    assert sorted(drawn) == [3, 3, 9, 9]


def labels_of_list(folder: Path) -> dict[str, int]:
    rows = [row for p in folder.glob("judge_*.json") for row in json.loads(p.read_text("utf-8"))]
    return {opaque(row["id"]): row["label"]["verdict"] for row in rows}


def test_who_labels_the_same_again_agrees_wholly_with_themselves(
    folder: Path, tmp_path: Path
) -> None:
    file, known = tmp_path / "again.csv", labels_of(folder)
    write_blind(folder, 30, file)
    lines = read_back(folder, filled(file, lambda row: known[row["row"]]))
    assert "30 rows labelled again, 0 left empty" in lines[0]
    assert any("exact agreement: 1.000 [1.000, 1.000] (n 30)" in line for line in lines)
    assert not any("look at again" in line for line in lines)
    kept = json.loads((folder / "dataset.json").read_text("utf-8"))["self_agreement"]
    assert kept["kappa_quadratic"]["value"] == 1.0


def test_rows_labelled_otherwise_are_named_farthest_first(folder: Path, tmp_path: Path) -> None:
    file, known = tmp_path / "again.csv", labels_of(folder)
    write_blind(folder, 40, file)
    low = [name for name, verdict in known.items() if verdict <= 5]
    far, near = low[0], low[1]
    changed = {far: known[far] + 5, near: known[near] + 1}
    lines = read_back(folder, filled(file, lambda row: changed.get(row["row"], known[row["row"]])))
    assert any("exact agreement: 0.950" in line for line in lines)
    at = next(i for i, line in enumerate(lines) if "2 rows to look at again" in line)
    assert f"{known[far]}, then {known[far] + 5}" in lines[at + 1]
    assert f"{known[near]}, then {known[near] + 1}" in lines[at + 2]


def test_a_file_saved_by_a_spreadsheet_and_partly_filled_is_read(
    folder: Path, tmp_path: Path
) -> None:
    file, known = tmp_path / "again.csv", labels_of(folder)
    write_blind(folder, 30, file)
    half = set(list(known)[::2])
    filled(
        file, lambda row: known[row["row"]] if row["row"] in half else "", ";", encoding="cp1252"
    )
    lines = read_back(folder, file, "cp1252")
    assert "left empty" in lines[0]
    assert not lines[0].startswith("30 rows")


def test_a_text_that_a_spreadsheet_would_run_is_written_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        row = {"id": split, "source": f"={split}()", "candidate": "@x", "label": {"verdict": 1}}
        (folder / f"judge_{split}.json").write_text(json.dumps([row]), "utf-8")
    write_blind(folder, 2, tmp_path / "again.csv")
    with open(tmp_path / "again.csv", encoding="utf-8-sig", newline="") as read:
        cells = [row["source"] + row["candidate"] for row in csv.DictReader(read)]
    assert all(cell.startswith("'=") and "'@x" in cell for cell in cells)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (
            lambda row: 11,
            r"again.csv, line \d+, field verdict: '11' is off the scale 0-10: allowed are 0",
        ),
        (lambda row: "good", r"line 2, field verdict: 'good' is not a number"),
        (lambda row: "", "no verdict is filled in"),
    ],
)
def test_what_cannot_be_read_back_is_refused_and_nothing_kept(
    verdict: Callable[[Row], object], message: str, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "again.csv"
    write_blind(folder, 10, file)
    with pytest.raises(UserError, match=message):
        read_back(folder, filled(file, verdict))
    assert not (folder / "dataset.json").exists()


def test_a_row_with_two_verdicts_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "again.csv"
    write_blind(folder, 5, file)
    with open(filled(file, lambda row: 3), "a", encoding="utf-8", newline="") as written:
        name = file.read_text("utf-8-sig").splitlines()[1].partition(",")[0]
        written.write(f"{name},,,,8,\r\n")
    with pytest.raises(UserError, match=f"line 7.* 8, but an earlier line of row {name} says 3"):
        read_back(folder, file)


def test_a_row_that_lacks_a_column_is_one_that_is_not_filled_in(
    folder: Path, tmp_path: Path
) -> None:
    first, second, *_ = labels_of(folder)
    file = tmp_path / "again.jsonl"
    file.write_text(f'{{"row": "{first}", "verdict": 3}}\n{{"row": "{second}"}}\n')
    assert "1 rows labelled again, 1 left empty" in read_back(folder, file)
    file.write_text(f'{{"row": "{first}", "verdict": 3}}\n{{"verdict": 3}}\n')
    with pytest.raises(UserError, match="line 2, field row: 'None' is no row"):
        read_back(folder, file)


def test_a_filled_in_file_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "again.csv"
    command = ["relabel", str(folder), "-n", "10", "--out", str(file)]
    assert CliRunner().invoke(data, command).exit_code == 0
    again = CliRunner().invoke(data, command)
    assert isinstance(again.exception, UserError)
    assert "maybe filled in" in str(again.exception)


def test_more_rows_than_there_are_cannot_be_drawn(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="-n is 100: choose 1 to 40"):
        write_blind(folder, 100, tmp_path / "again.csv")
