"""Files that commands write: one process at a time, every row, and never over what is read."""

import multiprocessing
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.files import held, refuse_overwrite
from pt_app.eval_model import score_file as score_command
from pt_app.eval_model.options import ScoreOptions
from pt_app.eval_model.score_file import score_file
from pt_app.judge import Judge
from tests.test_judge import some_rows, write_lines


def other_name(kind: str, file: Path) -> Path:
    """Another path of the same file."""
    folder = file.parent
    other = folder / f"other{file.suffix}"
    match kind:
        case "the same":
            return file
        case "through a dot":
            return folder / "." / file.name
        case "through a folder and back":
            (folder / "sub").mkdir()
            return folder / "sub" / ".." / file.name
        case "symbolic link":
            other.symlink_to(file.name)
        case "hard link":
            os.link(file, other)
        case "linked folder":
            (folder / "linked").symlink_to(folder, target_is_directory=True)
            return folder / "linked" / file.name
    return other


KINDS = (
    *("the same", "through a dot", "through a folder and back"),
    *("symbolic link", "hard link", "linked folder"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_score_refuses_an_output_that_is_its_input(
    kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judge, "load", lambda *_, **__: pytest.fail("a judge was loaded first"))
    file = tmp_path / f"rows{ending}"
    file.write_bytes(b"labels of weeks")
    output = other_name(kind, file)
    with pytest.raises(UserError, match=r"--output .* would overwrite .*rows"):
        score_file(tmp_path / "adapter", str(file), output, ScoreOptions())
    assert file.read_bytes() == b"labels of weeks"
    assert not list(tmp_path.glob("*.parts"))


def test_score_refuses_to_overwrite_the_archive_of_its_input(tmp_path: Path) -> None:
    # archives end otherwise than outputs do, but a link may be called anything
    archive = tmp_path / "labels.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("rows.csv", "source,candidate\na,b\n")
    link = tmp_path / "out.csv"
    link.symlink_to(archive)
    with pytest.raises(UserError, match="would overwrite"):
        score_file(tmp_path / "a", f"{archive}::rows.csv", link, ScoreOptions())
    assert zipfile.is_zipfile(archive)


def test_score_refuses_an_input_that_lies_in_its_folder_of_parts(tmp_path: Path) -> None:
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    file = write_lines(parts / "000000.jsonl", some_rows(2))
    with pytest.raises(UserError, match="would overwrite"):
        score_file(tmp_path / "a", str(file), tmp_path / "out.jsonl", ScoreOptions())
    assert file.exists()


def test_score_refuses_to_overwrite_a_file_of_its_adapter(tmp_path: Path) -> None:
    predictions = tmp_path / "adapter" / "evaluation" / "predictions.jsonl"
    predictions.parent.mkdir(parents=True)
    predictions.write_text("{}\n")
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(1))
    with pytest.raises(UserError, match="would overwrite"):
        score_file(tmp_path / "adapter", str(rows), predictions, ScoreOptions())


ROWS = "id,source,candidate,label,verdict\n" + "".join(
    f"{i},text {i},texto {i},{i % 10},{i % 9}\n" for i in range(30)
)
Command = Callable[[Path], tuple[list[str], Path]]
"""Writes what a command reads, and gives its words and the file that it would overwrite."""


def _import(folder: Path) -> tuple[list[str], Path]:
    file = folder / "ds" / "judge_train.json"
    file.parent.mkdir()
    write_lines(file, [{**row, "label": {"verdict": 1}} for row in some_rows(9)])
    return ["data", "import", str(file), "--out", str(file.parent), "--append"], file


def _import_rubric(folder: Path) -> tuple[list[str], Path]:
    rubric = folder / "ds" / "README.md"
    rubric.parent.mkdir()
    rubric.write_text("Judge it.")
    (folder / "rows.csv").write_text(ROWS)
    words = ["data", "import", f"{folder}/rows.csv", "--out", f"{folder}/ds", "--append"]
    return [*words, f"--rubric={rubric}"], rubric


def _distil(folder: Path) -> tuple[list[str], Path]:
    file = folder / "ds.journal.jsonl"
    write_lines(file, some_rows(2))
    return ["data", "distil", str(file), "--out", f"{folder}/ds", "--model", "m"], file


def _relabel(folder: Path) -> tuple[list[str], Path]:
    file = folder / "ds" / "judge_train.json"
    file.parent.mkdir()
    write_lines(file, [{**row, "label": {"verdict": 1}} for row in some_rows(9)])
    return ["data", "relabel", str(file.parent), "-n", "2", "--out", str(file)], file


def _init(folder: Path) -> tuple[list[str], Path]:
    (folder / "rows.csv").write_text(ROWS)
    return ["init", f"{folder}/rows.csv", "--out", f"{folder}/rows.csv"], folder / "rows.csv"


def _agree(folder: Path) -> tuple[list[str], Path]:
    file = folder / "predictions.jsonl"
    write_lines(file, [{"id": i, "label": i % 10, "verdict": i % 9} for i in range(30)])
    words = ["agree", str(file), "--label=label", "--verdict=verdict", "--id=id"]
    return [*words, "--group=id", "--scale=0-10", f"--out={folder}"], file


def _agree_train(folder: Path) -> tuple[list[str], Path]:
    (folder / "rows.csv").write_text(ROWS)
    train = folder / "out" / "results.json"
    train.parent.mkdir()
    train.write_text('[{"label": 1}]')
    words = ["agree", f"{folder}/rows.csv", "--label=label", "--verdict=verdict"]
    return [*words, f"--train={train}", f"--out={folder}/out"], train


def _evaluation(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    (folder / "predictions.jsonl").write_text("{}\n")
    return folder


def _eval(folder: Path) -> tuple[list[str], Path]:
    data = _evaluation(folder / "ds")
    words = ["eval", f"--data={data}", f"--adapter={folder}/a", f"--out={data}"]
    return words, data / "results.json"


def _report(folder: Path) -> tuple[list[str], Path]:
    made = _evaluation(folder / "evaluation")
    (made / "report.md").symlink_to("results.json")
    return ["report", str(made)], made / "results.json"


def _gate(folder: Path) -> tuple[list[str], Path]:
    made = _evaluation(folder / "new")
    return ["gate", str(made), "--floor=0.5", f"--markdown={made}/results.json"], (
        made / "results.json"
    )


def _gate_junit(folder: Path) -> tuple[list[str], Path]:
    made, old = _evaluation(folder / "new"), _evaluation(folder / "old")
    return ["gate", str(old), str(made), f"--junit={old}/./predictions.jsonl"], (
        old / "predictions.jsonl"
    )


def _join(folder: Path) -> tuple[list[str], Path]:
    one = _evaluation(folder / "1" / "evaluation")
    _evaluation(folder / "2" / "evaluation")
    return ["join", f"{folder}/1", f"{folder}/2", f"--out={one}"], one / "results.json"


def _attack(folder: Path) -> tuple[list[str], Path]:
    data = folder / "ds"
    data.mkdir()
    (data / "attacks.json").write_text("[]")
    words = ["attack", f"--adapter={folder}/a", f"--data={data}", f"--out={data}"]
    return words, data / "attacks.json"


def _generate(folder: Path) -> tuple[list[str], Path]:
    corpus = folder / "ds" / "README.md"
    corpus.parent.mkdir()
    corpus.write_text("a house\tuma casa\n")
    return ["data", "generate", f"--corpus={corpus}", f"--out={folder}/ds"], corpus


def _bundle(folder: Path) -> tuple[list[str], Path]:
    config = folder / "tiny.yaml"
    config.write_text(f"model: tiny\ndata_dir: {Path('datasets/judge_eval').resolve()}\n")
    return ["bundle", f"--config={config}", f"--out={config}", "--recipe=mps"], config


COMMANDS: dict[str, Command] = {
    name.strip("_").replace("_", " "): made
    for name, made in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and name != "_evaluation"
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_to_overwrite_what_it_reads(name: str, tmp_path: Path) -> None:
    words, read = COMMANDS[name](tmp_path)
    before = read.read_bytes()
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError), result.output
    assert "would overwrite" in str(result.exception)
    assert read.read_bytes() == before


def test_files_that_differ_are_not_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a")
    (tmp_path / "copy.csv").write_text("a")
    (tmp_path / "folder").mkdir()
    outputs = [tmp_path / "copy.csv", tmp_path / "new.csv", tmp_path / "folder"]
    refuse_overwrite(outputs, [file, "owner/name"])


def _score_when_told(
    adapter: Path, base: Path, rows: Path, output: Path, told: Any, ended: Any
) -> None:
    """In a process of its own: hold the output until `told`, then end."""
    inner = score_command._score

    def slow(*arguments: Any) -> dict[str, int]:
        ended.put("holds it")
        told.wait(600)
        return inner(*arguments)

    score_command._score = slow
    ended.put(score_file(adapter, str(rows), output, ScoreOptions(base=str(base))))


@pytest.mark.slow
def test_second_scoring_to_one_output_is_refused_and_every_row_is_there(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(30))
    output = tmp_path / "out.jsonl"
    spawn = multiprocessing.get_context("spawn")
    told, ended = spawn.Event(), spawn.Queue()
    first = spawn.Process(target=_score_when_told, args=(adapter, base, rows, output, told, ended))
    first.start()
    assert ended.get(timeout=600) == "holds it"
    with pytest.raises(UserError, match=r"another judge score writes .*out.jsonl"):
        score_file(adapter, str(rows), output, ScoreOptions(base=str(base)))
    with pytest.raises(UserError, match="another judge score writes"):
        score_file(adapter, str(rows), tmp_path / "." / "out.jsonl", ScoreOptions(base=str(base)))
    told.set()
    counts = ended.get(timeout=600)
    first.join(240)
    assert sum(counts.values()) == 30 == len(output.read_text().splitlines())
    assert not list(tmp_path.glob("*.parts"))
    score_file(adapter, str(rows), output, ScoreOptions(base=str(base)))  # its end frees the output


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_rows_that_got_lost_in_a_part_are_an_error(
    adapter: Path, base: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(9))
    output = tmp_path / f"out{ending}"
    monkeypatch.setattr(score_command, "PART", 4)
    judged = score_command._judged

    def losing(judge: Judge, feedback: bool, progress: bool, part: Any) -> str:
        return judged(judge, feedback, progress, part[:-1] if part[0][0] == 4 else part)

    monkeypatch.setattr(score_command, "_judged", losing)
    with pytest.raises(UserError, match="holds 8 judgements of the 9 rows"):
        score_file(adapter, str(rows), output, ScoreOptions(base=str(base)))
    assert not output.exists()


def test_input_that_shrinks_while_it_is_scored_is_an_error(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(9))
    opened = score_command._open_parts

    def shrinking(parts: Path, job: Any) -> None:
        write_lines(rows, some_rows(5))
        opened(parts, job)

    monkeypatch.setattr(score_command, "_open_parts", shrinking)
    with pytest.raises(UserError, match="holds 5 judgements of the 9 rows"):
        score_file(adapter, str(rows), tmp_path / "out.jsonl", ScoreOptions(base=str(base)))


def test_refused_scoring_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", some_rows(1))
    with pytest.raises(UserError):
        score_file(tmp_path / "no adapter", str(rows), tmp_path / "out.jsonl", ScoreOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_lock_whose_file_its_holder_removed_is_taken_anew(tmp_path: Path) -> None:
    lock = tmp_path / "parts" / ".lock"
    with held(lock, "busy"):
        lock.unlink()
        lock.parent.rmdir()
    with held(lock, "busy"):
        assert lock.exists()
