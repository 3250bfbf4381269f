"""Where the text of a model from scratch comes from: files, packages of this machine, the hub.

A source is a text:

- a file, a folder or a pattern of them: plain text, HTML, JSON Lines and Parquet with a column
  `text`, and plain text and HTML that gzip compressed
- `docstrings:PACKAGE`: those of an installed Python package, whose files are parsed and never run
- `debian:PACKAGE`: the documentation in a Debian package, which is unpacked and never installed
- `hub:OWNER/NAME:COUNT`: the first COUNT Parquet files of a data set on the model hub
- `tinyshakespeare`, the text of nanoGPT's examples, where it is
"""

import ast
import gzip
import html
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.core.files import cache_folder, expanded, sha256_file

log = logging.getLogger(__name__)
SHAKESPEARE = "tinyshakespeare"
COMPRESSED = (".gz", ".dz")
PLAIN, MARKUP, ROWS = (".txt", ".md", ".rst", ".dict"), (".html", ".htm", ".xhtml"), (".jsonl",)
KINDS = (*PLAIN, *MARKUP, *ROWS, ".parquet")
MAX_CHARACTERS = 1 << 14  # of a document: a longer text is cut at the end of a paragraph
MIN_DOCSTRING = 200  # characters; shorter ones are mostly names of arguments
_SILENT = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"(?i)</?(p|div|h\d|li|ul|ol|tr|table|dt|dd|dl|br|section|pre)\b[^>]*>")


def documents(sources: Sequence[str]) -> Iterator[str]:
    """Yield the documents of all sources, in an order that is always the same.

    They are normalized to NFC, as the tokenizers do it, so that the bytes of a document are those
    of its tokens.

    Raises:
        UserError: for a source that is not there or cannot be read.
    """
    for source in sources:
        kind, colon, rest = source.partition(":")
        named = kind in READERS if colon else source == SHAKESPEARE
        for text in READERS[kind](rest) if named else _of_paths(source):
            for document in cut(unicodedata.normalize("NFC", text)):
                if document.strip():
                    yield document


def cut(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Cut a text that is longer than `limit` at the ends of paragraphs, else of lines, else there.

    The pieces together are the text.
    """
    while len(text) > limit:
        ends = (text.rfind(mark, 0, limit) + len(mark) for mark in ("\n\n", "\n"))
        end = next((end for end in ends if end > limit // 2), limit)
        yield text[:end]
        text = text[end:]
    yield text


def _of_paths(pattern: str) -> Iterator[str]:
    named = expanded(pattern)
    # Path.glob takes no absolute pattern, and a folder's name may hold brackets.
    paths = [named] if named.exists() else glob(str(named), recursive=True)  # noqa: PTH207
    found = sorted(Path(path) for path in paths)
    if not found:
        raise UserError(f"{pattern} is not there: name a text file, a folder or a pattern of files")
    for path in found:
        below = _texts_below(path) if path.is_dir() else [path]
        if not below:
            raise UserError(f"{path} holds no text: files with an ending of {', '.join(KINDS)}")
        for each in below:
            yield from _of_file(each)


def _texts_below(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in paths if _kind(path) in KINDS)


def _kind(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return plain.suffix.lower()


def _of_file(path: Path) -> Iterator[str]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _of_parquet(path)
    elif kind in ROWS:
        for number, row in files.json_lines(_decoded(path), path):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f'{path}: row {number} is no JSON object with a "text": correct it')
            yield row["text"]
    else:
        text = _decoded(path)
        yield plain_text(text) if kind in MARKUP else text


def _decoded(path: Path) -> str:
    """Read a text, which may be compressed; raises UserError if it is not UTF-8."""
    if path.suffix.lower() not in COMPRESSED:
        return files.read_text(path)
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no UTF-8 text that gzip compressed: leave it out") from error


def _of_parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024, columns=["text"]):
                yield from (text for text in batch.column("text").to_pylist() if text)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f'{path} is no Parquet file with a column "text": correct it') from error


def plain_text(markup: str) -> str:
    """Return the text of an HTML page: without what is not shown, a line per block."""
    text = html.unescape(re.sub(r"<[^>]*>", "", _BLOCK.sub("\n", _SILENT.sub("", markup))))
    lines = (line.rstrip() for line in text.replace("\xa0", " ").splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of each module of a package as a document."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"docstrings:{package}: no such Python package is installed")
    for folder in found.submodule_search_locations:
        for path in sorted(Path(folder).rglob("*.py")):
            if text := _docstrings_of(path):
                yield text


def _docstrings_of(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old escapes in strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):  # templates, and files for other Pythons
            return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in texts if text and len(text) >= MIN_DOCSTRING)


def _debian(package: str) -> Iterator[str]:
    """Yield the documentation in a Debian package; files in old encodings are left out."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package):
        raise UserError(f"debian:{package}: that is no name of a package")
    below = _texts_below(_unpacked(package))
    skipped = 0
    for path in below:
        try:
            yield from _of_file(path)
        except UserError:
            skipped += 1
    if skipped == len(below):
        raise UserError(f"debian:{package} holds no text in UTF-8: files of {', '.join(KINDS)}")
    if skipped:
        log.warning("debian:%s: %d files are not UTF-8: left out", package, skipped)


def _unpacked(package: str) -> Path:
    """Return the folder of an unpacked Debian package; apt downloads it and checks its hash."""
    folder = cache_folder() / "debian" / package
    if folder.is_dir():
        return folder
    staged = folder.with_name(f".{package}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    _run(["apt-get", "download", "-q", package], staged, package)
    for archive in staged.glob("*.deb"):
        _run(["dpkg-deb", "-x", archive.name, "."], staged, package)
        archive.unlink()
    staged.rename(folder)
    return folder


def _run(command: list[str], folder: Path, package: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"debian:{package} needs {command[0]}: name other text") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no reason"])[-1]
        raise UserError(f"debian:{package}: {command[0]}: {said}: try apt-get update") from error


def _hub(name: str) -> Iterator[str]:
    """Yield the first Parquet files of a data set on the hub, in the order of their names."""
    from huggingface_hub import HfApi

    repository, _, count = name.partition(":")
    if count and not count.isdecimal():
        raise UserError(f"hub:{name}: write the number of files behind the second colon")
    with _hub_explained(repository):
        tree = HfApi().list_repo_tree(repository, repo_type="dataset", recursive=True)
        files = {str(file.path): file for file in tree if str(file.path).endswith(".parquet")}
    if not files:
        raise UserError(f"hub:{repository} has no Parquet files: name another data set")
    for path in sorted(files)[: int(count) if count else None]:
        yield from _of_parquet(_fetched(repository, files[path]))


def _fetched(repository: str, file: Any) -> Path:
    """Return a file of the hub, from the cache or downloaded, and compare it with the hub's hash.

    An interrupted download resumes.
    """
    from huggingface_hub import hf_hub_download

    with _hub_explained(repository):
        path = Path(hf_hub_download(repository, file.path, repo_type="dataset"))
    if file.lfs and sha256_file(path) != file.lfs.sha256:
        path.resolve().unlink()
        raise UserError(f"{path} is not the hub's file, and removed: run the same command again")
    return path


@contextmanager
def _hub_explained(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the HTTP library's own errors, which change with its version
        problem = f"hub:{repository} cannot be fetched ({type(error).__name__}); the rest is kept"
        raise UserError(f"{problem}: run it with a network, or name other text") from error


def _shakespeare(_: str) -> Iterator[str]:
    """Yield TinyShakespeare, from data/, or from the folder of real data that the tests use."""
    for folder in ("data", os.environ.get("JUDGE_REAL_DATA") or "../shared/data"):
        if (file := Path(folder, SHAKESPEARE, "input.txt")).is_file():
            return _of_file(file)
    source = "put input.txt of github.com/karpathy/char-rnn there"
    raise UserError(f"data/{SHAKESPEARE} holds no text: {source}, or name other text")


READERS = {"docstrings": _docstrings, "debian": _debian, "hub": _hub, SHAKESPEARE: _shakespeare}
