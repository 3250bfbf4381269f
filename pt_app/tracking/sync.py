"""What of a run's tracking is still to be sent, and the sending of it, now or by `judge sync`.

`tracking.json` in a run folder names each W&B run and each file of Weave rows, relative to the
folder, and whether it was sent. Child processes with a deadline do the sending.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pt_app
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.tracking.access import Access, resolve_access

STATE_FILE = "tracking.json"
Kind = Literal["wandb", "weave"]
# How the children behave: fail early, keep quiet, report to nobody else, cache nothing at home
# (weave's server cache makes a replay leave out what an earlier session has sent).
CHILD_ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WEAVE_CAPTURE_CLIENT_INFO": "false",
    "WEAVE_CAPTURE_CODE": "false",
    "WEAVE_CAPTURE_SYSTEM_INFO": "false",
    "WEAVE_HTTP_TIMEOUT": "15",
    "WEAVE_IMPLICITLY_PATCH_INTEGRATIONS": "false",
    "WEAVE_LOG_LEVEL": "WARNING",
    "WEAVE_PRINT_CALL_LINK": "false",
    "WEAVE_RETRY_MAX_ATTEMPTS": "2",
    "WEAVE_USE_SERVER_CACHE": "false",
}


@dataclass
class SyncSummary:
    """What one `sync` did: names of what was sent, of what was sent before, and failures."""

    sent: list[str] = field(default_factory=list)
    already_sent: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Give one line for the terminal."""
        line = f"sent {len(self.sent)}, sent before {len(self.already_sent)}"
        if self.failed:
            line += f", failed {len(self.failed)} (try again): {'; '.join(self.failed)}"
        return line


def read_state(run_dir: Path) -> dict[Kind, dict[str, bool]]:
    """Read `tracking.json`: by kind, the name of each run or file -> whether it was sent.

    A folder without the file has sent nothing. Raises UserError if the file is damaged.
    """
    file = run_dir / STATE_FILE
    if not file.exists():
        return {"wandb": {}, "weave": {}}
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        return {"wandb": dict(state["wandb"]), "weave": dict(state["weave"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it to forget what is unsent"
        ) from error


def note(run_dir: Path, kind: Kind, name: str, sent: bool) -> None:
    """Record in `tracking.json` whether `name` (relative to `run_dir`) was sent."""
    state = read_state(run_dir)
    state[kind][name] = sent
    write_json_atomic(run_dir / STATE_FILE, {"schema": 1, **state})


def sync(folder: Path, deadline_s: float = 600.0) -> SyncSummary:
    """Send what the run folders in `folder` (itself, or below it) have not sent yet.

    Sending again sends nothing twice: W&B continues a run of its own; a Weave evaluation is the
    unit, and what a failed attempt left of one is deleted before it is sent whole.

    Args:
        folder: for an adapter's folder (`…_final`), the folder of its run beside it is meant.
        deadline_s: limit in seconds for all of it.

    Raises:
        UserError: where nothing was tracked, without a key, and without a network.
    """
    if folder.name.endswith("_final") and not list(folder.rglob(STATE_FILE)):
        folder = folder.with_name(folder.name.removesuffix("_final"))
    summary = SyncSummary()
    waiting: list[tuple[Path, Kind, str]] = []
    for file in sorted(folder.rglob(STATE_FILE)):
        for kind, names in read_state(file.parent).items():
            waiting += [(file.parent, kind, name) for name, sent in names.items() if not sent]
            summary.already_sent += [name for name, sent in names.items() if sent]
    if not waiting:
        if not summary.already_sent:
            raise UserError(
                f"{folder} holds no tracked run ({STATE_FILE}): name the folder of a run"
            )
        return summary
    access = resolve_access("online")
    if access.mode != "online":
        raise UserError(f"nothing was sent: {access.reason}: try again with a network")
    end = time.monotonic() + deadline_s
    for run_dir, kind, name in waiting:
        problem = send(run_dir, kind, name, access, max(1.0, end - time.monotonic()))
        if problem:
            summary.failed.append(f"{name}: {problem}")
        else:
            summary.sent.append(name)
    return summary


def send(run_dir: Path, kind: Kind, name: str, access: Access, deadline_s: float) -> str:
    """Send one W&B run or file of rows within `deadline_s`; return the problem, "" if none."""
    path = run_dir.resolve() / name
    if not path.exists():
        return "is no longer there"
    if kind == "weave":
        command = ["-m", "pt_app.tracking.weave_rows", str(path), f"{deadline_s}"]
    else:
        command = ["-m", "wandb", "sync", "--include-online", str(path)]
    problem = run_child(command, access, deadline_s)
    if kind == "wandb" and not problem and not list(path.glob("*.synced")):
        problem = "W&B did not confirm it"
    if not problem:
        note(run_dir, kind, name, sent=True)
    return problem


def run_child(command: Sequence[str], access: Access, deadline_s: float) -> str:
    """Run Python with `command`, away from the terminal; return its last line if it failed.

    The whole process group is killed at the deadline, and if this process is interrupted.
    """
    root = str(Path(pt_app.__file__).parent.parent)
    environment = {
        **os.environ,
        **CHILD_ENVIRONMENT,
        "WANDB_API_KEY": access.key or "",
        "WANDB_BASE_URL": access.base_url,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
    }
    environment.pop("WANDB_MODE", None)
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log", "w+b") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", *command],
            cwd=scratch,  # weave writes what it drops into the working folder
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(deadline_s + 1.0)
        except subprocess.TimeoutExpired:
            return f"not done after {deadline_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return "" if code == 0 else (lines[-1] if lines else f"exit code {code}")[:300]
