"""A training that is killed or interrupted goes on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_recipes import flags, recipe_path

pytestmark = pytest.mark.slow
MORE = ["--skip_eval", "--save_steps=4", "--lora_dropout=0.1", "--tracking=off", "--eval_steps=0"]


def start(base: Path, rows: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    argv = flags(base, rows, out, *MORE, "--epochs=20", *more)
    return subprocess.Popen(
        [sys.executable, recipe_path("mps"), *argv],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(out: Path) -> bytes:
    (file,) = out.glob("*_final/adapter_model.safetensors")
    return file.read_bytes()


@pytest.fixture(scope="module")
def whole(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    process = start(base, rows, out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return weights(out)


def steps_done(out: Path) -> Iterator[int]:
    for file in out.glob("*/checkpoint-*/complete.json"):
        yield int(file.parent.name.split("-")[-1])


def signal_after_step(process: subprocess.Popen[str], out: Path, step: int, what: int) -> None:
    while process.poll() is None and max(steps_done(out), default=0) < step:
        time.sleep(0.01)
    process.send_signal(what)


def test_run_killed_again_and_again_ends_with_the_uninterrupted_adapter(
    base: Path, rows: Path, tmp_path: Path, whole: bytes
) -> None:
    rng = random.Random(0)
    for killed, step in enumerate((8, 40, 72, 104)):
        process = start(base, rows, tmp_path, *(["--resume"] if killed else []))
        time.sleep(rng.random() * 0.05)
        signal_after_step(process, tmp_path, step, signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
    process = start(base, rows, tmp_path, "--resume")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "resuming from" in output
    assert weights(tmp_path) == whole


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_with_130_after_a_checkpoint_of_its_step(
    base: Path, rows: Path, tmp_path: Path, whole: bytes, what: int
) -> None:
    process = start(base, rows, tmp_path)
    signal_after_step(process, tmp_path, 20, what)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    resumed = start(base, rows, tmp_path, "--resume")
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    assert weights(tmp_path) == whole
