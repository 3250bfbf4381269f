"""`judge score --ray`: the workers of a Ray cluster, which die, and what the user can fix."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.choosing import is_tied
from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale
from pt_app.eval_model import score_file as score_command
from pt_app.eval_model.options import ScoreOptions
from pt_app.eval_model.score_file import score_file
from tests.test_judge import read_lines, some_rows, write_lines

needs_ray = pytest.mark.skipif(
    not any((Path(path) / "ray").is_dir() for path in sys.path),
    reason="pip install -r requirements-ray.txt",
)


def workers() -> list[psutil.Process]:
    """The workers of the cluster that this process started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "MapWorker" in " ".join(child.cmdline())]


@needs_ray
@pytest.mark.slow
def test_rows_judged_by_workers_that_die_equal_those_of_one_process(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_command, "PART", 6)
    monkeypatch.setattr(score_command, "WINDOW", 4)
    file = str(write_lines(tmp_path / "rows.jsonl", [*some_rows(59), "{broken"]))
    score_file(adapter, file, tmp_path / "one.jsonl", ScoreOptions(base=str(base)))
    write, written = score_command.write_text_atomic, list[str]()

    def killing(path: Path, lines: str) -> None:
        write(path, lines)
        written.append(path.name)
        if len(written) in (1, 5):
            os.kill(workers()[0].pid, signal.SIGKILL)

    monkeypatch.setattr(score_command, "write_text_atomic", killing)
    some = ScoreOptions(base=str(base), ray="auto", workers=2)
    score_file(adapter, file, tmp_path / "two.jsonl", some)
    assert sorted(written) == [f"{number:06}.jsonl" for number in range(10)]
    assert not workers()
    scale = Scale.from_name("0-10")
    one, two = read_lines(tmp_path / "one.jsonl"), read_lines(tmp_path / "two.jsonl")
    assert [row["id"] for row in two] == [row["id"] for row in one]
    for row, other in zip(two, one, strict=True):
        assert list(row) == list(other)
        assert row["status"] == other["status"]
        if other["probabilities"]:
            assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
            if not is_tied(list(other["probabilities"].values()), scale, "mean"):
                assert row["verdict"] == other["verdict"]


@needs_ray
@pytest.mark.slow
def test_worker_that_cannot_load_the_base_ends_the_command_with_its_line(
    adapter: Path, tmp_path: Path
) -> None:
    file = str(write_lines(tmp_path / "rows.jsonl", some_rows(3)))
    elsewhere = ScoreOptions(base=str(tmp_path / "elsewhere"), ray="auto", workers=1)
    with pytest.raises(UserError, match=r"^worker on \S+: .*elsewhere") as refused:
        score_file(adapter, file, tmp_path / "out.jsonl", elsewhere)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def refused(adapter: Path, tmp_path: Path, *flags: str) -> str:
    """The line with which `judge score` ends."""
    file = write_lines(tmp_path / "rows.jsonl", some_rows(3))
    paths = [f"--adapter={adapter}", f"--input={file}", f"--output={tmp_path / 'out.jsonl'}"]
    done: Any = CliRunner().invoke(app, ["score", *paths, *flags])
    assert isinstance(done.exception, UserError)
    assert not (tmp_path / "out.jsonl.parts").exists()
    (line,) = str(done.exception).splitlines()
    return line


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "here", "ray://a:1"])
def test_address_without_a_cluster_is_refused(address: str, adapter: Path, tmp_path: Path) -> None:
    assert f"--ray {address}: " in refused(adapter, tmp_path, f"--ray={address}")


@needs_ray
@pytest.mark.slow
def test_more_workers_than_cpus_are_refused(adapter: Path, tmp_path: Path) -> None:
    line = refused(adapter, tmp_path, "--ray=auto", "--workers=5000")
    assert "--workers 5000: the Ray cluster has" in line


def test_missing_ray_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(adapter, tmp_path, "--ray=auto")
    assert line.endswith("pip install -r requirements-ray.txt")


def test_workers_without_ray_are_refused(adapter: Path, tmp_path: Path) -> None:
    assert "say --ray auto too" in refused(adapter, tmp_path, "--workers=2")


def test_workers_must_be_one_at_least() -> None:
    words = ["score", "--adapter=a", "--input=b", "--output=c", "--ray=auto", "--workers=0"]
    done = subprocess.run(
        [sys.executable, "-m", "pt_app.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--workers" in line
