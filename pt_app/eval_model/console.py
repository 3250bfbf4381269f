"""What a run says: plain lines on the terminal, the same with times in the run's log file."""

import logging
import logging.handlers
import os
import sys
import warnings
from pathlib import Path
from typing import Any

_ROOT = logging.getLogger("pt_app")
LOGGERS = [_ROOT]
"""For tqdm, so that a line does not land in the middle of a bar."""


def is_main_process() -> bool:
    """Whether this process speaks and writes: rank 0, or the only one."""
    return rank() == 0


def rank() -> int:
    """Which of the processes that train together this is."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_ranks() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start() -> None:
    """Print the lines of `pt_app` loggers; on other ranks than 0 warnings only."""
    for handler in list(_ROOT.handlers):
        _ROOT.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    _ROOT.addHandler(terminal)
    _ROOT.addHandler(_Kept())
    # What libraries say is kept at DEBUG, for the log file alone: they have shown it themselves.
    _ROOT.setLevel(logging.DEBUG if is_main_process() else logging.WARNING)
    _ROOT.propagate = False
    _silence_what_no_user_can_act_on()


def _silence_what_no_user_can_act_on() -> None:
    # peft 0.21 asks transformers 5.23 by an old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    # The line on the platform says it.
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)


class _Kept(logging.handlers.MemoryHandler):
    """Keeps what is said until the run has a log file."""

    def __init__(self) -> None:
        super().__init__(capacity=10_000, flushLevel=logging.CRITICAL + 1)


def also_to(file: Path) -> None:
    """Append every line since `start` to `file` too, with its time and level."""
    if not is_main_process():
        return
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for kept in [h for h in _ROOT.handlers if isinstance(h, _Kept)]:
        kept.setTarget(handler)
        kept.close()
        _ROOT.removeHandler(kept)
    _ROOT.addHandler(handler)


def show(table: Any) -> None:
    """Print a rich table; where the output is no terminal, 80 columns wide."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=80)).print(table)
