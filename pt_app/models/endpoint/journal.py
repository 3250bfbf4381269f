"""The journal of what an endpoint answered: nothing is paid for twice."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write
from pt_app.core.records import checked
from pt_app.models.endpoint.reply import parsed_json, whole_characters

Entry = dict[str, Any]


class _Head(BaseModel):
    """The first line of a journal."""

    settings: dict[str, object]


class Journal:
    """JSON Lines: a first line of settings, then one line per answer, flushed to the disk.

    A last line that a kill cut off is removed: its answer is asked for again. Raises UserError for
    a journal of other settings or with an answer that is not of the `kind`, a pydantic model, and
    for one that another process writes.
    """

    def __init__(self, path: Path, settings: Mapping[str, object], kind: type[BaseModel]) -> None:
        self.path, self._kind = path, kind
        self._file: IO[bytes] = self._open()
        first, *self.entries = self._read() or [{"settings": {}}]
        if not self.entries:  # a wrong model or URL, corrected: nothing was answered under it
            self._file.truncate(0)
            self._write({"journal": 1, "settings": dict(settings)})
            return
        was = first["settings"]
        for name, value in settings.items():
            if was.get(name) != value:
                problem = f"was begun with {name} {was.get(name)!r}, now it is {value!r}"
                raise UserError(f"{path} {problem}: keep the settings, or name another --out")

    def append(self, entry: Entry) -> None:
        """Keep one answer, and flush it to the disk."""
        self._write(entry)
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file and let others write it."""
        self._file.close()

    def _write(self, entry: Entry) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        self._file.write(whole_characters(line).encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _open(self) -> IO[bytes]:
        import fcntl

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+b")  # noqa: SIM115  (kept open, and locked, to the end)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.path} is written by another run: wait for its end") from error
        except OSError as error:
            raise UserError(cannot_write(self.path, error)) from error
        return file

    def _read(self) -> list[Entry]:
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        self._file.truncate(end)
        entries, remedy = list[Entry](), "repair it, or name another --out"
        for number, line in enumerate(content[:end].splitlines(), start=1):
            where = f"{self.path}, line {number}"
            try:
                # Earlier versions kept halves of characters as an endpoint gave them.
                entries.append(parsed_json(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is no JSON: {remedy}") from error
            checked(self._kind if entries[1:] else _Head, entries[-1], where, remedy)
        return entries
