"""The archive itself: the same files give the same bytes, and each file's hash is in it."""

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file

MANIFEST = "MANIFEST"
Files = Mapping[str, Path | bytes]
"""Name within the archive -> the file to read, or its content."""


def write_archive(out: Path, top: str, files: Files) -> str:
    """Write `files` and their MANIFEST below the folder `top` into a tar; give its sha256.

    MANIFEST is what `sha256sum --check` reads. Raises UserError where `out` cannot be written.
    """
    manifest = "".join(f"{_sha256(files[name])}  {name}\n" for name in sorted(files))
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for name, source in sorted({**files, MANIFEST: manifest.encode()}.items()):
                    _add(tar, f"{top}/{name}", source)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_file(aside)
        os.replace(aside, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): name another file with --out"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return digest


def _add(tar: tarfile.TarFile, name: str, source: Path | bytes) -> None:
    """Add a file without what differs between two machines: owner, time, links."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if name.endswith(".sh") else 0o644
    if isinstance(source, bytes):
        entry.size = len(source)
        tar.addfile(entry, io.BytesIO(source))
        return
    entry.size = source.stat().st_size
    with open(source, "rb") as file:
        tar.addfile(entry, file)


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return sha256_file(source)
