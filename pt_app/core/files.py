"""Files: read with errors that a user can fix, and written complete or not at all.

What is written goes to a temporary name, is flushed, then renamed.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pt_app.core.errors import UserError

ABSENT = "is not there: make it, or correct its path"

log = logging.getLogger(__name__)


def refuse_overwrite(
    outputs: Iterable[Path], inputs: Iterable[str | Path], flag: str = "--out"
) -> None:
    """Refuse to write what the same command reads; every command calls it before any work.

    Two paths are the same file through `./`, symbolic and hard links too. An input may be a member
    of an archive (`archive.zip::rows.csv`), or a folder, which stands for all files in it; an
    output that is a folder is replaced as a whole. Raises UserError, which names `flag`.
    """
    read = [Path(str(path).partition("::")[0]) for path in inputs]
    for output in outputs:
        for path in read:
            if _would_overwrite(output, path):
                raise UserError(
                    f"{flag} {output} would overwrite {path}, which this command reads: "
                    f"name another {flag}"
                )


def _would_overwrite(output: Path, read: Path) -> bool:
    if output.resolve() == read.resolve():
        return True
    if not (output.exists() and read.exists()):
        return False
    if output.is_dir():
        return read.resolve().is_relative_to(output.resolve())
    files = [path for path in read.rglob("*") if path.is_file()] if read.is_dir() else [read]
    return any(output.samefile(path) for path in files)


@contextmanager
def held(lock: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock` meanwhile; raise UserError(`busy`) where another process holds it.

    With `wait` it is logged instead, and waited for.

    The lock ends with its process, however that dies; flock's would live on in loader workers. It
    has a file of its own, since closing another handle of the same file would end it. Its holder
    may remove the file: whoever opened it before then opens a new one. A file system without locks
    has none, which is logged.
    """
    with _locked(lock, busy, wait):
        yield


def _locked(lock: Path, busy: str, wait: bool) -> IO[str]:
    import fcntl

    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "w")  # noqa: SIM115  (closed by the caller, which ends the lock)
        except OSError as error:
            raise UserError(cannot_write(lock.parent, error)) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if not wait:
                file.close()
                raise UserError(busy) from error
            log.info("%s: waiting for it", busy)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second process", lock, error)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()  # its holder removed it, and has ended


def cache_folder() -> Path:
    """Return the folder of what is made once and kept: $JUDGE_CACHE, else ~/.cache/judge.

    Raises:
        UserError: where there is no home folder, and JUDGE_CACHE names no other.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get("JUDGE_CACHE") or f"{home}/judge").expanduser()
    except RuntimeError as error:
        raise UserError("there is no home folder for a cache: name one in JUDGE_CACHE") from error


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in place of "~"; where there is no such home, as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (that of Path raises RuntimeError)


def shown(path: Path | str) -> str:
    r"""Write a path as text, with \xe9 for a byte that is not UTF-8: in a file it must be."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_text(
    path: Path,
    absent: str = ABSENT,
    remedy: str = "save it as UTF-8",
) -> str:
    """Read a UTF-8 text without its byte-order mark; line ends stay as they are.

    Args:
        path: the file.
        absent: the message about a file that does not exist.
        remedy: what to do about a file that is not UTF-8.

    Raises:
        UserError: if it is absent, cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path} {absent}") from error
    except OSError as error:
        raise UserError(cannot_read(path, error)) from error
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} (0x{error.object[error.start]:02x})"
        raise UserError(f"{path} is not UTF-8 at {byte}: {remedy}") from error


def parse_json(
    text: str,
    path: Path,
    line: int = 1,
    constant: Callable[[str], object] | None = None,
    pairs: Callable[[list[tuple[str, object]]], object] | None = None,
    remedy: str = "correct it",
) -> Any:
    """Parse `text`, which starts at `line` of the file; raise UserError with line and column.

    `constant` makes a value of NaN and the infinities, or refuses them with a ValueError; `pairs`
    does so of the members of an object.
    """
    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
        if "\\ud" in text or "\\uD" in text:  # half a surrogate pair cannot be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{path} is not JSON at {at}: {error.msg}: {remedy}") from error
    except UnicodeEncodeError as error:
        problem = f"a \\ud... escape is half a character ({error.reason})"
        raise UserError(f"{path}, from line {line}: {problem}: remove it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, from line {line}: {error}: {remedy}") from error


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and the infinities, which Python reads and JSON has not."""
    raise ValueError(f"{name} is not in JSON, write null")


def read_json(
    path: Path,
    absent: str = ABSENT,
    remedy: str = "correct it",
    constant: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Read a file that holds one JSON object; the arguments are those of the functions above.

    Raises:
        UserError: if it cannot be read, is not JSON, names a field twice, or holds another value.
    """
    text = read_text(path, absent, remedy)
    value: object = parse_json(text, path, 1, constant, each_once, remedy)
    if not isinstance(value, dict):
        raise UserError(f"{path} must be a JSON object: {remedy}")
    return value


def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of its members; raises ValueError for two of one name: one would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands twice in one object')
    return made


# How `parse_json` reads rows of labels: a NaN or a member of a name twice would lose a label.
AS_ROWS: Mapping[str, Any] = {"constant": refuse_constant, "pairs": each_once}


def json_lines(text: str, path: Path, **how: Any) -> Iterator[tuple[int, Any]]:
    """Yield the values of JSON Lines with the numbers of their lines; blank lines hold none.

    Only "\\n" ends a line: a text may hold U+2028 and its like, at which `str.splitlines` cuts.
    Raises UserError as `parse_json` does, which takes `how`.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, parse_json(line, path, number, **how)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`; a reader never sees half of it.

    Raises UserError if the folder cannot be written.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` as `write_text_atomic` does."""
    with staged(path) as file:
        file.write(content)


@contextmanager
def staged(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that becomes `path` once all of it is written, and leaves nothing if it is not.

    Raises UserError if the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Write `value` as indented JSON; NaN is refused, since JSON has none."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_text_atomic(path, text + "\n")


def sha256_file(*paths: Path) -> str:
    """Hex digest of the bytes of all `paths` in their order, read in pieces of 1 MiB.

    Of one file it is what `sha256sum` prints. Raises UserError if one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        except OSError as error:
            raise UserError(cannot_read(path, error)) from error
    return digest.hexdigest()


def cannot_read(path: Path, error: OSError) -> str:
    """Return a line that says that a file cannot be read, and the remedy."""
    remedy = "name a file that can be read"
    if isinstance(error, PermissionError):
        remedy = f"its owner can give the right to (chmod a+r {path})"
    return f"{path} cannot be read ({error.strerror}): {remedy}"


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Make a folder beside `folder`, to be renamed to it; what is not is removed at the end.

    Raises:
        UserError: if it cannot be made.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        try:
            staged.mkdir(parents=True)
        except OSError as error:
            raise UserError(cannot_write(folder, error)) from error
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def cannot_write(path: Path, error: BaseException) -> str:
    """Return a line that says that a file or folder cannot be written, and the remedy."""
    reason = getattr(error, "strerror", None) or "no space left on device"
    remedy = "make room on its disk" if is_full(error) else "choose another folder"
    return f"{path} cannot be written ({reason}): {remedy}"


def is_full(error: BaseException | None) -> bool:
    """Return whether a disk or a quota was full, in `error` or in what it was raised from.

    Libraries in Rust and C++ raise errors of their own kinds: what they say is looked at.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        message = str(error).lower()
        if not isinstance(error, UserError) and any(text in message for text in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


# Of safetensors and tokenizers; of torch.save, which does not say why it could not write.
_FULL = (
    "no space left on device",
    "disk quota exceeded",
    f"os error {errno.ENOSPC})",
    "pytorchstreamwriter failed writing file",
    "inline_container.cc",
)


def give_mode_of(like: Path, paths: Iterable[Path]) -> None:
    """Give files the mode of `like`, which Python wrote, and so the umask's.

    safetensors 0.8 writes files that their owner alone can read, whatever the umask says.
    """
    mode = like.stat().st_mode & 0o777
    for path in paths:
        path.chmod(mode)
