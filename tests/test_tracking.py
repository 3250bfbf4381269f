"""Tracking with the real clients of W&B and Weave, against a server that the tests start."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.settings import resolve
from pt_app.tracking.access import Access, reachable, resolve_access
from pt_app.tracking.sync import STATE_FILE, Child, read_state, sync
from pt_app.tracking.tracker import Tracker
from tests.conftest import slow_case
from tests.tracking_server import TEXTS, TrackingServer, prediction

ROOT = Path(__file__).parent.parent
KEY = "5ecret" + "0" * 34
ROWS = 12

# A run as the pipeline makes one: start, curves, then results, predictions and adapter.
RUN = """
import json, sys
from pathlib import Path
from pt_app.core.results import Results
from pt_app.core.settings import resolve
from pt_app.report import charts
from pt_app.tracking import access
from pt_app.tracking.tracker import Tracker
access.CONNECT_SECONDS, access.reachable.__defaults__ = 60.0, (60.0,)  # for a busy machine
folder, mode, ending = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
flags = ["--tracking", mode, "--project_name=judge", "--output_dir", str(folder)]
flags += ["--log_texts"] if "texts" in ending else []
with Tracker(resolve("mps", flags, "", ""), folder) as t:
    if "kill" in ending:
        import psutil
        [child.kill() for child in psutil.Process().children()]
    for step in range(3):
        t.log({"loss": 1.0 / (step + 1), "lr": float("nan")}, step)
    if "wait" in ending:
        print("logged", flush=True)
        sys.stdin.readline()
    if "raise" in ending:
        raise RuntimeError("the run itself failed")
    number = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 12}
    metrics = {"mae": number, "kappa_quadratic": number}
    results = {"task": "score", "data": {"path": "datasets/demo"}, "baselines": []}
    results["models"] = [{"name": name, "metrics": metrics} for name in ("base", "adapter")]
    results = Results.model_validate(results)
    t.finish(results, folder / "predictions.jsonl", folder / "adapter", charts.of_results)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "adapter" / "evaluation").mkdir(parents=True)
    lines = [json.dumps(prediction(row)) + "\n" for row in range(ROWS)]
    (folder / "predictions.jsonl").write_text("".join(lines))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter" / "evaluation" / "predictions.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings and no rank of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB", "WEAVE", "WF_")) or name in ("RANK", "LOCAL_RANK", "NETRC"):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    with TrackingServer() as server:
        log_in(server, monkeypatch)
        yield server


def log_in(server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WF_TRACE_SERVER_URL", f"{server.url}/traces")


def track(
    run_dir: Path, mode: str = "auto", ending: str = "", before: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run RUN in a session of its own; fails if it leaves a process behind."""
    command = [*before, sys.executable, "-c", RUN, str(run_dir), mode, ending]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = process.communicate(timeout=300)
    assert until(lambda: not command_lines(process.pid))
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def command_lines(session: int | None = None) -> list[str]:
    """Command lines of living processes, of one session or all."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            mine = session is None or os.getsid(process.pid) == session
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                lines.append(" ".join(process.cmdline()))
    return lines


def until(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true, sooner or later: killed processes take a moment to go."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def holds_key(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if KEY.encode() in file.read_bytes()]


def sync_apart(run_dir: Path) -> str:
    """`sync` in a process of its own, as the command line runs it."""
    code = (
        "import sys; from pathlib import Path; from pt_app.tracking import access; "
        "from pt_app.tracking.sync import sync; access.reachable.__defaults__ = (60.0,); "
        "print(sync(Path(sys.argv[1]), 240))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("log_texts", [False, slow_case(True)])
def test_an_online_run_reaches_both_servers(
    run_dir: Path, server: TrackingServer, log_texts: bool
) -> None:
    done = track(run_dir, ending="texts" if log_texts else "")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tracking: online")
    assert done.stdout.count("\n") == 1
    assert ("no texts of rows" in done.stdout) is not log_texts
    state = read_state(run_dir)
    assert list(state["weave"].values()) == list(state["wandb"].values()) == [True]
    came = server.text()
    # Weave: one evaluation for each model, with every prediction and its scores.
    predictions = server.calls("Evaluation.predict_and_score")
    assert sorted(call["inputs"]["example"]["id"] for call in predictions) == sorted(
        f"r{row}" for row in range(ROWS)
    )
    assert all(call["output"]["scores"]["absolute_error"] == 1 for call in predictions)
    assert len(server.calls("Evaluation.summarize")) == 2
    # W&B: curve, final metrics and the adapter.
    stream = json.dumps([body for path, body in server.requests if "file_stream" in path])
    assert "loss" in stream
    assert "base/mae" in came
    assert "createArtifact" in came
    # What must not leave: texts without --log_texts, and this machine's paths at all.
    assert all((text in came) is log_texts for text in TEXTS)
    assert str(run_dir.parent) not in came
    assert holds_key(run_dir) == []


def test_without_network_a_run_is_offline_and_ends_at_once(run_dir: Path) -> None:
    unshare = shutil.which("unshare")
    alone = (unshare or "", "-rn")
    if unshare is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here (unshare -rn)")
    began = time.monotonic()
    done = track(run_dir, before=alone)

    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 50  # a server that is waited for takes a minute
    assert done.stdout.startswith("tracking: offline (no W&B key")
    assert done.stdout.count("\n") == 1
    state = read_state(run_dir)
    assert list(state["weave"].items()) == [("weave_rows.jsonl", False)]
    (folder, sent), *others = state["wandb"].items()
    assert "/offline-run-" in folder
    kept = {path.name.split("_")[0] for path in (run_dir / folder).rglob("media/*/evaluation/*")}
    assert {"agreement", "confusion"} <= kept  # tables that the dashboard shows
    assert list((run_dir / folder).rglob("media/html/charts/agreement*.html"))
    assert not sent
    assert not others
    assert list((run_dir / folder).glob("*.wandb"))
    header, *rows = (run_dir / "weave_rows.jsonl").read_text().splitlines()
    assert json.loads(header)["summary"]["base"]["mae"] == 0.5
    assert len(rows) == ROWS


@pytest.mark.parametrize("named", ["wandb", "weave"])
def test_of_the_two_servers_only_the_named_one_gets_a_run(run_dir: Path, named: str) -> None:
    done = track(run_dir, mode=f"offline,{named}")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    kept = {kind for kind, names in read_state(run_dir).items() if names}
    assert kept == {named}
    assert (run_dir / "wandb").exists() is (named == "wandb")
    assert (run_dir / "weave_rows.jsonl").exists() is (named == "weave")


@pytest.mark.slow
def test_an_offline_run_is_sent_later_whole(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = track(run_dir, mode="offline")
    assert (done.returncode, done.stderr) == (0, "")
    with TrackingServer() as server:
        log_in(server, monkeypatch)
        assert sync_apart(run_dir.parent) == "sent 2, sent before 0"
        came = server.text()
    assert len(server.calls("Evaluation.predict_and_score")) == ROWS
    assert all(what in came for what in ("loss", "base/mae", "createArtifact"))
    assert not any(text in came for text in TEXTS)
    asked = [body.get("variables") or {} for path, body in server.requests if path == "/graphql"]
    assert not any(variables.get("host") for variables in asked)  # W&B's name of this machine
    assert str(run_dir.parent) not in came


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_a_line_and_sync_sends_all(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrackingServer(dies_after=1) as dying:
        log_in(dying, monkeypatch)
        began = time.monotonic()
        done = track(run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 100  # W&B's limit is 120 s, Weave's 60
    assert "not done after 60 s" not in done.stdout
    assert "rows are not sent" in done.stdout
    assert "judge sync" in done.stdout
    assert read_state(run_dir)["weave"] == {"weave_rows.jsonl": False}

    with TrackingServer() as living:
        log_in(living, monkeypatch)
        assert sync_apart(run_dir) == "sent 1, sent before 1"
        assert len(living.calls("Evaluation.predict_and_score")) == ROWS
        # What the first attempt left half done is taken back.
        assert "/traces/calls/delete" in living.paths
        came = len(living.requests)
        assert sync_apart(run_dir) == "sent 0, sent before 2"
        assert len(living.requests) == came
    assert holds_key(run_dir) == []


@pytest.mark.slow
def test_a_server_lost_before_the_end_holds_nothing_up(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrackingServer() as lost:
        log_in(lost, monkeypatch)
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(run_dir), "online", "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        while process.stdout.readline() != "logged\n":
            assert process.poll() is None
        lost.die()
        assert until(lambda: not reachable(lost.url))
        began = time.monotonic()
        out, _ = process.communicate("\n", timeout=300)
    assert process.returncode == 0
    assert time.monotonic() - began < 100  # W&B's limit is 120 s, Weave's 60
    assert "not done after 60 s" not in out
    assert until(lambda: not command_lines(process.pid))
    assert out.count("judge sync") == 2  # one line for W&B, one for Weave

    with TrackingServer() as living:
        log_in(living, monkeypatch)
        assert sync_apart(run_dir) == "sent 2, sent before 0"  # curves with adapter, rows
        came = living.text()
        assert "loss" in came
        assert "createArtifact" in came
        assert "base/mae" in came


def test_a_key_that_is_refused_makes_the_run_offline(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrackingServer(status=401) as server:
        log_in(server, monkeypatch)
        done = track(run_dir, mode="online")
    assert done.returncode == 0
    assert done.stdout.startswith("tracking: offline (127.0.0.1 refuses the key)")
    assert list(read_state(run_dir)["wandb"].values()) == [False]
    assert KEY not in done.stdout
    assert holds_key(run_dir) == []


def test_a_killed_service_of_wandb_costs_a_line(run_dir: Path) -> None:
    done = track(run_dir, mode="offline", ending="kill")
    assert done.returncode == 0
    assert "tracking: W&B" in done.stdout, done.stdout
    assert done.stdout.count("\n") <= 4


def test_an_error_of_the_run_passes_through_and_ends_the_tracking(
    run_dir: Path, server: TrackingServer
) -> None:
    done = track(run_dir, ending="raise")
    assert done.returncode == 1
    assert "the run itself failed" in done.stderr
    codes = [body.get("exitcode") for path, body in server.requests if "file_stream" in path]
    assert codes[-1] == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_off_and_other_ranks_import_and_write_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    code = RUN + "\nassert not {'wandb', 'weave'} & set(sys.modules)"
    mode = "online" if rank == "1" else "off"
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir), mode, ""], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if rank == "1" else "tracking: off (--tracking off)\n")
    assert not (run_dir / STATE_FILE).exists()


def test_online_needs_a_key_and_an_unknown_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no W&B key.*WANDB_API_KEY.*--tracking offline"):
        Tracker(resolve("mps", ["--tracking=online"], "", ""), tmp_path)
    with pytest.raises(UserError, match="--tracking sometimes"):
        resolve_access("sometimes")
    assert list(tmp_path.iterdir()) == []


def test_auto_heeds_wandb_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_access("auto").mode == "off"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_access("auto") == Access("offline", "WANDB_MODE=offline")


def test_a_host_that_does_not_answer_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, given_up = threading.Event(), threading.Event()

    def look(*_: object, **__: object) -> None:  # as a DNS lookup that nobody answers
        looking.set()
        given_up.wait(240)
        raise OSError

    monkeypatch.setattr("socket.create_connection", look)
    assert not reachable("https://api.judge.invalid", seconds=0.5)
    given_up.set()
    assert looking.wait(240)


@pytest.mark.parametrize("proxy", ["http://proxy:port", "http://proxy:99999", "http://[::1"])
def test_a_malformed_proxy_reaches_nothing_and_ends_no_run(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert not reachable("https://api.judge.invalid", seconds=0.5)


def test_sync_says_what_is_missing(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracked run"):
        sync(tmp_path)
    (run_dir / STATE_FILE).write_text('{"schema": 1, "wandb": {}, "weave": {"rows": false}}')
    with pytest.raises(UserError, match="no W&B key"):
        sync(tmp_path)
    with pytest.raises(UserError, match="no W&B key"):
        sync(tmp_path / "run_final")  # the adapter's folder, beside its run's
    (run_dir / STATE_FILE).write_text("{")
    with pytest.raises(UserError, match=r"tracking\.json is not JSON at line 1"):
        sync(tmp_path)


def test_an_empty_path_is_not_the_current_folder(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / STATE_FILE).write_text('{"schema": 1, "wandb": {"run": false}, "weave": {}}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="folder '': must be a text that is not empty"):
        app(["sync", ""], standalone_mode=False)


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that starts `sleep 777.25` and sleeps itself."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '777.25']); time.sleep(600)"
    (tmp_path / "sleeper.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "sleeper"


def sleeps() -> bool:
    return any("sleep 777.25" in line for line in command_lines())


def test_a_child_is_killed_at_its_deadline_with_what_it_started(sleeper: str) -> None:
    began = time.monotonic()
    child = Child([sleeper], Access("online", "", "http://127.0.0.1:1", KEY))
    assert child.wait(2.0) == "not done after 2 s"
    assert time.monotonic() - began < 300
    assert until(lambda: not sleeps())


def test_a_child_ends_with_the_run_that_is_killed(sleeper: str, tmp_path: Path) -> None:
    code = (
        "import time; from pt_app.tracking.access import Access; "
        "from pt_app.tracking.sync import Child; "
        f"child = Child([{sleeper!r}], Access('online', '')); time.sleep(600)"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    run = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert until(sleeps)
    run.kill()
    run.wait()
    assert until(lambda: not sleeps())
