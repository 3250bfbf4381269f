"""Measures several ways of doing one thing in turns: A B C A B C, each in a process of its own.

The processes are forked from one that holds the models, whose weights they share, so that many fit
into the memory of one; what each adds is its own.
"""

import ctypes
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

GIB = 2**30
SHORT = 7 * GIB  # memory that any one of the ways may need


@dataclass
class Samples:
    """What was measured of one way: seconds and CPU seconds of each round, GiB, all results.

    The GiB are those above the model.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: float = 0.0
    results: list[Any] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


class Turns:
    """A process's side: wait for one's turn, do the work, say how long it took."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self.resident = 0
        self.trimmed = self.warming = False

    def wait(self) -> None:
        """Return when it is this process's turn; ends the process where there is none any more."""
        if self.warming:  # the work is done once more, and counts
            self.warming = False
            return
        if self.link.recv() == "stop":
            os._exit(0)
        self.warming, self.trimmed = self.trimmed, False
        if not self.resident:
            self.resident = _memory("VmRSS")
            _reset_peak()

    def done(self, seconds: float, result: Any, cpu: float = 0.0) -> None:
        """Hand in a round: its seconds, its result, and what it took of CPUs.

        Where memory is short, what is free is given back before the next turn of another; in its
        own next turn the work is then done once before it counts, as new memory costs time.
        """
        if self.warming:
            return
        self.link.send((seconds, cpu, _memory("VmHWM") - self.resident, result))
        if psutil.virtual_memory().available < SHORT:
            _trim()
            self.trimmed = True


Work = Callable[[Turns], None]


def repeat(prepare: Callable[[], Callable[[], Any]]) -> Work:
    """Work that is a function called over and over; `prepare` makes it, untimed."""

    def work(turns: Turns) -> None:
        function = prepare()
        while True:
            turns.wait()
            start, cpu = time.perf_counter(), cpu_seconds()
            result = function()
            turns.done(time.perf_counter() - start, result, cpu_seconds() - cpu)

    return work


def in_turns(
    ways: Mapping[str, Work], rounds: int, say: Callable[[str], None]
) -> dict[str, Samples]:
    """Run all ways `rounds` times in turns, after one round that is not counted.

    A way that fails is left out from then on, and its error kept.
    """
    context = get_context("fork")
    found = {name: Samples() for name in ways}
    links: dict[str, Connection] = {}
    for name, work in ways.items():
        here, there = context.Pipe()
        context.Process(target=_run, args=(work, there), daemon=True).start()
        there.close()
        links[name] = here
    for turn in range(rounds + 1):
        for name in list(links):
            samples = found[name]
            try:
                seconds, cpu, memory, result = _told(links[name])
            except (EOFError, OSError, RuntimeError) as error:
                samples.error = str(error) or "the process ended"
                del links[name]
                say(f"{name} failed: {samples.error}")
                continue
            samples.results.append(result)
            if turn:
                samples.seconds.append(seconds)
                samples.cpu.append(cpu)
            samples.memory = max(samples.memory, memory / GIB)
            say(f"{'round ' + str(turn) if turn else 'warm-up'}, {name}: {seconds:.2f} s")
    for link in links.values():
        link.send("stop")
    return found


def _told(link: Connection) -> Any:
    """Give a process its turn and await what it hands in."""
    if not link.poll():  # else it has failed before its turn, and said why
        link.send("go")
    got = link.recv()
    if isinstance(got, str):
        raise RuntimeError(got)
    return got


def _run(work: Work, link: Connection) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (to the process's end)
    try:
        work(Turns(link))
    except BaseException:  # whatever ends a way is reported; the others continue
        last = traceback.format_exc().strip().splitlines()
        link.send(" | ".join(last[-3:]))
        os._exit(1)


def cpu_seconds(process: "psutil.Process | None" = None) -> float:
    """Return the CPU seconds of a process, by default this one, and of its living children.

    Those of other processes are counted in ticks of 10 ms.
    """
    others = [process] if process else []
    others += (process or psutil.Process()).children(recursive=True)
    times = [each.cpu_times() for each in others]
    own = 0.0 if process else time.process_time()
    return own + float(sum(each.user + each.system for each in times))


def _memory(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none (not on Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _trim() -> None:
    """Give freed memory back: a process that waits for its turn would keep gigabytes of it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        return


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (proc_pid_clear_refs(5))
    except OSError:
        return
