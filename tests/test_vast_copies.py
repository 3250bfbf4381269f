"""Copies from and to a host that may lie: an `ssh` that runs the command on this machine."""

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pt_app.training.checkpoints import publish, staging_folder
from scripts.rented import limits
from scripts.rented.host import CutOffError, Host
from scripts.rented.record import Launch
from scripts.rented.sending import SCRIPTS, base_files
from scripts.rented.training import PIECE, Follower, copy_back
from tests.vast_fixtures import a_launch


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    bin = tmp_path / "bin"
    bin.mkdir()
    ssh = bin / "ssh"
    ssh.write_text('#!/bin/bash\nexec bash -c "$4"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    (tmp_path / "there").mkdir()
    return Host(tmp_path / "launch", str(tmp_path / "there"))


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return a_launch(tmp_path / "out")


def checkpoint(folder: Path) -> None:
    written = staging_folder(folder.parent) / folder.name
    written.mkdir(parents=True)
    (written / "adapter_model.safetensors").write_bytes(b"trained")
    publish(written, folder.parent)
    written.parent.rmdir()
    (folder.parent / "settings.json").write_text("{}")


def test_host_that_names_another_run_gets_at_none_of_its_files(host: Host, launch: Launch) -> None:
    mine = Path(launch.output_dir) / "mine"
    checkpoint(mine / "checkpoint-7")
    checkpoint(Path(host.remote) / "adapters_eval/mine/checkpoint-9")
    with pytest.raises(CutOffError, match="mine is not this launch's run"):
        copy_back(host, launch)
    assert [path.name for path in mine.glob("checkpoint-*")] == ["checkpoint-7"]
    checkpoint(Path(host.remote) / "adapters_eval/new/checkpoint-9")
    copy_back(host, launch)
    assert launch.run == "new"
    assert [path.name for path in mine.glob("checkpoint-*")] == ["checkpoint-7"]


def test_only_checkpoints_that_the_launch_brought_are_dropped(host: Host, launch: Launch) -> None:
    launch.resume = f"{launch.output_dir}/run"
    run = Path(launch.resume)
    checkpoint(run / "checkpoint-1")
    there = Path(host.remote) / "adapters_eval/run"
    checkpoint(there / "checkpoint-2")
    copy_back(host, launch)
    (there / "checkpoint-2").rename(there / "checkpoint-3")
    copy_back(host, launch)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-3",
    ]


def test_copy_that_does_not_end_is_cut(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", limits.Limits(poll=0.01, copy=240.0))
    copying, limit = Host._copying, []

    def cut_soon(host: Host, command: str, seconds: float) -> object:
        limit.append(seconds)
        return copying(host, command, 0.4)

    monkeypatch.setattr(Host, "_copying", cut_soon)
    tar = tmp_path / "bin" / "tar"
    tar.write_text("#!/bin/bash\nexec sleep 60\n")
    tar.chmod(0o755)
    (Path(host.remote) / "file").write_text("x")
    start = time.monotonic()
    with pytest.raises(CutOffError, match="was cut"):
        host.fetch(".", tmp_path / "home")
    monkeypatch.setattr(limits, "UPLINK", 1e9)
    big = tmp_path / "big"
    big.write_bytes(bytes(1 << 20))  # more than a pipe holds
    with pytest.raises(CutOffError, match="was cut"):
        host.send({"sent": big})
    assert time.monotonic() - start < 50
    assert limit == [240.0] + 3 * [pytest.approx(240.0, abs=0.1)]


def test_copy_larger_than_any_checkpoint_is_refused_and_what_was_not_hashed_left_out(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, size in (("file", 1), ("more", 10)):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = size
            archive.addfile(entry, io.BytesIO(b"x" * size))
    tar = tmp_path / "bin" / "tar"
    tar.write_text(f"#!/bin/bash\nexec cat {tmp_path}/a.tar\n")
    tar.chmod(0o755)
    (Path(host.remote) / "file").write_text("x")
    host.fetch(".", tmp_path / "home")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["file"]
    monkeypatch.setattr(limits, "LIMITS", limits.Limits(home_bytes=0.5))
    with pytest.raises(CutOffError, match="larger than"):
        host.fetch(".", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_end_of_a_long_log_is_read_before_the_run_counts_as_ended(
    host: Host, launch: Launch
) -> None:
    there = Path(host.remote)
    (there / "run.log").write_text("x" * (PIECE + 10) + "\nthe error\n")
    (there / "exit_code").write_text("train 1\n")
    for _ in range(2):  # an attach reads it again
        follower = Follower(host, market=None, launch=launch)  # type: ignore[arg-type]
        assert not follower._look()
        assert follower._look()
        assert launch.exit_code == "train 1"
        log = (launch.folder / "run.log").read_text()
        assert log == (there / "run.log").read_text()


def test_base_goes_up_without_what_else_lies_in_its_folder(base: Path, tmp_path: Path) -> None:
    launch = a_launch(tmp_path / "out")
    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / ".git").mkdir()
    for name in (".env", ".private.json", "private.csv", ".git/config", "optimizer.safetensors"):
        (folder / name).write_text("secret")
    launch.upload_model = str(folder)
    names = {path.name for path in base_files(launch).values()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {".env", ".private.json", "private.csv", "config", "optimizer.safetensors"}


def test_package_that_finds_the_lock_held_is_asked_for_again(tmp_path: Path) -> None:
    for name, text in {
        "apt-get": '[ "$1" = install ] || mkdir held',
        "sleep": "rmdir held",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "held").mkdir()
    subprocess.run(
        ["bash", "-ec", f"bash {SCRIPTS['install.sh']} tmux; touch done"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=True,
    )
    assert (tmp_path / "done").exists()
    assert (tmp_path / "held").exists(), "update came through at the second go"
