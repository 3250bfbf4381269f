"""Checkpoints that count only when complete: written aside, flushed, named, with a manifest."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pt_app.core.files import give_mode_of, sha256_file, write_json_atomic

MANIFEST = "complete.json"
STATE = "judge_state.json"
ASIDE = ".saving"
KEPT = 2  # newest checkpoints that are kept, beside the best


def aside(run: Path) -> Path:
    """The folder within a run in which a checkpoint is written before it counts."""
    return run / ASIDE


def publish(written: Path, run: Path) -> Path:
    """Give a checkpoint that was written aside its place in `run`, whole or not at all.

    transformers writes a checkpoint's files in place, one after the other, and takes the highest
    number on resume, whole or not. Here every file is flushed, a manifest of sizes and hashes is
    added, and the folder is renamed last. Costs one reading of some MB of adapter and optimizer.
    """
    # The arguments are pickled, and nothing here reads them back.
    (written / "training_args.bin").unlink(missing_ok=True)
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
    if place.exists():  # an incomplete one that a resumed run passed over
        shutil.rmtree(place)
    os.replace(written, place)
    _flush(run)
    return place


def _flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk (POSIX)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rotate(run: Path, best: int | None) -> None:
    """Delete all checkpoints of a run but the newest two and that of step `best`."""
    folders = list(_newest_first(run))
    for folder in folders[KEPT:]:
        if step_of(folder) != best:
            shutil.rmtree(folder)


def discard_after(checkpoint: Path) -> None:
    """Delete what a resumed run has passed over: else it counts among the newest two."""
    for folder in _newest_first(checkpoint.parent):
        if step_of(folder) > step_of(checkpoint):
            shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """The optimizer step after which a checkpoint was made."""
    return int(folder.name.split("-")[-1])


def _newest_first(run: Path) -> Iterator[Path]:
    folders = [p for p in run.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    return iter(sorted(folders, key=step_of, reverse=True))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was written."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no readable {MANIFEST}: its writing was cut short"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            return f"{name} was changed or cut"
    return None


def newest_complete(run: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run folder, and why newer ones were passed over."""
    passed_over = [
        f"{folder.name} passed over: its writing was cut short" for folder in aside(run).glob("*")
    ]
    for folder in _newest_first(run):
        wrong = fault(folder)
        if wrong is None:
            return folder, passed_over
        passed_over.append(f"{folder.name} passed over: {wrong}")
    return None, passed_over


def read_state(folder: Path) -> dict[str, Any]:
    """What `JudgeTrainer` wrote into a checkpoint of its own: optimizer, ranks, size of packs."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state
