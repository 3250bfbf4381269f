"""The job script by itself: what it starts, what it resumes, when it asks to be queued again.

The training is a stand-in of a few lines, and so is `scontrol`; tests/test_slurm.py has real ones.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted([*ROOT.glob("scripts/slurm/*"), *ROOT.glob("scripts/bundle/*.sh")])
# In Python's place: notes its arguments and, told to stop, leaves a checkpoint as a training does.
TRAINING = f"""
[ "$1" != -c ] || exec {sys.executable} "$@"
echo "$@" >> arguments
trap 'mkdir -p "$GAINED" && touch "$GAINED/complete.json"; exit "$STOPPED"' TERM
[ -z "$CODE" ] || exit "$CODE"
touch ready
while :; do sleep 0.05; done
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to submit from, with stand-ins for `scontrol` and for the training."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "bin").mkdir()
    for name, text in (("scontrol", 'echo "$@" >> requeued'), ("python", TRAINING)):
        file = tmp_path / "bin" / name
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    (tmp_path / "mine.yaml").write_text("model: tiny\noutput_dir: out\n")
    return tmp_path


def start(checkout: Path, *words: str, task: int = 7, **env: str) -> subprocess.Popen[str]:
    given = {
        "SLURM_ARRAY_JOB_ID": "90",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_JOB_ID": "90",
        "JUDGE_ENV": str(checkout),
        "JUDGE_SCRATCH": str(checkout / "scratch"),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        "CODE": "",
        "STOPPED": "130",
        "GAINED": str(checkout / "out" / "seed-7" / "run" / "checkpoint-5"),
    }
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "slurm" / "judge_train.slurm"), *words],
        cwd=checkout,
        env=os.environ | given | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end_after(process: subprocess.Popen[str], checkout: Path, what: int | None = None) -> str:
    """Send the batch shell a signal once the training runs, and give what was said to the end."""
    if what is not None:
        while not (checkout / "ready").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(what)
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return output


def arguments(checkout: Path) -> str:
    return (checkout / "arguments").read_text()


def finish(checkout: Path, run: str, evaluated: bool = True) -> None:
    evaluation = checkout / "out" / "seed-7" / f"{run}_final" / "evaluation"
    evaluation.mkdir(parents=True)
    if evaluated:
        (evaluation / "report.html").touch()


def checkpoint(checkout: Path, run: str, complete: bool = True) -> None:
    folder = checkout / "out" / "seed-7" / run / "checkpoint-3"
    folder.mkdir(parents=True)
    if complete:
        (folder / "complete.json").write_text("{}")


def test_task_number_is_the_seed_of_one_settings_file(checkout: Path) -> None:
    assert "exit code 0" in end_after(
        start(checkout, "mine.yaml", "--lr", "1e-4", CODE="0"), checkout
    )
    said = arguments(checkout).strip()
    assert said == (
        "-m pt_app.eval_model.judge_train_cuda --lr 1e-4 --config mine.yaml --seed 7 "
        "--output_dir out/seed-7"
    )


def test_task_number_chooses_among_several_settings_files(checkout: Path) -> None:
    (checkout / "other.yaml").write_text("output_dir: elsewhere\n")
    end_after(start(checkout, "mine.yaml", "other.yaml", task=2, CODE="0"), checkout)
    assert "--config other.yaml --output_dir elsewhere/other" in arguments(checkout)
    for task in (0, 3):
        process = start(checkout, "mine.yaml", "other.yaml", task=task, CODE="0")
        assert f"array task {task} of 2 settings files" in end_after(process, checkout)
        assert process.returncode == 2


def test_stopped_before_the_limit_it_queues_its_own_task_again(checkout: Path) -> None:
    output = end_after(start(checkout, "mine.yaml"), checkout, signal.SIGUSR1)
    assert "stopped before the time limit: queued again" in output
    # Not 90, the job's number: of the last task that is the number of the whole array.
    assert (checkout / "requeued").read_text() == "requeue 90_7\n"
    end_after(start(checkout, "mine.yaml", CODE="0", SLURM_RESTART_COUNT="1"), checkout)
    assert arguments(checkout).strip().endswith("--resume out/seed-7/run")


@pytest.mark.parametrize("code", ["1", "2", "130"])
def test_training_that_fails_of_itself_is_not_queued_again(checkout: Path, code: str) -> None:
    process = start(checkout, "mine.yaml", CODE=code)
    assert f"ended with exit code {code}" in end_after(process, checkout)
    assert process.returncode == int(code)
    assert not (checkout / "requeued").exists()


def test_failure_after_the_signal_is_not_queued_again_but_a_launchers_own_code_is(
    checkout: Path,
) -> None:
    process = start(checkout, "mine.yaml", STOPPED="1")
    assert "failed with exit code 1" in end_after(process, checkout, signal.SIGUSR1)
    assert process.returncode == 1
    assert not (checkout / "requeued").exists()
    shutil.rmtree(checkout / "out")
    (checkout / "ready").unlink()
    launcher = str(checkout / "bin" / "python")  # as torchrun, whatever its ranks end with
    end_after(
        start(checkout, "mine.yaml", STOPPED="1", JUDGE_LAUNCHER=launcher), checkout, signal.SIGUSR1
    )
    assert (checkout / "requeued").exists()


def test_cancelled_job_ends_after_its_checkpoint_and_is_not_queued_again(checkout: Path) -> None:
    process = start(checkout, "mine.yaml")
    end_after(process, checkout, signal.SIGTERM)
    assert process.returncode == 130
    assert (checkout / "out/seed-7/run/checkpoint-5/complete.json").exists()
    assert not (checkout / "requeued").exists()


def test_job_that_gains_nothing_within_its_limit_says_so_and_ends(checkout: Path) -> None:
    checkpoint(checkout, "run")
    process = start(checkout, "mine.yaml", GAINED=str(checkout / "out/seed-7/run/checkpoint-3"))
    output = end_after(process, checkout, signal.SIGUSR1)
    assert process.returncode == 2
    assert "error: nothing was gained within the time limit" in output
    assert not (checkout / "requeued").exists()


def test_job_started_too_often_says_so_and_ends(checkout: Path) -> None:
    process = start(checkout, "mine.yaml", SLURM_RESTART_COUNT="3", JUDGE_MAX_RESTARTS="3")
    assert "error: started 4 times" in end_after(process, checkout, signal.SIGUSR1)
    assert process.returncode == 2
    assert not (checkout / "requeued").exists()


@pytest.mark.parametrize(
    ("found", "resumed"),
    [
        ("nothing", None),
        ("a checkpoint cut short", None),
        ("a checkpoint", "run-20260101_000000"),
        ("a newer run without one", "run-20260101_000000"),
        ("a newer run with one", "run-20260102_000000"),
        ("a judge without its evaluation", "run-20260101_000000"),
    ],
)
def test_what_is_there_to_resume_is_found(checkout: Path, found: str, resumed: str | None) -> None:
    old, new = "run-20260101_000000", "run-20260102_000000"
    if found == "a judge without its evaluation":
        finish(checkout, old, evaluated=False)
    elif found != "nothing":
        checkpoint(checkout, old, complete=found != "a checkpoint cut short")
    if found.startswith("a newer run"):
        checkpoint(checkout, new, complete=found.endswith("with one"))
    end_after(start(checkout, "mine.yaml", CODE="0"), checkout)
    if resumed:
        assert arguments(checkout).strip().endswith(f"--resume out/seed-7/{resumed}")
    else:
        assert "--resume" not in arguments(checkout)


def test_finished_judge_is_not_trained_again(checkout: Path) -> None:
    checkpoint(checkout, "run")
    finish(checkout, "run")
    process = start(checkout, "mine.yaml")
    assert "out/seed-7 holds a finished judge: nothing to do" in end_after(process, checkout)
    assert process.returncode == 0
    assert not (checkout / "arguments").exists()


def test_judge_that_was_finished_as_the_warning_came_is_not_queued_again(checkout: Path) -> None:
    process = start(checkout, "mine.yaml", STOPPED="143")
    while not (checkout / "ready").exists():
        time.sleep(0.02)
    finish(checkout, "run")
    assert "ended with a finished judge" in end_after(process, checkout, signal.SIGUSR1)
    assert process.returncode == 0
    assert not (checkout / "requeued").exists()


def test_settings_with_a_fault_are_one_line(checkout: Path) -> None:
    (checkout / "mine.yaml").write_text("modle: tiny\n")
    process = start(checkout, "mine.yaml")
    output = end_after(process, checkout)
    assert process.returncode == 2
    assert "unknown key 'modle'" in output
    assert "Traceback" not in output


def test_job_script_without_slurm_says_that_it_is_for_sbatch(checkout: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    words = ["bash", "scripts/slurm/judge_train.slurm", "mine.yaml"]
    done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this is no array task of SLURM's: start it with "
        "sbatch --array=42 scripts/slurm/judge_train.slurm FILE\n"
    )


def test_runs_of_other_settings_are_not_sent_where_a_settings_file_has_a_fault(
    checkout: Path,
) -> None:
    env = os.environ | {"JUDGE_ENV": str(checkout), "PYTHONPATH": str(ROOT), "CODE": "0"}
    words = ["bash", str(ROOT / "scripts/slurm/sync.sh")]
    sent = subprocess.run([*words, "mine.yaml"], cwd=checkout, env=env)
    assert (sent.returncode, arguments(checkout)) == (0, "-m pt_app.cli sync out\n")
    done = subprocess.run(
        [*words, "nowhere.yaml"], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere.yaml" in done.stderr
    assert arguments(checkout).count("sync") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: only the syntax was checked")
    words = ["shellcheck", "--external-sources", str(script)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_without_a_scratch_disk_a_job_reads_the_cache_of_this_machine(tmp_path: Path) -> None:
    """So local_cpu_train.sh finds what download_data.sh has fetched."""
    script = "source scripts/slurm/environment.sh; echo $JUDGE_CACHE"
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    default = "from pt_app.core.files import cache_folder; print(cache_folder())"
    shown = [
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        for command in (["bash", "-c", script], [sys.executable, "-c", default])
    ]
    assert shown[0].stdout == shown[1].stdout == f"{tmp_path}/.cache/judge\n"
