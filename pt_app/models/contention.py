"""Keep a run from stalling when other programs use the same CPU cores.

On Linux torch computes with GNU OpenMP (libgomp). Between two parallel regions its threads spin
for some milliseconds, which is the fastest way to wait on a quiet machine. Beside another busy
program it is ruinous: a thread that spins uses up the time slice that the thread it waits for
needs, so that each of the thousands of regions of a training step costs a slice of the scheduler.
Two trainings on two cores took 54 times as long as one (docs/PERFORMANCE.md).

libgomp stops spinning after about a microsecond by itself while it manages more threads than there
are CPUs (`gomp_throttled_spin_count_var` in gcc's libgomp/env.c, read by config/linux/wait.h). No
call asks for that, and the variables that bound spinning (OMP_WAIT_POLICY, GOMP_SPINCOUNT) are read
once, as torch loads, and slow a quiet machine down. So a monitor measures how long the threads of
this process were ready to run but had no core. While that share is high it keeps further OpenMP
teams, all asleep, which take libgomp above its bound; when the machine is quiet again it lets them
end. The threads that compute, and how the work is divided among them, stay the same, so that no
result depends on when the monitor switches.
"""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from pt_app.models.platforms import cores

POLL_SECONDS = 0.5
# Share of its time that a thread may wait for a core; alone it is at most 0.1, beside a loop 0.3.
BUSY = 0.2
CALM = 0.1
CALM_POLLS = 4
# Threads that wanted a core for a smaller share of an interval tell nothing about the machine.
MIN_WANTED = 0.2
TASKS = Path("/proc/self/task")
# Thread id -> nanoseconds on a core, nanoseconds ready to run but waiting for one.
Clocks = Mapping[str, tuple[int, int]]

log = logging.getLogger(__name__)


def thread_clocks() -> Clocks:
    """Read how long each thread of this process has run, and waited for a core, so far."""
    clocks = {}
    for task in TASKS.iterdir():
        with suppress(OSError):  # the thread has just ended
            ran, waited, _ = (task / "schedstat").read_text().split()
            clocks[task.name] = int(ran), int(waited)
    return clocks


def waiting_share(before: Clocks, after: Clocks, seconds: float) -> float:
    """Return the largest share of its wanted time that a thread waited for a core, in 0 to 1.

    The largest and not the mean: the slowest thread of a team holds up all others, and on a machine
    of many cores another program delays only a few.
    """
    shares = [0.0]
    for task, (ran, waited) in after.items():
        ran_before, waited_before = before.get(task, (ran, waited))
        wanted = ran - ran_before + waited - waited_before
        if wanted >= MIN_WANTED * seconds * 1e9:
            shares.append((waited - waited_before) / wanted)
    return max(shares)


def why_not_watched() -> str | None:
    """Return why contention is not watched on this machine; None if it is."""
    if torch.get_num_threads() == 1:
        return "one thread waits for no other"
    if sys.platform != "linux" or not (TASKS.parent / "schedstat").is_file():
        return "this system does not tell how long threads wait for a core"
    if "libgomp" not in Path("/proc/self/maps").read_text():
        return "torch does not use GNU OpenMP here"
    return None


class SleepingTeams:
    """OpenMP teams without work, which make libgomp's waiting threads sleep while they exist."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._holders: list[threading.Thread] = []

    @property
    def exist(self) -> bool:
        """Whether waiting threads sleep now."""
        return bool(self._holders)

    def start(self) -> None:
        """Start as many teams as take libgomp's count of threads above that of the CPUs."""
        threads = torch.get_num_threads()
        # The computing team counts `threads`, each team here one less: its first thread is ours.
        teams = (max(cores(), threads) - threads) // (threads - 1) + 1
        self._end.clear()
        ready = threading.Barrier(teams + 1)
        self._holders = [
            threading.Thread(target=_hold_team, args=(ready, self._end), daemon=True)
            for _ in range(teams)
        ]
        for holder in self._holders:
            holder.start()
        ready.wait()

    def stop(self) -> None:
        """Let the teams end: waiting threads spin again."""
        self._end.set()
        for holder in self._holders:
            holder.join()
        self._holders = []


def _hold_team(ready: threading.Barrier, end: threading.Event) -> None:
    torch.ones(2**20)  # large enough for torch to compute it in parallel, which makes the team
    ready.wait()
    end.wait()


class Monitor:
    """Switches between spinning and sleeping by what the threads of this process measure."""

    def __init__(self) -> None:
        self._users = 0
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._switching = threading.Lock()
        self._closed = False
        self._logged: set[str] = set()
        self.teams = SleepingTeams()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch within; calls may be nested, and the state is kept between them."""
        with self._lock:
            self._users += 1
            self._wanted.set()
            if self._thread is None or not self._thread.is_alive():  # not alive: a forked process
                self._thread = threading.Thread(target=self._poll, name="contention", daemon=True)
                self._thread.start()
                atexit.register(self.close)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._wanted.clear()

    def close(self) -> None:
        """Let the teams end before the interpreter does, for good.

        A daemon thread that returns from torch after that is unwound by `pthread_exit`, which C++
        answers with `std::terminate`: a run that had done all its work would end with SIGABRT.
        """
        with self._switching:
            self._closed = True
            self.teams.stop()

    def _poll(self) -> None:
        calm = 0
        while self._wanted.wait():
            before, start = thread_clocks(), time.perf_counter()
            time.sleep(POLL_SECONDS)
            share = waiting_share(before, thread_clocks(), time.perf_counter() - start)
            calm = calm + 1 if share < CALM else 0
            with self._switching:
                if self._closed:
                    return
                self._switch(busy=share > BUSY, calm=calm >= CALM_POLLS)

    def _switch(self, busy: bool, calm: bool) -> None:
        if busy and not self.teams.exist:
            self.teams.start()
            self._log_once(
                "other programs are using the CPU: while they do, threads that wait for each "
                "other sleep (the results stay the same)"
            )
        elif calm and self.teams.exist:
            self.teams.stop()
            self._log_once("the CPU is free again: waiting threads no longer sleep")

    def _log_once(self, message: str) -> None:
        """Log a message the first time only: a neighbour may come and go all day."""
        if message not in self._logged:
            self._logged.add(message)
            log.info(message)


_monitor = Monitor()


@contextmanager
def watched(device: torch.device | str) -> Iterator[None]:
    """Watch for contention within, if `device` is the CPU and this system allows it.

    What it costs: two reads per second of a file for each thread, some 0.1 % of a core.
    """
    if torch.device(device).type != "cpu" or why_not_watched():
        yield
        return
    with _monitor.running():
        yield
