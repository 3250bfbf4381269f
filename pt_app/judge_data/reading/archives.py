"""Opens files as bytes, packed or not: .gz, and one member of a .tar or .zip archive."""

import fnmatch
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from pt_app.core.errors import UserError

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


def split_member(source: str) -> tuple[Path, str]:
    """Split "archive.tar.gz::*.tsv" into the archive and the name of its one fitting member.

    The member is "" for a plain file. Raises UserError where none or several members fit.
    """
    name, _, pattern = source.partition("::")
    path = Path(name)
    if not path.is_file() or not (is_archive(path) or pattern):
        return path, ""
    if not is_archive(path):
        raise UserError(f"{path} is no .tar or .zip archive: leave ::{pattern} out")
    members = _members(path)
    fitting = [member for member in members if fnmatch.fnmatch(member, pattern or "*")]
    if len(fitting) != 1:
        shown = ", ".join(members[:8])
        raise UserError(
            f"{path}: {len(fitting)} of its members fit {pattern or '*'} ({shown}): "
            f"name one, such as {path}::{members[0] if members else 'NAME'}"
        )
    return path, fitting[0]


def is_archive(path: Path) -> bool:
    """Whether a file holds others, by its name."""
    return path.name.lower().endswith((*_TAR, ".zip"))


@contextmanager
def open_bytes(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """Open a file, a .gz file's content, or a member of an archive.

    Raises UserError for a file that cannot be opened or whose archive ends too early.
    """
    try:
        with _open(path, member) as file:
            yield file
    except _BROKEN as error:
        raise _broken(path, error) from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile, of an encrypted member
        raise UserError(f"{path} cannot be unpacked ({error}): unpack it first") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def _open(path: Path, member: str) -> Iterator[IO[bytes]]:
    if member and _is_zip(path):
        with zipfile.ZipFile(path) as zipped, zipped.open(member) as inner:
            yield inner
    elif member:
        with tarfile.open(path) as tarred:
            packed = tarred.extractfile(member)
            assert packed is not None, "only plain files are listed as members"
            yield packed
    elif path.suffix.lower() == ".gz":
        with gzip.open(path) as unpacked:
            yield cast(IO[bytes], unpacked)
    else:
        with open(path, "rb") as file:
            yield file


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _members(path: Path) -> list[str]:
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                return [name for name in archive.namelist() if not name.endswith("/")]
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass  # the checksum of the whole stands at its end
            return names
    except (*_BROKEN, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole archive ({error}): fetch it again")
