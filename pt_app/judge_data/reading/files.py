"""Opens files as bytes, packed or not, and recognises what they hold, whatever their names are.

A .gz file is unpacked, and one member of a .tar or .zip archive is read.
"""

import fnmatch
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

import yaml

from pt_app.core.errors import UserError
from pt_app.core.files import cannot_read

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
_BROKEN = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile),
)
_START = 512
_KINDS: list[list[str]] = yaml.safe_load(Path(__file__).with_name("content.yaml").read_bytes())
_PAGE = (b"<!doctype html", b"<html")


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
    fitting = fnmatch.filter(members, pattern or "*")
    if len(fitting) != 1:
        problem = f"{len(fitting)} of its members fit {pattern or '*'} ({', '.join(members[:8])})"
        raise UserError(f"{path}: {problem}: name one, such as {path}::{[*members, 'NAME'][0]}")
    return path, fitting[0]


def is_archive(path: Path) -> bool:
    """Return whether a file holds others, judging by its name."""
    return path.name.lower().endswith(_ARCHIVES)


@contextmanager
def open_bytes(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """Open a file, the content of a .gz file, or a member of an archive.

    Raises UserError for a file that cannot be opened or whose archive is truncated.
    """
    ending = path.suffix.lower()
    file: IO[bytes] | None
    try:
        with ExitStack() as stack:
            if member and ending == ".zip":
                file = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))
            elif member:
                file = stack.enter_context(tarfile.open(path)).extractfile(member)
            elif ending == ".gz":
                file = cast(IO[bytes], stack.enter_context(gzip.open(path)))
            else:
                file = stack.enter_context(open(path, "rb"))
            assert file is not None, "only members that are files are named"
            yield file
    except _BROKEN as error:
        raise _broken(path, error) from error
    except RuntimeError as error:  # zipfile, for an encrypted member
        raise UserError(f"{path} cannot be unpacked ({error}): unpack it first") from error
    except OSError as error:
        raise UserError(cannot_read(path, error)) from error


def _members(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                return [name for name in archive.namelist() if not name.endswith("/")]
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass  # the checksum of the whole archive is at its end
            return names
    except (*_BROKEN, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        return UserError(f"{path} is not packed with gzip: take .gz off its name")
    return UserError(f"{path} is not a whole archive ({error}): fetch it again")


# --- what a file holds ---


def refuse_other_content(path: Path, member: str, ending: str, encoding: str) -> None:
    """Raise UserError, naming what it is, for a file that does not hold what its ending says.

    `encoding` is the one that a flag names; without it, UTF-16 that lacks its byte-order mark is
    refused too.
    """
    with open_bytes(path, member) as file:
        start = file.read(_START)
        zipped = [_zipped(file)] if start.startswith(b"PK\x03\x04") else []
    marks = [kind for kind in _KINDS if start.startswith(kind[0].encode("latin-1"))]
    kinds = [[what, remedy] for _, own, what, remedy in marks if ending != own] + zipped
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE):
        kinds.append(["a web page", "download the file itself"])
    if not encoding and (wide := _wide(start)):
        kinds.append([f"{wide.upper()} without its mark", f"add --encoding {wide}"])
    for what, remedy in kinds:
        name = f"{path}::{member}" if member else str(path)
        expected = f"what {ending} says" if ending else "a table"
        raise UserError(f"{name} is {what}, not {expected}: {remedy}")


def _zipped(file: IO[bytes]) -> list[str]:
    """Tell a spreadsheet from another zip archive; return what it is, and the remedy."""
    try:
        names = zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    excel = any(name.startswith("xl/") for name in names)
    if excel or "content.xml" in names:
        kind = "an Excel workbook" if excel else "an OpenDocument file"
        return [kind, "save it as CSV (UTF-8) and name that"]
    return ["a zip archive", "give it the ending .zip, or unpack it first"]


def _wide(start: bytes) -> str:
    """Return the name of UTF-16 text without a byte-order mark, whose every other byte is zero."""
    if len(start) < 4 or start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ""
    even, odd = start[::2], start[1::2]
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros.count(0) > 0.6 * len(zeros) and not others.count(0):
            return name
    return ""
