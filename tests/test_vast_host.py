"""A launch from offer to adapter, on a host that is an SSH server of the test's own.

A stand-in takes the recipe's place; tests/test_vast_page.py trains with the real one.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

pytest.importorskip("vastai", reason="pip install -r requirements-vast.txt")

from pt_app.core.errors import UserError
from pt_app.training.checkpoints import fault
from scripts.rented.provision import StillAliveError
from scripts.rented.record import all_launches
from scripts.vast import main
from tests.conftest import ROOT
from tests.rented_host import RentedHost, why_not
from tests.vast_fixtures import SECRETS, launch_words, until
from tests.vast_server import VastServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
ENDLESS = "--epochs=100000"  # of a tenth of a second: the test ends it, not its last step
RUN = "stand-in-20261121_120000"
CREATE = r"/asks/\d+/"
# The launcher in a process of its own, with the time limits of the tests.
DRIVER = """
from pt_app.core.errors import exit_with
from scripts.rented import limits
from tests.vast_fixtures import QUICK
from scripts.vast import main
limits.LIMITS = QUICK
exit_with(main)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def steps_of(out: Path) -> list[int]:
    """The steps whose checkpoints lie here, each of them complete."""
    folders = list((out / RUN).glob("checkpoint-*"))
    assert [fault(folder) for folder in folders] == [None] * len(folders)
    return sorted(int(folder.name.split("-")[1]) for folder in folders)


def saved_there(host: RentedHost) -> bool:
    """Whether the host has a complete checkpoint."""
    return any(host.remote.glob("adapters_eval/*/checkpoint-*/complete.json"))


def once_saved(host: RentedHost, act: Callable[[], object]) -> None:
    """Do something, in the background, once the host has a checkpoint."""

    def wait() -> None:
        until(lambda: saved_there(host))
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_launch_brings_the_adapter_home_and_leaves_nothing_paid(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(launch_words(rows, out, host=rented_host))
    output = capsys.readouterr().out
    adapter = out / f"{RUN}_final"
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"trained" * 100000
    assert (out / RUN / "train.log").read_text() == "done"
    assert (out / RUN / "wandb" / "offline-run-1" / "run.wandb").read_text() == "curves"
    assert not (out / RUN / "wandb" / "latest-run").exists(), "W&B's link to a path of the host"
    assert steps_of(out) == [3]
    assert vast.instances == {}
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("step ")] == ["step 1", "step 2", "step 3"]
    assert f"adapter: {adapter}" in lines
    (launch,) = all_launches(out)
    assert launch.stage == "destroyed"
    assert "step 3" in (launch.folder / "run.log").read_text()
    assert launch.folder.stat().st_mode & 0o777 == 0o700


def test_host_trains_offline_without_evaluation_and_without_any_key(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    vast.on_destroy = None  # the host is looked at afterwards
    more = ["--", "--lr=1e-3", "--seed=7", "--no_4bit"]
    main(launch_words(rows, out, *more, host=rented_host))
    flags = json.loads((out / RUN / "settings.json").read_text())
    assert flags["tracking"] == "offline"
    assert flags["data_dir"] == "data/rows"
    assert flags["output_dir"] == "adapters_eval"
    assert (flags["lr"], flags["seed"], flags["model"]) == ("0.001", "7", "tiny")
    assert {"skip_eval", "no_4bit"} <= set(flags)
    assert "resume" not in flags
    files = [path for path in rented_host.folder.rglob("*") if path.is_file()]
    assert rented_host.remote / "data/rows/judge_train.json" in files
    assert rented_host.remote / "pt_app/eval_model/judge_train_cuda.py" in files
    assert rented_host.home / ".ssh/authorized_keys" in files
    for name, key in SECRETS.items():
        assert not [path for path in files if key.encode() in path.read_bytes()], name
        sent = [request[:3] for request in vast.requests]
        assert key not in str(sent), name
    given = []
    for process in rented_host.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # of a shell's short ones
            if "watchdog.sh" in " ".join(process.cmdline()):
                given.append(process.environ())  # all that it was given
    assert given
    for environment in given:
        assert not set(SECRETS.values()) & set(environment.values())


def test_ssh_that_comes_late_is_waited_for(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    rented_host.line.dead = 3
    main(launch_words(rows, out, host=rented_host))
    assert rented_host.line.dead == 0
    assert vast.destroyed == [7000]
    assert (out / f"{RUN}_final").is_dir()


def test_host_that_ssh_never_reaches_makes_way_for_another(
    vast: VastServer, rows: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.rented import limits

    monkeypatch.setitem(limits.LIMITS.states, "running", 0.5)
    vast.address = ("127.0.0.1", 1)
    with pytest.raises(UserError, match="SSH does not answer after"):
        main(launch_words(rows, out))
    assert vast.destroyed == [7000, 7001, 7002]


def test_copies_that_are_cut_are_made_again(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Within a checkpoint, within the adapter; what the host sends during the upload is less.
    rented_host.line.breaks = [60_000, 300_000]
    main(launch_words(rows, out, host=rented_host))
    output = capsys.readouterr().out
    assert output.count("was cut") == 2, output
    assert rented_host.line.breaks == []
    adapter = out / f"{RUN}_final" / "adapter_model.safetensors"
    assert adapter.read_bytes() == b"trained" * 100000
    assert steps_of(out) == [3]
    assert not list(out.glob(".*_final.*")), "nothing half is left"
    assert vast.instances == {}


def test_adapter_that_cannot_be_copied_keeps_its_instance_and_is_said(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    rented_host.line.breaks = [300_000] * 9
    with pytest.raises(StillAliveError, match="is not copied back") as failed:
        main(launch_words(rows, out, host=rented_host))
    (launch,) = all_launches(out)
    assert f"`python scripts/vast.py fetch {launch.label}" in str(failed.value)
    assert list(vast.instances) == [7000]
    assert not (out / f"{RUN}_final").exists()
    rented_host.line.breaks = []
    main(["fetch", "--output_dir", str(out)])
    assert (out / f"{RUN}_final").is_dir()
    assert list(vast.instances) == [7000]
    main(["destroy", launch.label, "--output_dir", str(out)])
    assert vast.instances == {}


def test_training_that_fails_is_said_and_destroyed_with_its_checkpoints_at_home(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="the host ended with train 1: see") as failed:
        main(launch_words(rows, out, "--", "--seed=13", "--epochs=9", host=rented_host))
    assert "resume from checkpoint-3 with `python scripts/vast.py launch --resume" in str(
        failed.value
    )
    assert "RuntimeError: the loss is no number" in capsys.readouterr().out
    assert steps_of(out) == [1, 2, 3]
    assert vast.instances == {}


def test_set_up_that_fails_ends_the_rental(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    words = launch_words(rows, out, host=rented_host)
    words[words.index("--setup") + 1] = "echo no room; exit 28"
    with pytest.raises(UserError, match="the host ended with setup 28"):
        main(words)
    assert vast.instances == {}


def test_cap_takes_a_last_checkpoint_and_resume_goes_on_from_it(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caps = ["--hours=0.0001", "--max_hours=1", "--gpu_ram=8", "--", ENDLESS]

    def now() -> float:  # the hour of the cap passes once the host has a checkpoint
        return time.time() + (3600 if saved_there(rented_host) else 0)

    clock = SimpleNamespace(time=now, monotonic=time.monotonic, sleep=time.sleep)
    with monkeypatch.context() as patch:
        patch.setattr("scripts.rented.training.time", clock)
        with pytest.raises(
            UserError, match=r"the cap of 1\.00 hours is reached; resume from"
        ) as failed:
            main(launch_words(rows, out, *caps, host=rented_host))
    last = steps_of(out)[-1]
    (launch,) = all_launches(out)
    log = (launch.folder / "run.log").read_text()
    assert last == int(re.findall(r"^step (\d+)", log, re.MULTILINE)[-1]), "its last step is saved"
    assert launch.exit_code == "train 130"
    assert f"checkpoint-{last}" in str(failed.value)
    assert vast.instances == {}
    more = ["--resume", str(out / RUN), "--", f"--epochs={last + 2}"]
    main(launch_words(rows, out, *more, host=rented_host))
    assert f"training from step {last} to {last + 2}" in (
        (all_launches(out)[-1].folder / "run.log").read_text()
    )
    assert steps_of(out)[-1] == last + 2
    assert (out / f"{RUN}_final").is_dir()


def test_money_that_runs_out_ends_the_rental_while_there_is_some_left(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    once_saved(rented_host, lambda: setattr(vast.faults, "credits", [0.01]))
    more = ["--fetch_minutes", "0.005", "--", ENDLESS]
    with pytest.raises(UserError, match=r"\$0.01 of credit is left, less than .* resume from"):
        main(launch_words(rows, out, *more, host=rented_host))
    assert steps_of(out)
    assert vast.instances == {}


@pytest.mark.parametrize("state", ["exited", "offline"])
def test_machine_that_leaves_in_the_middle_is_destroyed_and_said(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path, state: str
) -> None:
    once_saved(rented_host, lambda: vast.instances[7000].update(states=[state]))
    with pytest.raises(UserError, match=f"the instance is {state}"):
        main(launch_words(rows, out, "--", ENDLESS, host=rented_host))
    assert vast.destroyed == [7000]


def test_checkpoints_come_home_while_it_trains_and_rotated_ones_go(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    seen: list[int] = []

    def look() -> None:
        try:
            until(lambda: steps_of(out) == [10, 20, 30, 40])
            seen.extend(steps_of(out))
        finally:
            rented_host.release()

    rented_host.hold(40)
    watcher = threading.Thread(target=look)
    watcher.start()
    more = ["--fetch_minutes", "0.005", "--", "--epochs=120"]
    main(launch_words(rows, out, *more, host=rented_host))
    watcher.join()
    assert seen == [10, 20, 30, 40]
    assert steps_of(out) == [70, 80, 90, 100, 110, 120]


def follows(out: Path) -> None:
    """Wait until a launcher has read that step 10 is done."""
    until(lambda: any("step 10\n" in log.read_text() for log in out.glob(".rented/*/run.log")))


def start_driver(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, *words], cwd=ROOT)


def test_attach_finishes_a_launch_that_was_killed_in_the_training(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rented_host.hold(10)
    more = ["--hours=1", "--gpu_ram=8", "--", "--epochs=40"]
    child = start_driver(launch_words(rows, out, *more, host=rented_host))
    follows(out)
    child.kill()
    child.wait()
    (launch,) = all_launches(out)
    main(["list", "--output_dir", str(out)])
    assert f"{launch.label}: instance 7000, running, RTX 4090" in capsys.readouterr().out
    rented_host.release()
    main(["attach", "--output_dir", str(out)])
    assert (out / f"{RUN}_final").is_dir()
    assert vast.destroyed == [7000]
    assert len(vast.sent("PUT", CREATE)) == 1
    log = (launch.folder / "run.log").read_text()
    assert "step 40" in log


def test_attach_adopts_an_instance_whose_create_was_never_answered(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    vast.on_create = lambda: children[0].kill()
    more = ["--hours=1", "--gpu_ram=8"]
    children.append(start_driver(launch_words(rows, out, *more, host=rented_host)))
    children[0].wait(240)
    main(["attach", "--output_dir", str(out)])
    assert (out / f"{RUN}_final").is_dir()
    assert vast.destroyed == [7000]
    assert len(vast.sent("PUT", CREATE)) == 1


def test_interrupt_in_the_training_leaves_it_running_and_says_so(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt() -> None:
        follows(out)
        os.kill(os.getpid(), signal.SIGINT)

    rented_host.hold(10)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        main(launch_words(rows, out, "--", "--epochs=30", host=rented_host))
    (launch,) = all_launches(out)
    output = capsys.readouterr().out
    assert "instance 7000 continues without this terminal, at $0.409/h" in output
    assert (
        f"`{launch.command('attach')}` follows it, `{launch.command('destroy')}` ends it" in output
    )
    assert list(vast.instances) == [7000]
    rented_host.release()
    main(["attach", launch.label, "--output_dir", str(out)])
    assert vast.instances == {}


def test_base_that_is_copied_up_is_found_by_the_host_under_its_name(
    vast: VastServer,
    rented_host: RentedHost,
    rows: Path,
    base: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vast.on_destroy = None  # the host is looked at afterwards
    cached = out.parent / "hub" / "models--org--gated"
    shutil.copytree(base, cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached.parent))
    more = ["--upload_model", "--", "--model=org/gated"]
    main(launch_words(rows, out, *more, host=rented_host))
    flags = json.loads((out / RUN / "settings.json").read_text())
    assert flags["model"] == "org/gated"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pt_app.models.bases import *;print(resolve_model('org/gated').path)",
        ],
        cwd=rented_host.remote,
        env={"HF_HOME": str(rented_host.remote / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("hf/hub/models--org--gated/snapshots/abc123"), done.stderr
    assert "HF_HUB_OFFLINE=1" in (rented_host.remote / "train.sh").read_text()


def test_base_in_a_folder_is_copied_up_as_one(
    vast: VastServer, rented_host: RentedHost, rows: Path, base: Path, out: Path
) -> None:
    vast.on_destroy = None
    main(launch_words(rows, out, "--", f"--model={base}", host=rented_host))
    flags = json.loads((out / RUN / "settings.json").read_text())
    assert flags["model"] == "models/small-base"
    sent = rented_host.remote / "models" / "small-base" / "model.safetensors"
    assert sent.read_bytes() == (base / "model.safetensors").read_bytes()


def test_attach_destroys_nothing_because_ssh_is_silent(
    vast: VastServer, rented_host: RentedHost, rows: Path, out: Path
) -> None:
    more = ["--hours=1", "--gpu_ram=8", "--", ENDLESS]
    child = start_driver(launch_words(rows, out, *more, host=rented_host))
    follows(out)
    child.kill()
    child.wait()
    rented_host.line.dead = 9
    with pytest.raises(StillAliveError, match="running and SSH does not answer: instance 7000"):
        main(["attach", "--output_dir", str(out)])
    assert list(vast.instances) == [7000]
