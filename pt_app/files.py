"""Files that are complete or not there: written aside, flushed, renamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pt_app.errors import UserError


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`; a reader never sees half of it.

    Raises UserError where the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another folder"
        ) from error


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN is refused, since JSON has none."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_text_atomic(path, text + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
