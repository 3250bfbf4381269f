"""A training that is killed or interrupted goes on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pt_app.core.settings import Recipe
from tests.conftest import ROOT
from tests.test_recipes import flags, main, recipe_path

pytestmark = pytest.mark.slow
MORE = ["--skip_eval", "--save_steps=4", "--lora_dropout=0.1", "--tracking=off", "--eval_steps=0"]


def argv(base: Path, rows: Path, out: Path, *more: str) -> list[str]:
    return flags(base, rows, out, *MORE, "--epochs=20", *more)


HOLDING = str(ROOT / "tests" / "holding")


def held_at(step: int, rank: int | None = None) -> dict[str, str]:
    """The environment in which a training waits for a signal once it has taken so many steps."""
    path = os.pathsep.join(filter(None, [HOLDING, os.environ.get("PYTHONPATH")]))
    only = {} if rank is None else {"JUDGE_TEST_HOLD_RANK": str(rank)}
    return {"PYTHONPATH": path, "JUDGE_TEST_HOLD_AT": str(step)} | only


def start(
    base: Path,
    rows: Path,
    out: Path,
    *more: str,
    script: Sequence[str] = (recipe_path("mps"),),
    **env: str,
) -> subprocess.Popen[str]:
    """Start a recipe, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *script, *argv(base, rows, out, *more)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def weights(out: Path) -> bytes:
    (file,) = out.glob("*_final/adapter_model.safetensors")
    return file.read_bytes()


def losses(out: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of the logged steps."""
    (file,) = out.glob("*_final/training_config.json")
    history = json.loads(file.read_text())["log_history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def whole(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of the uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    main("mps", argv(base, rows, out))
    return weights(out)


def steps_done(out: Path) -> Iterator[int]:
    for file in out.glob("*/checkpoint-*/complete.json"):
        yield int(file.parent.name.split("-")[-1])


def signal_after_step(process: subprocess.Popen[str], out: Path, step: int, what: int) -> None:
    while process.poll() is None and max(steps_done(out), default=0) < step:
        time.sleep(0.01)
    process.send_signal(what)


STEPS = 120  # 24 rows in steps of 4, 20 epochs
PACKS = ["--pack_tokens=100"]  # so that a step has several packs to be killed between


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("recipe", "kills"), [("mps", 25), ("cuda", 12)])
def test_run_killed_at_random_points_ends_with_the_uninterrupted_adapter(
    base: Path, rows: Path, tmp_path: Path, recipe: Recipe, kills: int
) -> None:
    """In the midst of steps, epochs and savings, with adamw_torch and with paged_adamw_8bit."""
    main(recipe, argv(base, rows, tmp_path / "whole", *PACKS))
    rng = random.Random(recipe)
    points = sorted(rng.sample(range(4, STEPS), kills))
    wheres = [[step, rng.choice(["0", "1", "1", "saving"])] for step in points]
    script = ["-m", "tests.killed_recipe", recipe, json.dumps(wheres)]
    process = start(base, rows, tmp_path / "cut", *PACKS, script=script)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.count("resuming from") == kills - 1
    main(recipe, argv(base, rows, tmp_path / "cut", *PACKS, "--resume"))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    whole, cut = (losses(tmp_path / name) for name in ("whole", "cut"))
    assert len(whole) == STEPS // 10
    assert whole == cut


@pytest.mark.parametrize(
    ("what", "script"),
    [
        (signal.SIGINT, [recipe_path("mps")]),
        (signal.SIGTERM, [recipe_path("mps")]),
        (signal.SIGUSR1, [recipe_path("mps")]),
        (signal.SIGTERM, ["-m", "pt_app.cli", "train"]),  # which hands it on
    ],
)
def test_interrupted_run_ends_with_130_after_a_checkpoint_of_its_step(
    base: Path, rows: Path, tmp_path: Path, whole: bytes, what: int, script: list[str]
) -> None:
    process = start(base, rows, tmp_path, script=script, **held_at(20))
    signal_after_step(process, tmp_path, 20, what)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    main("mps", argv(base, rows, tmp_path, "--resume"))
    assert weights(tmp_path) == whole


def test_signal_to_all_processes_of_a_run_leaves_a_checkpoint(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """As torchrun and timeout send it: to the loader's workers too, which the CUDA recipe has."""
    words = [recipe_path("cuda")]
    process = start(base, rows, tmp_path, "--save_steps=0", script=words, **held_at(20))
    log = [*tmp_path.glob("*/train.log")]
    while process.poll() is None and not (log and "step 20/" in log[0].read_text()):
        log = [*tmp_path.glob("*/train.log")]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert max(steps_done(tmp_path)) >= 20
