"""Disk space reserved at the start of a run for what must not be lost when the disk fills."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from pt_app.core.errors import UserError
from pt_app.core.files import is_full

RESERVE = ".reserve"
# Weights and the two Adam moments in 32 bits: a checkpoint, which is larger than an adapter. The
# random states, the card and the settings come on top.
BYTES_PER_WEIGHT = 12
OTHERS = 2**20
PIECE = b"\0" * 2**20


def keep(run: Path, model: torch.nn.Module, tokenizer: Sequence[Path]) -> None:
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
                for _ in range(-(-size // len(PIECE))):
                    file.write(PIECE)
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
def explained(folder: Path, remedy: str) -> Iterator[None]:
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
