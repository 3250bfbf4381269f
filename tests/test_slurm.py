"""Judges, and models from scratch, trained on a real SLURM of one node, without a network.

The SLURM is Debian's, started by scripts/slurm/one_node.sh. Its finest time limit is a minute, and
it looks at limits every half minute: a job is signalled 5 to 35 seconds before its limit.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, without_network
from tests.test_kills import held_at
from tests.tracking_server import TrackingServer

SCRIPTS = ROOT / "scripts"
LIMIT = 30  # minutes: more than any of these jobs needs
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def why_not() -> str:
    """Why no SLURM can be started on this machine; empty where one can."""
    lacking = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's node daemon runs as root, and this is another user"
    if not without_network():
        return "network namespaces are barred here: a job could not be cut off"
    return ""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find a running one."""
    if why := why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    words = [str(SCRIPTS / "slurm" / "one_node.sh")]
    started = subprocess.run([*words, "start", str(folder)], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    keys = ("WANDB_API_KEY", "HF_TOKEN", "WANDB_MODE", "HF_HUB_OFFLINE")
    try:
        yield {k: v for k, v in os.environ.items() if k not in keys} | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "JUDGE_ENV": sys.prefix,
            "JUDGE_SCRATCH": str(folder / "scratch"),
            "JUDGE_RECIPE": "mps",
            "JUDGE_WRAP": " ".join(without_network()),
            "PYTHONPATH": str(ROOT),
        }
    finally:
        subprocess.run([*words, "stop", str(folder)], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What jobs are submitted from: the scripts, and the folder of the logs."""
    (tmp_path / "scripts").symlink_to(SCRIPTS)
    (tmp_path / "logs").mkdir()
    return tmp_path


def write_settings(file: Path, base: Path, rows: Path, epochs: int, **more: Any) -> Path:
    values = {"model": str(base), "data_dir": str(rows), "output_dir": "out", "epochs": epochs}
    values |= {"eval_steps": 0, "save_steps": 0, "lora_dropout": 0.1, "skip_eval": False} | more
    file.write_text(json.dumps(values))
    return file


def submit(slurm: dict[str, str], checkout: Path, *files: Path, array: str = "42") -> str:
    words = ["sbatch", "--parsable", f"--time={LIMIT}", "--signal=B:USR1@5", "--cpus-per-task=1"]
    words += [f"--array={array}", "scripts/slurm/judge_train.slurm", *map(str, files)]
    done = subprocess.run(words, cwd=checkout, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def states(slurm: dict[str, str], job: str) -> set[str]:
    """The states of the array's tasks, of those that SLURM still remembers."""
    words = ["scontrol", "show", "job", job]
    shown = subprocess.run(words, env=slurm, capture_output=True, text=True)
    if shown.returncode and "Invalid job id" not in shown.stderr:
        return {"UNKNOWN"}  # SLURM is too busy to answer
    return set(re.findall(r"JobState=(\w+)", shown.stdout))


def wait_for_end(slurm: dict[str, str], job: str, seconds: float = 900) -> None:
    running = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "UNKNOWN"}
    wait_until(lambda: not states(slurm, job) & running, seconds, f"the end of job {job}")


def log_of(checkout: Path, job: str, task: int = 42) -> str:
    return (checkout / "logs" / f"judge-{job}_{task}.log").read_text(errors="replace")


def weights(out: Path) -> bytes:
    (file,) = out.glob("*_final/adapter_model.safetensors")
    return file.read_bytes()


def train_here(slurm: dict[str, str], checkout: Path, file: Path, out: str, *more: str) -> None:
    """The same training in one go, outside SLURM."""
    recipe = [sys.executable, "-m", "pt_app.eval_model.judge_train_mps", "--config", str(file)]
    words = [*recipe, "--output_dir", out, "--tracking=off", "--skip_eval", *more]
    env = slurm | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sync(slurm: dict[str, str], checkout: Path, file: Path) -> None:
    """On the login node, which has a network: here a server on the loopback."""
    with TrackingServer() as server:
        where = {"WANDB_BASE_URL": server.url, "WF_TRACE_SERVER_URL": f"{server.url}/traces"}
        key = {"WANDB_API_KEY": "5ecret" + "0" * 34}
        done = subprocess.run(
            ["scripts/slurm/sync.sh", str(file)],
            cwd=checkout,
            env=slurm | where | key,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert server.requests


def set_limit(slurm: dict[str, str], job: str, minutes: int) -> None:
    words = ["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"]
    done = subprocess.run(words, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def processes_of(job: str, variable: str = "SLURM_ARRAY_JOB_ID") -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _environment(p).get(variable) == job]


def recipes_of(job: str) -> list[psutil.Process]:
    return [p for p in processes_of(job) if "judge_train_mps" in "".join(p.cmdline())]


def is_asked_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM waits for a process that is suspended."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", status, re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_job_cut_by_its_time_limit_is_queued_again_and_ends_with_the_uninterrupted_adapter(
    slurm: dict[str, str], checkout: Path, base: Path, rows: Path
) -> None:
    file = write_settings(checkout / "mine.yaml", base, rows, 100)
    job = submit(slurm, checkout, file)
    began = time.monotonic()
    out = checkout / "out" / "seed-42"
    logs = "*/train.log"
    wait_until(lambda: any("step 10/" in p.read_text() for p in out.glob(logs)), 600, "a step")
    # How long a machine needs to the first step and to the last one is not known: the limit is
    # lowered when steps are taken, the recipe is held until SLURM has sent its signal, and then it
    # has all the time to stop.
    (recipe,) = recipes_of(job)
    recipe.suspend()
    set_limit(slurm, job, int(time.monotonic() - began + 35) // 60 + 1)
    wait_until(lambda: is_asked_to_stop(recipe), 300, "the signal before the time limit")
    set_limit(slurm, job, LIMIT)
    recipe.resume()
    wait_until(lambda: "queued again" in log_of(checkout, job), 300, "the time limit")
    train_here(slurm, checkout, file, "whole")
    wait_for_end(slurm, job)
    log = log_of(checkout, job)
    assert "stopped before the time limit: queued again" in log
    assert re.search(rf"job {job}_42: start 2 on \S+: resuming out/seed-42/", log)
    assert re.search("ended with (exit code 0|a finished judge)", log)
    assert "DUE TO TIME LIMIT" not in log
    assert weights(out) == weights(checkout / "whole")
    (results,) = out.glob("*_final/evaluation/results.json")
    assert json.loads(results.read_text())["models"]
    (run,) = [path for path in out.iterdir() if not path.name.endswith("_final")]
    assert len(list(run.glob("wandb/offline-run-*"))) >= 2
    tracking = json.loads((run / "tracking.json").read_text())
    assert tracking["weave"]
    assert not any({**tracking["wandb"], **tracking["weave"]}.values())
    sync(slurm, checkout, file)
    tracking = json.loads((run / "tracking.json").read_text())
    assert all({**tracking["wandb"], **tracking["weave"]}.values())
    # Submitted again, it finds its judge.
    again = submit(slurm, checkout, file)
    wait_for_end(slurm, again)
    assert "holds a finished judge: nothing to do" in log_of(checkout, again)


def all_held_once_saved(job: str, outs: Sequence[Path]) -> bool:
    """Suspend each training that has a checkpoint, so that none ends before the others have one."""
    saved = [out for out in outs if any(out.glob("*/checkpoint-*/complete.json"))]
    for recipe in recipes_of(job):
        if {f"out/{out.name}" for out in saved} & set(recipe.cmdline()):
            recipe.suspend()
    return len(saved) == len(outs)


def kill_as_a_node_dies(slurm: dict[str, str], job: str) -> None:
    """End all processes of a job without a warning, and tell SLURM that its node is gone."""
    tasks = processes_of(job)
    assert tasks
    daemons = {parent for p in tasks for parent in p.parents() if "slurmstepd" in parent.name()}
    for process in [*daemons, *tasks]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    node = f"NodeName={socket.gethostname().partition('.')[0]}"
    update = ["scontrol", "update", node]
    subprocess.run([*update, "State=DOWN", "Reason=test"], env=slurm, check=True)
    # Refused where the node's daemon has reported it back by itself in between.
    subprocess.run([*update, "State=RESUME"], env=slurm, capture_output=True)


def test_tasks_of_a_dead_node_are_resumed_each_from_its_own_checkpoint(
    slurm: dict[str, str], checkout: Path, base: Path, rows: Path
) -> None:
    files = [
        write_settings(checkout / f"{name}.json", base, rows, 80, seed=seed, save_steps=20)
        for name, seed in (("one", 1), ("two", 2))
    ]
    job = submit(slurm, checkout, *files, array="1-2")
    outs = [checkout / "out" / file.stem for file in files]
    wait_until(lambda: all_held_once_saved(job, outs), 600, "steps")
    kill_as_a_node_dies(slurm, job)
    for task, file in zip((1, 2), files, strict=True):  # while SLURM waits to start them again
        train_here(slurm, checkout, file, f"whole-{task}")
    wait_for_end(slurm, job)
    for task, out in zip((1, 2), outs, strict=True):
        log = log_of(checkout, job, task)
        assert "CANCELLED AT" not in log.partition("start 2")[0]  # the first one had no warning
        assert (
            f"start 2 on {socket.gethostname().partition('.')[0]}: resuming out/{out.name}/" in log
        )
        assert weights(out) == weights(checkout / f"whole-{task}")


# The stages of a model of one layer, as speedrun.sh gives them.
STAGES = """
set -euo pipefail
source scripts/pipeline.sh
processes=1 run=${MODEL_DIR:-runs/tiny} data=data/tiny core=() chat=()
tokens=(--text input.txt --vocab_size 400 --split end)
short=(--max_seq_len 256 --total_batch_size 1024 --num_iterations 20 --logging_steps 1)
base=(--depth 1 "${short[@]}") mid=("${short[@]}") sft=("${short[@]}")
pipeline
"""


def cut_by_the_limit(slurm: dict[str, str], job: str, stage: str, log: Path, began: float) -> None:
    """Let a job's time limit end it in a stage that waits for that after step 10."""
    reached = re.compile(rf"== \S+ {stage} .*step 10/20", re.DOTALL)
    wait_until(lambda: reached.search(log.read_text(errors="replace")), 600, f"step 10 of {stage}")
    own = [p for p in processes_of(job, "SLURM_JOB_ID") if f"scripts.{stage}" in p.cmdline()]
    process = own[-1]  # behind the command that cuts it off from the network
    process.suspend()
    set_limit(slurm, job, int(time.monotonic() - began + 35) // 60 + 1)
    wait_until(lambda: is_asked_to_stop(process), 300, "the signal before the time limit")
    set_limit(slurm, job, LIMIT)
    process.resume()


def test_a_model_from_scratch_is_finished_by_a_job_whose_limit_cuts_every_stage(
    slurm: dict[str, str], checkout: Path
) -> None:
    (checkout / "tiny.sh").write_text(STAGES)
    (checkout / "input.txt").write_text((ROOT / "docs" / "DATA.md").read_text("utf-8"), "utf-8")
    words = ["sbatch", "--parsable", f"--time={LIMIT}", "--signal=B:USR1@5", "--cpus-per-task=1"]
    env = slurm | held_at(10)
    env["PYTHONPATH"] = os.pathsep.join([held_at(10)["PYTHONPATH"], slurm["PYTHONPATH"]])
    done = subprocess.run(
        [*words, "scripts/speedrun.slurm", "tiny.sh"],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job, stages = done.stdout.strip(), ("base_train", "mid_train", "chat_sft")
    log = checkout / "logs" / f"scratch-{job}.log"
    wait_until(log.exists, 300, "the start of the job")
    for cuts, stage in enumerate(stages, start=1):
        began = time.monotonic()
        cut_by_the_limit(slurm, job, stage, log, began)
        wait_until(lambda n=cuts: log.read_text().count("queued again") == n, 300, "the requeue")
    wait_for_end(slurm, job)
    said = log.read_text(errors="replace")
    assert f"job {job}: start 4 on" in said
    assert said.count("resuming from") == 3
    assert said.rstrip().endswith("ended with exit code 0")
    assert "DUE TO TIME LIMIT" not in said
    whole = slurm | {"MODEL_DIR": "runs/whole", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    subprocess.run([*without_network(), "bash", "tiny.sh"], cwd=checkout, env=whole, check=True)
    hashes = [
        [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*.safe*"))]
        for folder in (checkout / "runs" / "tiny", checkout / "runs" / "whole")
    ]
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]
