"""A run beside other busy programs: it notices, waits without spinning, and computes the same."""

import textwrap
from pathlib import Path

import pytest

from benchmarks.contention import busy_loops
from pt_app.models import contention
from tests.conftest import ROOT, run_offline

TWO_THREADS = {"OMP_NUM_THREADS": "2"}
watchable = pytest.mark.skipif(
    not Path("/proc/self/schedstat").is_file(), reason="this system keeps no scheduler clocks"
)


def in_a_process(code: str, **env: str) -> str:
    """What a program of two threads prints; these tests themselves run on one."""
    done = run_offline(["-c", textwrap.dedent(code)], **TWO_THREADS | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_share_is_that_of_the_slowest_thread_which_wanted_the_cpu() -> None:
    second = 10**9
    before = {"main": (0, 0), "worker": (0, 0), "idle": (0, 0), "gone": (5, 5)}
    after = {
        "main": (second * 9 // 10, second // 10),
        "worker": (second // 2, second // 2),
        "idle": (second // 1000, second // 100),
        "new": (second, second),
    }
    assert contention.waiting_share(before, after, 1.0) == pytest.approx(0.5)
    assert contention.waiting_share(before, before, 1.0) == 0.0


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.0, 0.05, 0.1, 0.15, 0.19], [False] * 5),
        ([0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0], [True] * 5 + [False] * 2),
        ([0.3, 0.0, 0.0, 0.0, 0.15, 0.0, 0.0, 0.0, 0.0], [True] * 8 + [False]),
    ],
)
def test_the_monitor_changes_at_once_when_busy_and_after_a_while_when_calm(
    shares: list[float],
    expected: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class EndedError(Exception):
        """The shares have all been seen."""

    class Teams:
        exist = False

        def start(self) -> None:
            self.exist = True

        def stop(self) -> None:
            self.exist = False

    monitor = contention.Monitor()
    monitor.teams = Teams()  # type: ignore[assignment]
    monitor._wanted.set()
    coming, seen = iter(shares), []

    def sleep(seconds: float) -> None:
        seen.append(monitor.teams.exist)
        if len(seen) > len(shares):
            raise EndedError

    monkeypatch.setattr(contention.time, "sleep", sleep)
    monkeypatch.setattr(contention, "thread_clocks", dict)
    monkeypatch.setattr(contention, "waiting_share", lambda *_: next(coming))
    with pytest.raises(EndedError):
        monitor._poll()
    assert seen[1:] == expected


def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    monitor = contention.Monitor()
    with caplog.at_level("INFO", logger="pt_app"):
        for message in ("busy", "calm", "busy", "calm"):
            monitor._log_once(message)
    assert [r.getMessage() for r in caplog.records] == ["busy", "calm"]


@watchable
def test_threads_that_wait_give_the_cpu_back_while_sleeping_teams_exist() -> None:
    spinning, sleeping, spinning_again = map(
        float,
        in_a_process(
            """
            import time, torch
            from pt_app.models.contention import SleepingTeams

            def cpu_seconds():
                x, start = torch.ones(2**17), time.process_time()
                for _ in range(100):
                    x.add_(1)  # a parallel region, after which the other thread waits
                    time.sleep(0.003)
                return time.process_time() - start

            teams = SleepingTeams()
            for _ in range(20):  # beside busy programs a thread may not come to spin
                spinning = cpu_seconds()
                teams.start()
                sleeping = cpu_seconds()
                teams.stop()
                spinning_again = cpu_seconds()
                if sleeping < 0.5 * min(spinning, spinning_again):
                    break
            print(spinning, sleeping, spinning_again)
            """
        ).split(),
    )
    assert sleeping < 0.5 * spinning
    assert sleeping < 0.5 * spinning_again


@watchable
def test_process_that_ends_while_threads_are_put_to_sleep_ends_well() -> None:
    in_a_process(
        """
        import torch
        from pt_app.models import contention

        x = torch.ones(3000, 3000)
        torch.ones = lambda _: x @ x  # takes long, in C++ and without the GIL
        contention.waiting_share = lambda *_: 1.0
        contention.POLL_SECONDS = 0.0
        with contention.watched("cpu"):
            while not contention._monitor.teams.exist:
                pass
        """
    )


@pytest.mark.slow
@watchable
def test_a_program_beside_busy_loops_is_noticed_while_it_computes() -> None:
    with busy_loops(2):
        said = in_a_process(
            """
            import logging, time, torch
            from pt_app.models import contention

            logging.basicConfig(level="INFO", format="%(message)s", force=True)
            x, end = torch.ones(300, 300), time.monotonic() + 240
            with contention.watched("cpu"):
                while not contention._monitor.teams.exist and time.monotonic() < end:
                    x @ x
            print(contention._monitor.teams.exist)
            """
        )
    assert said.split()[-1] == "True"


def test_one_thread_and_other_devices_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    said = in_a_process(
        """
        import threading
        from pt_app.models import contention
        with contention.watched("cpu"), contention.watched("cuda:0"), contention.watched("mps"):
            print(contention.why_not_watched(), threading.active_count())
        """,
        OMP_NUM_THREADS="1",
    )
    assert said.strip() == "one thread waits for no other 1"


@pytest.mark.slow
@watchable
def test_switching_at_every_moment_changes_no_byte_of_the_adapter(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    train = """
        import sys
        from pt_app.models import contention
        from pt_app.eval_model.judge_train_mps import main

        if sys.argv[1] == "switching":
            contention.POLL_SECONDS, contention.CALM_POLLS = 0.05, 1
            contention.waiting_share = lambda *_: 0.0 if contention._monitor.teams.exist else 1.0
        main(sys.argv[2:])
        """
    adapters = []
    # Threads that sleep throughout would otherwise stall beside the other tests.
    for way, env in (("switching", {}), ("sleeping", {"OMP_WAIT_POLICY": "passive"})):
        out = tmp_path / way
        flags = f"--model={base} --data_dir={rows} --output_dir={out} --epochs=1 --tracking=off"
        words = ["-c", textwrap.dedent(train), way, *flags.split(), "--skip_eval"]
        done = run_offline(words, cwd=ROOT, **TWO_THREADS | env)
        assert done.returncode == 0, done.stderr
        (weights,) = out.glob("*_final/adapter_model.safetensors")
        adapters.append(weights.read_bytes())
    assert adapters[0] == adapters[1]
