"""The shell scripts from scratch: their stages in order, what stops them, and the job of a cluster.

Python is a stand-in that notes its arguments, and so is `scontrol`.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pt_app.core.flags import parsed
from tests import flag_tables
from tests.conftest import ROOT, run_offline, without_network

SCRIPTS = ["speedrun.sh", "scripts/pipeline.sh", "scripts/local_cpu_train.sh"]
SCRIPTS += ["scripts/setup_environment.sh", "scripts/download_data.sh", "scripts/speedrun.slurm"]
# There are $GPUS GPUs. $FAIL is a stage that fails, $WAIT
# one that runs until it is told to stop, and then leaves a checkpoint in $GAINED.
PYTHON = """
[ "$1" != -c ] || { echo "${GPUS:-0}"; exit 0; }
echo "$@" >> arguments
case "$*" in *"scripts.${FAIL:-none}"*) exit 2 ;; esac
case "$*" in *"scripts.${WAIT:-none}"*)
  trap '[ -z "$GAINED" ] || { mkdir -p "$GAINED" && touch "$GAINED/complete.json"; }; exit 130' TERM
  touch ready
  while :; do sleep 0.05; done ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts, with stand-ins for Python and `scontrol`."""
    for script in [*SCRIPTS, "scripts/slurm/environment.sh", "scripts/slurm/job.sh"]:
        target = tmp_path / script
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / script, target)
    for name, text in (("scontrol", 'echo "$@" >> requeued'), ("python", PYTHON)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    return tmp_path


def environment(checkout: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME")}
    kept["PATH"] = f"{checkout / 'bin'}:{kept['PATH']}"
    python = {"PYTHON": str(checkout / "bin/python"), "JUDGE_ENV": str(checkout)}
    return kept | python | {"JUDGE_SCRATCH": str(checkout / "cache")} | more


def run(checkout: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(checkout / script)],
        env=environment(checkout, **more),
        cwd="/",
        capture_output=True,
        text=True,
    )


def stages(checkout: Path) -> list[str]:
    lines = (checkout / "arguments").read_text().splitlines()
    return [line.partition("scripts.")[2].split()[0] for line in lines]


ALL = ["tok_train", "fetch_data", "base_train", "base_eval", "mid_train", "chat_eval", "chat_sft"]
ALL += ["chat_eval", "report"]


@pytest.mark.parametrize("script", ["scripts/local_cpu_train.sh", "speedrun.sh"])
def test_the_stages_run_in_order_and_the_chat_is_named_last(checkout: Path, script: str) -> None:
    done = run(checkout, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert stages(checkout) == ALL
    assert "scripts.chat_cli --model runs/d" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("script", ["scripts/local_cpu_train.sh", "speedrun.sh"])
@pytest.mark.parametrize("quick", ["", "1"])
def test_the_stages_know_the_flags_that_they_are_given(
    checkout: Path, script: str, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where configs/ is
    run(checkout, script, QUICK=quick)
    tables = flag_tables.SCRIPTS | {"chat_eval": flag_tables.SCRIPTS["base_eval"]}
    for line in (checkout / "arguments").read_text().splitlines():
        stage, *flags = line.partition("scripts.")[2].split()
        parsed(tables[stage], flags)


@pytest.mark.parametrize("stage", dict.fromkeys(ALL) | {"fetch_data": None})
def test_a_stage_that_fails_ends_the_script_with_its_code(checkout: Path, stage: str) -> None:
    done = run(checkout, "scripts/local_cpu_train.sh", FAIL=stage)
    if stage == "fetch_data":  # no network: what needs its data is left out, and said
        assert done.returncode == 0
        assert stages(checkout) == [name for name in ALL if "_eval" not in name]
        assert "no evaluation on public test sets" in done.stdout
        assert "--mixture chat --" in (checkout / "arguments").read_text()
    else:
        assert done.returncode == 2
        assert stages(checkout)[-1] == stage
        assert "chat_cli" not in done.stdout


@pytest.mark.slow
def test_the_quick_form_on_a_laptop_without_a_network_ends_with_a_model_that_answers(
    tmp_path: Path,
) -> None:
    words = [*without_network(), "bash", "scripts/local_cpu_train.sh"]
    folders = {name: str(tmp_path / name) for name in ("MODEL_DIR", "DATA_DIR", "REPORT")}
    env = os.environ | {"QUICK": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | folders
    for seen in ("training on the CPU", "with the same settings: skipped"):  # and again
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(seen) == 3, done.stdout  # base, mid, sft
    assert "bits per byte of held-out text" in (tmp_path / "REPORT").read_text()
    asked = ["-m", "scripts.chat_cli", "-p", "Who are you?", "--model", f"{tmp_path}/MODEL_DIR/sft"]
    answer = run_offline(asked)
    assert (answer.returncode, bool(answer.stdout.strip())) == (0, True), answer.stderr


def test_wandb_run_changes_no_stage(checkout: Path) -> None:
    run(checkout, "speedrun.sh")
    without = (checkout / "arguments").read_text()
    (checkout / "arguments").unlink()
    run(checkout, "speedrun.sh", WANDB_RUN="my_run")
    assert (checkout / "arguments").read_text() == without


def test_the_trainings_take_every_gpu_and_the_rest_one_process(checkout: Path) -> None:
    run(checkout, "speedrun.sh", GPUS="8")
    lines = (checkout / "arguments").read_text().splitlines()
    several = [line for line in lines if "--nproc_per_node=8" in line]
    assert [line.partition("scripts.")[2].split()[0] for line in several] == [
        "base_train",
        "mid_train",
        "chat_sft",
    ]


def test_the_login_node_fetches_everything_and_trains_nothing(checkout: Path) -> None:
    done = run(checkout, "scripts/download_data.sh")
    assert done.returncode == 0
    assert stages(checkout) == ["tok_train", "fetch_data"]
    assert (checkout / "logs").is_dir()
    failed = run(checkout, "scripts/download_data.sh", FAIL="fetch_data")
    assert failed.returncode == 2
    assert "next: sbatch" not in failed.stdout


def job(checkout: Path, what: int | None, **more: str) -> tuple[int, str]:
    """Run the job script; send it a signal once a stage runs; return its code and what it said."""
    given = {"SLURM_JOB_ID": "7", "GAINED": str(checkout / "runs/d20/base.training/checkpoint-5")}
    process = subprocess.Popen(
        ["bash", "scripts/speedrun.slurm"],
        cwd=checkout,
        env=environment(checkout, **given | more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while what and not (checkout / "ready").exists() and process.poll() is None:
            time.sleep(0.02)
        if what:
            process.send_signal(what)
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


@pytest.mark.parametrize("stage", ["fetch_data", "base_train", "mid_train", "chat_sft"])
def test_before_the_limit_a_job_stops_with_a_checkpoint_and_queues_itself(
    checkout: Path, stage: str
) -> None:
    code, said = job(checkout, signal.SIGUSR1, WAIT=stage)
    assert (code, stages(checkout)[-1]) == (0, stage)
    assert (checkout / "requeued").read_text() == "requeue 7\n"
    assert "queued again" in said


def test_a_job_that_gained_nothing_or_failed_is_not_queued_again(checkout: Path) -> None:
    code, said = job(checkout, signal.SIGUSR1, WAIT="base_train", GAINED="")
    assert (code, "a longer --time" in said) == (2, True)
    assert job(checkout, None, FAIL="mid_train")[0] == 2
    assert job(checkout, None)[0] == 0
    assert not (checkout / "requeued").exists()


def test_a_cancelled_job_leaves_a_checkpoint_and_is_not_queued_by_itself(checkout: Path) -> None:
    code, _ = job(checkout, signal.SIGTERM, WAIT="base_train")
    assert code == 130
    assert not (checkout / "requeued").exists()
    assert (checkout / "runs/d20/base.training/checkpoint-5/complete.json").is_file()


def test_a_job_that_is_none_says_how_to_start_it(checkout: Path) -> None:
    assert job(checkout, None, SLURM_JOB_ID="")[0] == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_sound_shell(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: only the syntax was checked")
    words = ["shellcheck", "--external-sources", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
