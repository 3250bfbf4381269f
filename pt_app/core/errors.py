"""Errors that a user can fix, and how a program ends on them.

Exit codes: 0 done; 1 a bug; 2 the user can fix it; 130 interrupted; 141 nobody reads the output.
"""

import errno
import gc
import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from pt_app.core import streams

# Errors of the system that a user can fix, wherever they come up.
REMEDIES = {errno.EROFS: "name another folder"}
REMEDIES |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on its disk")
_RIGHTS = "have its owner give you the right to it, or name another"
REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM), _RIGHTS)


class UserError(Exception):
    """An error that the user can fix: what, where (file, row, field) and the remedy, in a line."""


def exit_with(main: Callable[[], object]) -> NoReturn:
    """Run `main` and end the process with the code that its outcome stands for."""
    # Imports of torch, transformers and peft make some 3 million objects that stay. By default
    # Python looks for garbage among them a few thousand times, a quarter of the 10 s they take.
    gc.set_threshold(50_000, 20, 20)
    streams.prepare(_keep)
    try:
        _run(main)
    except SystemExit:
        print(end="", flush=True)  # here, since Python's own end would complain of a closed pipe
        raise


def _run(main: Callable[[], object]) -> NoReturn:
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REMEDIES or not error.filename:
            raise
        remedy = REMEDIES[error.errno]
        print(f"error: {error.filename}: {error.strerror}: {remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _keep(line: str) -> None:
    """Keep a line of stderr, a library's for the most part, in the run's log file."""
    logging.getLogger("pt_app.stderr").debug("%s", line)
