"""What a run says: plain lines on the terminal, the same with times in the run's log file."""

import logging
import os
import sys
import warnings
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write

_ROOT = logging.getLogger("pt_app")
LOGGERS = [_ROOT]
"""For tqdm, so that a line does not land in the middle of a bar."""


def is_main_process() -> bool:
    """Return whether this process logs and writes: rank 0, or the only process."""
    return rank() == 0


def rank() -> int:
    """Return the rank of this process among those that train together."""
    return number("RANK", 0)


def ranks() -> int:
    """Return how many processes train together."""
    return number("WORLD_SIZE", 1)


def local_ranks() -> int:
    """Return how many of these processes run on this machine."""
    return number("LOCAL_WORLD_SIZE", 1)


def number(name: str, default: int) -> int:
    """Return the value of a launcher's variable; raises UserError if it is not a number."""
    value = os.environ.get(name) or default
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value} is no number; launchers set it: unset {name}") from None


def start() -> None:
    """Print the lines of `pt_app` loggers; on other ranks than 0 warnings only."""
    for handler in list(_ROOT.handlers):
        _ROOT.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    _ROOT.addHandler(terminal)
    # Keeps log records until the run has a log file.
    _ROOT.addHandler(MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1))
    # What libraries say is kept at DEBUG, for the log file alone: they have shown it themselves.
    _ROOT.setLevel(logging.DEBUG if is_main_process() else logging.WARNING)
    _ROOT.propagate = False
    # Nobody can act on these two: peft 0.21 asks transformers 5.23 by an old name, and the line
    # about the platform already names the optimizer.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)


class _LogFile(logging.FileHandler):
    """A log file that is given up, with one line, when it cannot be written: the run continues."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by logging where a line could not be written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        _ROOT.removeHandler(self)
        with suppress(OSError):  # what is left in the buffer cannot be written either
            self.close()
        problem = cannot_write(Path(self.baseFilename), error)
        _ROOT.warning("%s; no more lines go there", problem)


def also_to(file: Path) -> None:
    """Append every line since `start` to `file` too, with its time and level."""
    if not is_main_process():
        return
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for kept in [h for h in _ROOT.handlers if isinstance(h, MemoryHandler)]:
        kept.setTarget(handler)
        kept.close()
        _ROOT.removeHandler(kept)
    _ROOT.addHandler(handler)


def show(table: object) -> None:
    """Print a rich table; where the output is no terminal, 80 columns wide."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=80)).print(table)
