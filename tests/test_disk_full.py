"""A disk that fills in mid-run: nothing trained is lost, and one line says how to resume."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.models import adapters
from pt_app.models.adapters import verify_adapter
from pt_app.training import checkpoints
from pt_app.training.loop import TrainingLoop
from tests.test_recipes import flags, main

FULL = OSError(errno.ENOSPC, "No space left on device")
MORE = ["--skip_eval", "--tracking=off", "--eval_steps=0", "--epochs=2"]


def full_until_room_is_made(
    monkeypatch: pytest.MonkeyPatch, error: Exception, step: int, even_then: bool = False
) -> None:
    """A checkpoint of `step` is half written, and fails while the room of the run is still kept."""
    write = TrainingLoop._write_checkpoint

    def failing(self: TrainingLoop) -> None:
        run = self.args.output_dir
        if self.state.global_step == step and ((run / checkpoints.RESERVE).exists() or even_then):
            (run / ".saving" / f"checkpoint-{step}").mkdir(parents=True)
            raise error
        write(self)

    monkeypatch.setattr(TrainingLoop, "_write_checkpoint", failing)


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_checkpoint_that_finds_the_disk_full_is_written_in_the_room_kept_for_it(
    base: Path, rows: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*MORE, "--save_steps=4"]
    full_until_room_is_made(monkeypatch, error, step=8)
    with pytest.raises(UserError, match=r"is full: the checkpoint of step 8 is .* --resume"):
        main("mps", flags(base, rows, tmp_path / "cut", *more))
    (run,) = (tmp_path / "cut").iterdir()
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert not (run / checkpoints.RESERVE).exists()
    if error is not FULL:  # the others differ in how they are told
        return
    monkeypatch.undo()
    main("mps", flags(base, rows, tmp_path / "cut", *more, "--resume"))
    main("mps", flags(base, rows, tmp_path / "whole", *more))
    cut, whole = (
        load_file(next((tmp_path / name).glob("*_final/adapter_model.safetensors")))
        for name in ("cut", "whole")
    )
    assert all(torch.equal(cut[key], whole[key]) for key in whole)


def test_disk_that_stays_full_names_the_last_checkpoint(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_until_room_is_made(monkeypatch, FULL, step=8, even_then=True)
    with pytest.raises(UserError, match=r"of step 8 has no room; the last good .*checkpoint-4"):
        main("mps", flags(base, rows, tmp_path, *MORE, "--save_steps=4"))


def test_adapter_goes_elsewhere_where_even_its_room_is_taken(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, other = adapters.save_adapter, tmp_path / "temporary"
    kept = []

    def failing(model: Any, encoder: Any, folder: Path, **more: Any) -> Any:
        if folder.is_relative_to(tmp_path / "out"):
            kept.append(list((tmp_path / "out").glob(f"*/{checkpoints.RESERVE}")))
            raise UserError(f"{folder} cannot be written") from FULL
        return save(model, encoder, folder, **more)

    other.mkdir()
    monkeypatch.setattr(adapters, "save_adapter", failing)
    monkeypatch.setattr(checkpoints.tempfile, "tempdir", str(other))
    with pytest.raises(UserError, match="the adapter is whole, and lies in") as caught:
        main("mps", flags(base, rows, tmp_path / "out", *MORE, "--save_steps=0"))
    (adapter,) = other.glob("*/*_final")
    assert str(adapter) in str(caught.value)
    assert verify_adapter(adapter).config["r"] == 16
    assert kept == [[]], "its room is given back before it is written"


def test_run_without_room_for_its_adapter_does_not_begin(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(UserError, match="no room for the adapter and a checkpoint, 1 MB"):
        main("mps", flags(base, rows, tmp_path, *MORE))
    assert not list(tmp_path.glob(f"*/{checkpoints.RESERVE}"))


def test_evaluation_on_a_full_disk_leaves_the_adapter_and_says_how_to_go_on(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise FULL

    more = ["--tracking=off", "--epochs=1"]
    monkeypatch.setattr("pt_app.eval_model.pipeline.evaluate", failing)
    with pytest.raises(UserError, match="make room, then --resume evaluates it"):
        main("mps", flags(base, rows, tmp_path, *more))
    (adapter,) = tmp_path.glob("*_final")
    verify_adapter(adapter)


def test_log_file_that_cannot_be_written_is_given_up_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    console.start()
    console.also_to(Path("/dev/full"))
    log = logging.getLogger("pt_app.tests")
    for line in ("one", "two"):
        log.info("%s", line)
    said = capsys.readouterr()
    assert said.out.count("/dev/full cannot be written (No space left on device)") == 1
    assert said.out.splitlines()[-1] == "two"
    assert "Traceback" not in said.err
    console.start()
