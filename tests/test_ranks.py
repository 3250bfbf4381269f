"""Several processes train as one: the same steps, one adapter, one evaluation, one tracked run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.training.ordering import STOPPING
from pt_app.training.run import train
from tests.conftest import ROOT
from tests.contract import assert_adapter_contract
from tests.rented_host import free_port
from tests.rows import write_rows
from tests.test_kills import held_at, losses, steps_done, weights
from tests.test_recipes import flags, main, recipe_path

MORE = ["--skip_eval", "--eval_steps=10", "--epochs=5", "--pack_tokens=100"]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 rows: the last step of an epoch has one, and a second rank nothing to do in it."""
    return write_rows(tmp_path_factory.mktemp("uneven") / "rows", train=21, val=5)


def launcher(kind: str) -> list[str]:
    """The words before a recipe's path that start it in two processes on the CPU."""
    port = str(free_port())
    if kind == "torchrun":
        words = ["torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
        return ["-m", *words, f"--master_port={port}"]
    config = str(ROOT / "scripts/accelerate/ddp.yaml")
    words = ["accelerate.commands.launch", "--config_file", config]
    return ["-m", *words, "--main_process_ip=127.0.0.1", "--main_process_port", port]


def start(
    kind: str, recipe: str, argv: list[str], cwd: Path = ROOT, **env: str
) -> subprocess.Popen[str]:
    """Start a recipe by its path, in two processes."""
    # Launchers speak to themselves over the loopback, which a new network namespace lacks.
    return subprocess.Popen(
        [sys.executable, *launcher(kind), str(ROOT / recipe_path(recipe)), *argv],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(kind: str, recipe: str, argv: list[str], cwd: Path = ROOT) -> str:
    process = start(kind, recipe, argv, cwd)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "kind"), [("mps", "torchrun"), ("cuda", "accelerate")])
def test_two_processes_take_the_steps_of_one_with_twice_the_accumulation(
    base: Path, uneven: Path, tmp_path: Path, recipe: str, kind: str
) -> None:
    more = [*MORE, "--batch_size=1", "--tracking=off"]
    main(recipe, flags(base, uneven, tmp_path / "one", *more, "--gradient_accumulation=4"))
    two = flags(base, uneven, tmp_path / "two", *more, "--gradient_accumulation=2")
    run(kind, recipe, two, tmp_path)
    (one,), (two,) = ((tmp_path / name).glob("*_final") for name in ("one", "two"))
    assert_same_history(one, two)
    assert assert_adapter_contract(one) == assert_adapter_contract(two)


def assert_same_history(one: Path, two: Path) -> None:
    """Losses are mean values over 10 steps of about 6; a step in another order would be 0.1 off."""
    histories = [
        json.loads((adapter / "training_config.json").read_text())["log_history"]
        for adapter in (one, two)
    ]
    for name, bound in (("loss", 1e-5), ("eval_loss", 1e-5), ("grad_norm", 1e-3)):
        mine, theirs = ([e[name] for e in history if name in e] for history in histories)
        assert len(mine) > 1
        assert mine == pytest.approx(theirs, abs=bound), name


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_base_parted_over_two_processes_takes_the_steps_of_a_whole_one(
    base: Path, uneven: Path, tmp_path: Path, checkpointing: str
) -> None:
    more = [*MORE, "--no_4bit", "--batch_size=1", "--tracking=off"]
    more += [f"--activation_checkpointing={checkpointing}"]
    one = flags(base, uneven, tmp_path / "one", *more, "--gradient_accumulation=4")
    main("cuda", one)
    two = flags(base, uneven, tmp_path / "two", *more, "--gradient_accumulation=2")
    output = run("torchrun", "cuda", [*two, "--shard_base"])
    assert "base sharded (FSDP2)" in output
    (whole,), (parted,) = ((tmp_path / name).glob("*_final") for name in ("one", "two"))
    assert_same_history(whole, parted)
    assert assert_adapter_contract(whole) == assert_adapter_contract(parted)


@pytest.mark.parametrize(
    ("flag", "said"),
    [([], "a base in 4 bits cannot be sharded"), (["--no_4bit"], "and this is one: start them")],
)
def test_base_that_cannot_be_parted_is_refused(
    base: Path, rows: Path, tmp_path: Path, flag: list[str], said: str, monkeypatch: Any
) -> None:
    if not flag:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
        for name, value in ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | place).items():
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        main("cuda", flags(base, rows, tmp_path, "--shard_base", *flag))


@pytest.mark.slow
def test_two_processes_leave_one_adapter_one_evaluation_and_one_tracked_run(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    output = run("torchrun", "mps", flags(base, rows, tmp_path, "--tracking=offline"))
    (adapter,) = tmp_path.glob("*_final")
    folder = Path(str(adapter).removesuffix("_final"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name, adapter.name]
    assert (adapter / "evaluation" / "results.json").exists()
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert output.count("evaluating base and adapter") == 1


LONG = ["--skip_eval", "--eval_steps=0", "--epochs=8", "--tracking=off"]
SHARDED = ["--no_4bit", "--shard_base"]


@pytest.fixture(scope="module", params=["mps", "cuda"])
def long_run(
    request: pytest.FixtureRequest, base: Path, uneven: Path, tmp_path_factory: Any
) -> tuple[str, list[str], Path]:
    """A recipe, its flags, and the folder of its run in two processes; CUDA's base is sharded."""
    recipe, out = request.param, tmp_path_factory.mktemp("long")
    more = [*LONG, "--batch_size=1", "--gradient_accumulation=2"]
    more += SHARDED if recipe == "cuda" else []
    run("torchrun", recipe, flags(base, uneven, out, *more, "--save_steps=0"))
    return recipe, more, out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_rank_ends_the_run_with_a_message_and_a_checkpoint_that_resumes(
    base: Path, uneven: Path, tmp_path: Path, long_run: tuple[str, list[str], Path]
) -> None:
    recipe, more, whole = long_run
    argv = flags(base, uneven, tmp_path, *more, "--save_steps=4")
    process = start("torchrun", recipe, argv, **held_at(12, rank=1))
    wait_for_step(process, tmp_path, 12)
    rank(process, 1).send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    said = "one of the 2 processes that trained together is gone, in step"
    assert said in output, output  # whole: what a rank died of instead stands in its middle
    assert "--resume continues from" in output
    output = run("torchrun", recipe, [*argv, "--resume"])
    assert "resuming from" in output
    assert weights(tmp_path) == weights(whole)


def test_launchers_signal_cannot_keep_a_rank_from_saying_that_another_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")

    monkeypatch.setattr("pt_app.training.distributed._several", lambda: True)
    lost: Any = SimpleNamespace(
        train=lose,
        args=SimpleNamespace(output_dir=tmp_path),
        state=SimpleNamespace(global_step=3),
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        with pytest.raises(UserError, match=r"that trained together is gone, in step 4"):
            train(lost, None)
        assert {signal.getsignal(number) for number in STOPPING} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("long_run", ["mps"], indirect=True)
def test_interrupted_ranks_stop_after_the_same_step_and_one_process_goes_on(
    base: Path, uneven: Path, tmp_path: Path, long_run: tuple[str, list[str], Path]
) -> None:
    recipe, more, whole = long_run
    argv = flags(base, uneven, tmp_path, *more, "--save_steps=0")
    # torchrun kills its ranks 30 seconds after it has passed a signal on, if nothing else is said.
    env = held_at(20) | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "280"}
    process = start("torchrun", recipe, argv, **env)
    while "step 20/" not in log_of(tmp_path) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert "interrupted; --resume continues from the checkpoint of this step" in output
    assert len(list(steps_done(tmp_path))) == 1
    with pytest.raises(UserError, match=r"the number of examples per step .* was 4"):
        main(recipe, [*argv, "--resume"])
    main(recipe, [*argv, "--gradient_accumulation=4", "--resume"])
    assert "2 processes trained before and 1 do now" in log_of(tmp_path)
    for (mine, _), (theirs, _) in zip(losses(tmp_path), losses(whole), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    while process.poll() is None and max(steps_done(out), default=0) < step:
        time.sleep(0.02)


def log_of(out: Path) -> str:
    return "".join(path.read_text() for path in out.glob("*/train.log"))


def rank(process: subprocess.Popen[str], number: int) -> psutil.Process:
    """The process of a rank under a launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(number):
            return child
    raise AssertionError(f"no rank {number}")
