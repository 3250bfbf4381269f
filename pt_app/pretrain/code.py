"""Run the programs that a model wrote, each in a process of its own with limits.

It is no sandbox: the program has the rights of the user but for the limits, and no network where
the system lets a process give it up. Whoever does not trust that runs it in a container.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache

from pt_app.pretrain.tasks import Problem

SECONDS, MEMORY, FILE_BYTES = 5, 2**30, 2**20
_BLOCK = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)


def program(problem: Problem, answer: str) -> str:
    """Return the program that tests an answer: a code block of it, or else all of it.

    An answer without the function's head continues the problem's text.
    """
    found = _BLOCK.search(answer)
    code = found[1] if found else answer
    head = "" if f"def {problem.entry_point}(" in code else problem.text
    return f"{head}{code}\n{problem.answer}\ncheck({problem.entry_point})\n"


def passes(source: str, seconds: int = SECONDS) -> bool:
    """Return whether a program ends without an error, within its time and 1 GiB of memory."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*without_network(), sys.executable, "-I", "-B", "-c", source],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _limit(seconds),
        )
        try:
            # Twice the CPU seconds: on a busy machine a program gets fewer of them per second.
            return process.wait(timeout=2 * seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:  # what it may have started ends with it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _limit(seconds: int) -> None:
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: FILE_BYTES}
    limits[resource.RLIMIT_CORE] = 0
    if sys.platform != "darwin":  # where it cannot be set, and raises
        limits |= {resource.RLIMIT_AS: MEMORY}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


@cache
def without_network() -> tuple[str, ...]:
    """Return the command that starts a program without a network; () where the system has none."""
    command = ("unshare", "--map-root-user", "--net")
    if shutil.which(command[0]) is None:
        return ()
    tried = subprocess.run([*command, "true"], capture_output=True)
    return command if tried.returncode == 0 else ()
