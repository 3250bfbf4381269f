"""What of a run's tracking is still to be sent, and the sending of it, now or by `judge sync`.

`tracking.json` in a run folder names each W&B run and each file of Weave rows, relative to the
folder, and whether it was sent. Child processes with a deadline do the sending.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pt_app
from pt_app.core.errors import UserError
from pt_app.core.files import read_json, write_json_atomic
from pt_app.core.records import checked
from pt_app.tracking.access import Access, resolve_access

STATE_FILE = "tracking.json"
Kind = Literal["wandb", "weave"]
_QUIET = tomllib.loads(Path(__file__).with_name("quiet.toml").read_text(encoding="utf-8"))
CHILD_ENVIRONMENT: dict[str, str] = _QUIET["child"]
WANDB_SETTINGS: dict[str, bool] = _QUIET["wandb"]


@dataclass
class SyncSummary:
    """What one `sync` did: how much was sent, how much was sent before, and the failures."""

    sent: int = 0
    sent_before: int = 0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line for the terminal."""
        line = f"sent {self.sent}, sent before {self.sent_before}"
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
    remedy = "delete it to forget what is unsent"
    state = read_json(file, remedy=remedy)
    return {
        kind: checked(dict[str, bool], state.get(kind), f"{file}, field {kind}", remedy)
        for kind in get_args(Kind)
    }


def note(run_dir: Path, kind: Kind, name: str, sent: bool) -> None:
    """Record in `tracking.json` whether `name` (relative to `run_dir`) was sent."""
    state = read_state(run_dir)
    state[kind][name] = sent
    content = {"schema": 1, "wandb": state["wandb"], "weave": state["weave"]}
    write_json_atomic(run_dir / STATE_FILE, content)


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
    runs = [file.parent for file in sorted(folder.rglob(STATE_FILE))]
    items = [
        (run, kind, name, sent)
        for run in runs
        for kind, names in read_state(run).items()
        for name, sent in names.items()
    ]
    if not items:
        raise UserError(f"{folder} holds no tracked run ({STATE_FILE}): name the folder of a run")
    summary = SyncSummary(sent_before=sum(sent for *_, sent in items))
    if summary.sent_before == len(items):
        return summary
    access = resolve_access("online")
    if access.mode != "online":
        raise UserError(f"nothing was sent: {access.reason}: try again with a network")
    end = time.monotonic() + deadline_s
    for run, kind, name, sent in items:
        if not sent:
            problem = send(run, kind, name, access, max(1.0, end - time.monotonic()))
            summary.sent += not problem
            summary.failed += [f"{name}: {problem}"] if problem else []
    return summary


def send(
    run_dir: Path,
    kind: Kind,
    name: str,
    access: Access,
    deadline_s: float,
    child: "Child | None" = None,
) -> str:
    """Send one W&B run or file of rows within `deadline_s`; return the problem, "" if none.

    `child` is the one that has been sending it, if there is one.
    """
    path = run_dir.resolve() / name
    if not path.exists():
        return "is no longer there"
    if child is None:
        weave, wandb = ["pt_app.tracking.weave_rows"], ["wandb", "sync", "--include-online"]
        child = Child([*(weave if kind == "weave" else wandb), str(path)], access)
    problem = child.wait(deadline_s)
    if kind == "wandb" and not problem and not list(path.glob("*.synced")):
        problem = "W&B did not confirm it"
    if not problem:
        note(run_dir, kind, name, sent=True)
    return problem


class Child:
    """A process that sends to W&B or Weave, away from the terminal, in a group of its own."""

    def __init__(self, command: Sequence[str], access: Access) -> None:
        """Start Python's module `command[0]` with the other words as its arguments."""
        root = str(Path(pt_app.__file__).parent.parent)
        environment = {
            **os.environ,
            **CHILD_ENVIRONMENT,
            "WANDB_API_KEY": access.key or "",
            "WANDB_BASE_URL": access.base_url,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
        }
        for name in ("WANDB_MODE", "WANDB_SERVICE"):  # of this process alone
            environment.pop(name, None)
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pt_app.tracking.child", str(os.getpid()), *command],
                cwd=self._folder.name,  # weave writes what it drops into the working folder
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Return whether the process has ended by itself."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> str:
        """Wait for the end; return the last line of what failed, "" if nothing did.

        The whole process group is killed after `seconds`, and if this process is interrupted.
        """
        try:
            code = self._process.wait(seconds)
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return "" if code == 0 else (lines[-1] if lines else f"exit code {code}")[:300]
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._folder.cleanup()
