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

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_BROKEN = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)


def split_member(source: str) -> tuple[Path, str]:
    """Split "archive.tar.gz::*.tsv" into the archive and the name of the one member that fits.

    The member is "" for a plain file. Raises UserError where no member or several members fit.
    """
    name, _, pattern = source.partition("::")
    path = Path(name)
    if not path.is_file() or not (is_archive(path) or pattern):
        return path, ""
    if not is_archive(path):
        raise UserError(f"{path} is not a .tar or .zip archive: leave ::{pattern} out")
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
    """Return whether a file holds others, judging by its name."""
    return path.name.lower().endswith(_ARCHIVES)


@contextmanager
def open_bytes(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """Open a file, the content of a .gz file, or a member of an archive.

    Raises UserError for a file that cannot be opened or whose archive is truncated.
    """
    try:
        with _open(path, member) as file:
            yield file
    except _BROKEN as error:
        raise _broken(path, error) from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile, for an encrypted member
        raise UserError(f"{path} cannot be unpacked ({error}): unpack it first") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def _open(path: Path, member: str) -> Iterator[IO[bytes]]:
    ending = path.suffix.lower()
    if member and ending == ".zip":
        with zipfile.ZipFile(path) as zipped, zipped.open(member) as inner:
            yield inner
    elif member:
        with tarfile.open(path) as tarred:
            packed = tarred.extractfile(member)
            assert packed is not None, "only plain files are listed as members"
            yield packed
    else:
        with gzip.open(path) if ending == ".gz" else open(path, "rb") as file:
            yield cast(IO[bytes], file)


def _members(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                return [name for name in archive.namelist() if not name.endswith("/")]
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass  # the checksum of the whole archive stands at its end
            return names
    except (*_BROKEN, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole archive ({error}): fetch it again")
