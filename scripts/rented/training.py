"""The run on the host, watched from here: its log, its checkpoints, the machine, the money."""

import logging
import shlex
import sys
import time
from dataclasses import dataclass

from scripts.rented import limits
from scripts.rented.copying import copy_back
from scripts.rented.host import CutOffError, Host, plain
from scripts.rented.market import ALIVE_NEVER, Market, UnreachableError
from scripts.rented.provision import find
from scripts.rented.record import Launch

PIECE = 1_000_000  # bytes of the log that are read at a time
log = logging.getLogger("pt_app.rented")


class OverError(Exception):
    """The rental must end now; the message says whether by its cap, the balance or the machine."""


@dataclass
class Follower:
    """Watches a run to its end: its log, its checkpoints, the machine, the money."""

    host: Host
    market: Market
    launch: Launch
    offset: int = 0
    heard: float = 0.0
    away_since: float | None = None
    behind: bool = False  # the run has ended, and more of its log waits on the host

    def follow(self) -> None:
        """Follow the run until the host has written its exit code into the launch.

        Raises OverError where the rental must end before.
        """
        self.heard = fetched = time.monotonic()
        while not self._look():
            self._check_machine()
            if time.monotonic() - fetched >= self.launch.fetch_minutes * 60:
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
        text = plain(new.decode(errors="replace").replace("\r", "\n"))
        with open(self.launch.folder / "run.log", mode, encoding="utf-8") as file:
            file.write(text)
        sys.stdout.write(text)
        sys.stdout.flush()
        self.behind = bool(code.strip()) and len(new) == PIECE
        if not code.strip() or self.behind:
            return False
        self.launch.save(stage="ended", exit_code=plain(code.decode(errors="replace")).strip())
        return True

    def _check_machine(self) -> None:
        """End the rental of a machine that is gone, or in a state that never becomes running."""
        try:
            instance = find(self.market, self.launch)
        except UnreachableError:
            return
        if instance is not None and instance.status not in ALIVE_NEVER:
            self.away_since = None
            return
        self.away_since = self.away_since or time.monotonic()
        # A list may leave an instance out.
        may_return = instance is None or instance.status in ("unknown", "offline")
        if time.monotonic() - self.away_since >= (limits.LIMITS.away if may_return else 0.0):
            if instance is None:
                raise OverError("Vast no longer lists the instance: it was destroyed elsewhere")
            raise OverError(f"the instance is {instance.status} ({instance.message})")

    def _check_money(self) -> None:
        """End the rental while there is still credit for a last copy."""
        try:
            credit = self.market.credit()
        except UnreachableError:
            return
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
