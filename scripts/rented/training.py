"""The run on the host, watched from here: its log, the machine, the money, and what it made."""

import logging
import re
import shlex
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pt_app.training import checkpoints
from scripts.rented import limits
from scripts.rented.host import CutOffError, Host, plain
from scripts.rented.market import ALIVE_NEVER, Market, UnreachableError
from scripts.rented.provision import find
from scripts.rented.record import Launch

PIECE = 1_000_000  # bytes of the log that are read at a time
log = logging.getLogger("pt_app.rented")


class OverError(Exception):
    """The rental must end now; the message says whether by its cap, the balance or the machine."""


def copy_back(host: Host, launch: Launch) -> None:
    """Copy what is complete on the host: checkpoints, and at the end run folder and adapter.

    Checkpoints that this launch brought and the host has rotated out are deleted here too.
    Raises CutOffError.
    """
    names = _complete(host)
    run = _run_of(launch, {name.split("/")[0] for name in names})
    if run is None:
        return
    here = Path(launch.output_dir) / run
    launch.save(run=run)
    here.mkdir(parents=True, exist_ok=True)
    entries = {name.split("/")[1] for name in names if name.startswith(f"{run}/")}
    kept = {name for name in entries if name.startswith("checkpoint-")}
    others = sorted(entries - kept)
    if others and (others != ["settings.json"] or not (here / "settings.json").exists()):
        host.fetch(f"adapters_eval/{run}", here, others)
    _fetch_checkpoints(host, launch, here, kept)
    rotated = set(launch.brought) - kept if kept else set()
    for name in rotated:
        shutil.rmtree(here / name, ignore_errors=True)
    launch.save(brought=[name for name in launch.brought if name not in rotated])
    adapter = here.with_name(f"{run}_final")
    if adapter.name in names and not adapter.exists():
        host.fetch(f"adapters_eval/{adapter.name}", adapter)
        log.info("copied back: %s", adapter)


def _complete(host: Host) -> list[str]:
    """List what is no longer written, by its name below the host's adapters_eval.

    These are adapters, a run's complete checkpoints and its settings, at the end all of a run.
    """
    command = (
        f"(cd {shlex.quote(host.remote)}/adapters_eval || exit; "
        "ls -d [!.]*_final [!.]*/checkpoint-*/complete.json [!.]*/settings.json; "
        "[ ! -e ../exit_code ] || ls -d [!.]*/* | grep -v /checkpoint-) 2>/dev/null "
        "| sed 's,/complete.json$,,'"
    )
    lines = host.run(command).decode(errors="replace").splitlines()
    # Names become paths here: only such as the recipe makes.
    return sorted({line for line in lines if re.fullmatch("[^./][^/]*(/[^./][^/]*)?", line)})


def _run_of(launch: Launch, names: Collection[str]) -> str | None:
    """Find the launch's run among the names on the host; None where it has not begun.

    A stranger's machine could name another run of this folder: only the run that is resumed, or
    a name that is new here, becomes the launch's. Raises CutOffError for another one.
    """
    ours = launch.run or (Path(launch.resume).name if launch.resume else None)
    if ours is not None:
        return ours if ours in names else None
    runs = sorted(name for name in names if not name.endswith("_final"))
    new = [name for name in runs if not (Path(launch.output_dir) / name).exists()]
    if runs and not new:
        raise CutOffError(f"{runs[0]} is not this launch's run: move it out of the output folder")
    return new[0] if new else None


def _fetch_checkpoints(host: Host, launch: Launch, run: Path, names: Collection[str]) -> None:
    """Fetch the newest first, since the host may rotate out old ones meanwhile.

    One that fails stops no other; raises the CutOffError of the last one that did.
    """
    failed = None
    # A longer name has a longer number: this is the order of the steps.
    for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
        target = run / name
        if target.exists() and checkpoints.fault(target) is None:
            continue
        shutil.rmtree(target, ignore_errors=True)
        try:
            host.fetch(f"adapters_eval/{run.name}/{name}", target)
            if fault := checkpoints.fault(target):  # rotated out on the host while it was copied
                shutil.rmtree(target)
                raise CutOffError(f"{name}: {fault}")
            launch.save(brought=[*launch.brought, name])
            log.info("copied back: %s", target)
        except CutOffError as error:
            failed = error
    if failed is not None:
        raise failed


@dataclass
class Follower:
    """Watches a run to its end: its log, its checkpoints, the machine, the money."""

    host: Host
    market: Market
    launch: Launch
    offset: int = 0  # bytes of the log that are read
    heard: float = 0.0  # when the host last answered, by time.monotonic()
    away_since: float | None = None
    behind: bool = False  # the run has ended, and more of its log waits on the host

    def follow(self) -> None:
        """Follow the run until the host has written its exit code into the launch.

        Raises OverError where the rental must end before.
        """
        self.heard = fetched = time.monotonic()
        while not self._look():
            with suppress(UnreachableError):
                self._check_machine()
            if time.monotonic() - fetched >= self.launch.fetch_minutes * 60:
                with suppress(UnreachableError):
                    self._check_money()
                try:
                    copy_back(self.host, self.launch)
                except CutOffError as error:
                    log.warning("%s: what was copied before stays; trying again later", error)
                fetched = time.monotonic()
            self._check_cap()
            time.sleep(0 if self.behind else limits.LIMITS.poll)

    def _look(self) -> bool:
        """Print what is new in the log; true once the run has ended and all of it is read."""
        command = (
            f'cd {shlex.quote(self.host.remote)} && echo "$(cat exit_code 2>/dev/null)" && '
            f"tail -c +{self.offset + 1} run.log 2>/dev/null | head -c {PIECE}"
        )
        try:
            output = self.host.run(command)
        except CutOffError as error:
            if time.monotonic() - self.heard > limits.LIMITS.unheard:
                raise OverError(f"the host no longer answers ({error})") from None
            return False
        self.heard = time.monotonic()
        code, _, new = output.partition(b"\n")
        mode = "a" if self.offset else "w"  # an attach reads all of it again
        self.offset += len(new)
        with open(self.launch.folder / "run.log", mode, encoding="utf-8") as file:
            file.write(plain(new))
        print(plain(new), end="", flush=True)
        self.behind = bool(code.strip()) and len(new) == PIECE
        if not code.strip() or self.behind:
            return False
        self.launch.save(stage="ended", exit_code=plain(code).strip())
        return True

    def _check_machine(self) -> None:
        """End the rental of a machine that is gone, or in a state that never becomes running.

        Neither counts at once: a list may leave an instance out, and a machine may come back.
        """
        instance = find(self.market, self.launch)
        if instance is not None and instance.status not in ALIVE_NEVER:
            self.away_since = None
            return
        self.away_since = self.away_since or time.monotonic()
        if time.monotonic() - self.away_since >= limits.LIMITS.away:
            if instance is None:
                raise OverError("Vast no longer lists the instance: it was destroyed elsewhere")
            raise OverError(f"the instance is {instance.status} ({instance.message})")

    def _check_money(self) -> None:
        """End the rental while there is still credit for a last copy."""
        credit = self.market.credit()
        reserve = self.launch.hourly * (self.launch.fetch_minutes / 60 + 0.1)
        if credit < reserve:
            self._end(f"${credit:.2f} of credit is left, less than ${reserve:.2f}")

    def _check_cap(self) -> None:
        assert self.launch.started is not None
        cap = self.launch.max_hours * 3600
        kept = min(limits.LIMITS.last_minutes, cap / 3)
        if time.time() - self.launch.started >= cap - kept:
            self._end(f"the cap of {self.launch.max_hours:.2f} hours is reached")

    def _end(self, why: str) -> None:
        """Ask the recipe to end after its step, and give it a minute to write a checkpoint.

        Raises OverError(`why`), but where the run had ended by itself, and well.
        """
        try:
            self.host.run(f"kill -TERM $(cat {shlex.quote(self.host.remote)}/train.pid) || true")
            end = time.monotonic() + min(60.0, limits.LIMITS.last_minutes / 3)
            while not self._look() and time.monotonic() < end:
                time.sleep(min(2.0, limits.LIMITS.poll))
        except CutOffError as error:
            log.warning("no last checkpoint: %s", error)
        if self.launch.exit_code != "train 0":
            raise OverError(why)
