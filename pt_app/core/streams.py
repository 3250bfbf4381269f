"""The standard streams of a process: made once, at its start, for every command and recipe.

A sign that the terminal lacks is replaced. Where a stream is no terminal, a progress bar, whichever
library draws it, is a plain line every half minute. Known lines of libraries that no reader can act
on are not shown. What `--json` is to print stands alone on stdout. Where nobody reads a stream any
longer, as behind `| head`, the process ends silently.

Nothing heavy is imported here, since every command pays for it.
"""

import codecs
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

BAR_SECONDS = 30.0
CLOSED = 141  # exit code: 128 + SIGPIPE, as a shell says it of a program that this signal ended
_MOVES = re.compile(r"(\n|\x1b\[A)*")
REPLACED = "pt_app.replaced"  # the name of the error handler below
# What the project's own lines hold beside ASCII and has an equal there.
SIGNS = dict(zip("–—−×“”„‘’\u00a0\u202f", '---x"""\'\'  ', strict=True))
SIGNS |= {"█": "#", "…": "...", "±": "+-", "≤": "<=", "≥": ">="}
_LINES = Path(__file__).with_name("hidden_lines.txt").read_text(encoding="utf-8").splitlines()
HIDDEN = re.compile("|".join(line for line in _LINES if line and not line.startswith("#")))


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Write an equal sign of ASCII, \\xe9 for a byte of a file's name that is no text, else "?"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    signs = (
        f"\\x{ord(sign) - 0xDC00:02x}" if "\udc80" <= sign <= "\udcff" else SIGNS.get(sign, "?")
        for sign in bad
    )
    return "".join(signs), error.end


class Stream:
    """A text stream that hides known lines, and writes bars to a file as occasional lines.

    `keep` gets every whole line, shown or not. All else is the inner stream's.
    """

    def __init__(self, inner: TextIO, keep: Callable[[str], None] | None = None) -> None:
        self._inner = inner
        self._keep = keep
        self._terminal = inner.isatty()
        self._partial = ""
        self._in_bar = False
        self._blank = ""
        self._bars: dict[str, tuple[float, bool]] = {}
        self._keeping = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        """Write text; a line that was begun waits for its end, or for `flush`.

        A bar below others starts with line ends, as an empty line does: in a file these wait for
        what follows.
        """
        with self._ended_if_closed():
            if "\r" in text and "\n" not in text:
                self._in_bar, self._blank = True, ""
                self._draw(text)
            elif _MOVES.fullmatch(text) and not self._partial:  # a bar's end, or a step to another
                if self._terminal:
                    self._inner.write(text)
                elif not self._in_bar:
                    self._blank += text
            else:
                self._inner.write(self._blank)
                self._in_bar, self._blank = False, ""
                *lines, self._partial = (self._partial + text).split("\n")
                for line in lines:
                    self._line(line)
        return len(text)

    def flush(self) -> None:
        """Write what a line has so far."""
        with self._ended_if_closed():
            if self._partial:
                self._inner.write(self._partial)
                self._partial = ""
            self._inner.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    @contextmanager
    def _ended_if_closed(self) -> Iterator[None]:
        """End the process where the reader of the stream has gone.

        SystemExit is what libraries let pass: typer and argparse have answers of their own to an
        OSError, and `logging` prints it for each line. The signal itself would also end a process
        whose socket is closed.
        """
        try:
            yield
        except BrokenPipeError:
            # What is left to write, at the exit too, goes nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._inner.fileno())
            os.close(nowhere)
            sys.exit(CLOSED)

    def _line(self, line: str) -> None:
        if not HIDDEN.search(line):
            self._inner.write(line + "\n")
        if self._keep and line.strip() and not self._keeping:
            self._keeping = True  # a log that cannot be written says so here
            try:
                self._keep(line)
            finally:
                self._keeping = False

    def _draw(self, text: str) -> None:
        """Draw a bar on a terminal; in a file write its text half a minute after the last."""
        if self._terminal:
            self._inner.write(text)
            return
        shown = re.sub(r"\|[^|]*\|", "", text.rpartition("\r")[2]).strip()
        if not shown:
            return
        name, now = re.split(r"\d", shown, maxsplit=1)[0].strip(), time.monotonic()
        since, written = self._bars.setdefault(name, (now, False))
        ended = "100%" in shown
        if now - since >= BAR_SECONDS or (ended and written):
            self._inner.write(shown + "\n")
            self._inner.flush()
            self._bars[name] = now, True
        if ended:
            del self._bars[name]


def prepare(keep: Callable[[str], None] | None = None) -> None:
    """Make the streams of this process what this module says; a second call changes nothing.

    Streams that somebody else put in place, such as a test or a notebook, stay as they are.
    """
    codecs.register_error(REPLACED, _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.reconfigure(errors=REPLACED)
        setattr(sys, name, Stream(stream, keep if name == "stderr" else None))


_result: TextIO | None = None


@contextmanager
def only_json(wanted: bool = True) -> Iterator[None]:
    """Within, send all that is printed to stderr, by C code too, but for `print_json`.

    Only sys.stdout is restored at the end: the process's own stdout stays sent to stderr, since
    libraries print at exit too.
    """
    global _result
    before = sys.stdout
    if not wanted:
        yield
        return
    before.flush()
    _result, descriptor = before, None
    with suppress(AttributeError, OSError, ValueError):  # a stream that is no file
        descriptor = before.fileno()
    if descriptor == 1:
        _result = cast(TextIO, Stream(os.fdopen(os.dup(1), "w", encoding="utf-8")))
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout, _result = before, None


def print_json(text: str) -> None:
    """Print the result of a command with `--json`."""
    print(text, file=_result or sys.stdout, flush=True)
