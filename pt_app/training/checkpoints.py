"""Checkpoints that count only when complete, and the disk space that is reserved for one.

A checkpoint is staged, flushed, then renamed, with a manifest. What must not be lost when the disk
fills has its room from the start of the run.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pt_app.core.errors import UserError
from pt_app.core.files import give_mode_of, is_full, read_json, sha256_file, write_json_atomic

if TYPE_CHECKING:  # scripts/ reads checkpoints without torch, whose import takes seconds
    import torch

MANIFEST = "complete.json"
WEIGHTS = "trained.safetensors"
STATE = "trainer_state.json"
STAGING = ".saving"
KEPT = 2  # newest checkpoints that are kept, in addition to the best
RESERVE = ".reserve"
# Weights and the two Adam moments in 32 bits: a checkpoint, which is larger than an adapter. The
# random states, the card and the settings come on top.
BYTES_PER_WEIGHT = 12
OTHERS = 2**20


def staging_folder(run: Path) -> Path:
    """Return the staging folder of a run, in which a checkpoint is written before it counts."""
    return run / STAGING


def publish(written: Path, run: Path) -> Path:
    """Move a staged checkpoint to its place in `run`, completely or not at all.

    A manifest of sizes and hashes is added, every file is flushed, and the folder is renamed last.
    It costs one read of the adapter and the optimizer, a few MB.

    Returns:
        The new folder of the checkpoint.
    """
    files = sorted(p for p in written.rglob("*") if p.is_file())
    entries = {
        str(p.relative_to(written)): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }
    write_json_atomic(written / MANIFEST, entries)
    give_mode_of(written / MANIFEST, files)
    for path in [*files, written]:
        _flush(path)
    place = run / written.name
    if place.exists():  # an incomplete checkpoint that a resumed run skipped
        shutil.rmtree(place)
    os.replace(written, place)
    _flush(run)
    return place


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (POSIX)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rotate(run: Path, best: int | None) -> None:
    """Delete all checkpoints of a run except the newest two and that of step `best`."""
    for folder in _newest_first(run)[KEPT:]:
        if step_of(folder) != best:
            shutil.rmtree(folder)


def discard_after(checkpoint: Path) -> None:
    """Delete the checkpoints that a resumed run skipped, which would count as the newest."""
    for folder in _newest_first(checkpoint.parent):
        if step_of(folder) > step_of(checkpoint):
            shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """Return the optimizer step after which a checkpoint was made."""
    return int(folder.name.split("-")[-1])


def _newest_first(run: Path) -> list[Path]:
    folders = [p for p in run.glob("checkpoint-*") if p.name.split("-")[-1].isdecimal()]
    return sorted(folders, key=step_of, reverse=True)


def fault(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if every file is as it was written."""
    if not folder.is_dir():
        return "there is none"
    try:
        entries = read_json(folder / MANIFEST)
    except UserError:
        return f"it has no readable {MANIFEST}: its writing was cut short"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if entry != {"bytes": path.stat().st_size, "sha256": sha256_file(path)}:
            return f"{name} was changed or cut"
    return None if entries else f"its {MANIFEST} names no file"


def newest_complete(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint of a run, and why newer ones were skipped."""
    staged = staging_folder(run).glob("*")
    skipped = [f"{folder.name} skipped: its writing was cut short" for folder in staged]
    for folder in _newest_first(run):
        wrong = fault(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"{folder.name} skipped: {wrong}")
    return None, skipped


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of the loop in a checkpoint, see `loop.LoopState`.

    Raises:
        UserError: if an earlier version wrote the checkpoint, in other files.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} was made by an earlier version of pt_app: start without --resume"
        )
    return read_json(folder / STATE, remedy="start without --resume")


def reserve(run: Path, model: "torch.nn.Module", tokenizer: Sequence[Path]) -> None:
    """Reserve disk space in `run` for one more checkpoint, or for the adapter at the end.

    Args:
        run: the folder of the run.
        model: the model in training.
        tokenizer: the files of the tokenizer, which both contain.

    Raises:
        UserError: if the disk has no such space.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    words = sum(file.stat().st_size for file in tokenizer)
    size = BYTES_PER_WEIGHT * trained + words + OTHERS
    release(run)
    try:
        with open(run / RESERVE, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                for _ in range(-(-size // 2**20)):
                    file.write(b"\0" * 2**20)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        release(run)
        raise UserError(
            f"{run} has no room for the adapter and a checkpoint, {size / 1e6:.0f} MB "
            f"({error.strerror}): make room, or choose another --output_dir"
        ) from error


def release(run: Path) -> None:
    """Free the reserved space, so that something can be written now."""
    (run / RESERVE).unlink(missing_ok=True)


@contextmanager
def full_disk_explained(folder: Path, remedy: str) -> Iterator[None]:
    """Turn the error of a full disk into a UserError that names `folder` and the remedy."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise UserError(f"the disk of {folder} is full: {remedy}") from error


def elsewhere(name: str) -> Path:
    """Return a new path in the folder for temporary files, outside the disk of the run."""
    return Path(tempfile.mkdtemp(prefix="judge-")) / name
