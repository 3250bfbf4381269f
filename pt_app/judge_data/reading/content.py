"""Recognises what a file holds by its first bytes, whatever its name says."""

import zipfile
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.judge_data.reading.archives import open_bytes

_START = 512
_AS_CSV = "save it as CSV (UTF-8) and name that"
_GZIP = b"\x1f\x8b"
# First bytes, the ending that such a file has, what it is, the remedy.
_KINDS = (
    (_GZIP, ".gz", "packed with gzip", "add .gz to its name"),
    (b"PAR1", ".parquet", "a Parquet file", "give it the ending .parquet"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".xls", "an old Excel workbook", _AS_CSV),
    (b"%PDF-", ".pdf", "a PDF", "export the labels as CSV"),
    (b"BZh", ".bz2", "packed with bzip2", "unpack it first"),
    (b"\xfd7zXZ\x00", ".xz", "packed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", ".zst", "packed with Zstandard", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", ".7z", "a 7-Zip archive", "unpack it first"),
    (b"ARROW1", ".arrow", "an Arrow file", "save it as Parquet"),
    (b"SQLite format 3\x00", ".db", "an SQLite database", "export a table of it as CSV"),
    (b"version https://git-lfs.github.com/spec/", "", "a Git LFS pointer", "run git lfs pull"),
)
_PAGE = (b"<!doctype html", b"<html")


def refuse_other_content(path: Path, member: str, ending: str, encoding: str) -> None:
    """Raise UserError, naming what it is, for a file that does not hold what its ending says.

    `encoding` is the one that a flag names; without it, UTF-16 that lacks its byte-order mark is
    refused too.
    """
    packed = not member and path.suffix.lower() == ".gz"
    if packed and not _first_bytes(path).startswith(_GZIP):
        raise UserError(f"{path} is not packed with gzip: take .gz off its name")
    with open_bytes(path, member) as file:
        start = file.read(_START)
    name = f"{path}::{member}" if member else str(path)
    expected = f"what {ending} says" if ending else "a table"
    for mark, own, what, remedy in _KINDS:
        if start.startswith(mark) and ending != own:
            raise UserError(f"{name} is {what}, not {expected}: {remedy}")
    if start.startswith(b"PK\x03\x04"):
        what, remedy = _zipped(path if not (member or packed) else None)
        raise UserError(f"{name} is {what}, not {expected}: {remedy}")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE):
        raise UserError(f"{name} is a web page, not {expected}: download the file itself")
    if not encoding and (wide := _wide(start)):
        raise UserError(f"{name} is {wide.upper()} without its mark: add --encoding {wide}")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_START)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _zipped(path: Path | None) -> tuple[str, str]:
    """Tell a spreadsheet from another zip archive; return what it is, and the remedy."""
    try:
        names = zipfile.ZipFile(path).namelist() if path else []
    except (zipfile.BadZipFile, OSError):
        names = []
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook", _AS_CSV
    if "content.xml" in names:
        return "an OpenDocument file", _AS_CSV
    return "a zip archive", "give it the ending .zip, or unpack it first"


def _wide(start: bytes) -> str:
    """Return the name of UTF-16 text without a byte-order mark, whose every other byte is zero."""
    if len(start) < 4 or start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ""
    even, odd = start[::2], start[1::2]
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros.count(0) > 0.6 * len(zeros) and not others.count(0):
            return name
    return ""
