"""Variables of launchers: left over they change nothing, or one line names which to unset."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.models import launcher
from tests.conftest import ROOT
from tests.test_recipes import flags, main, recipe_path

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
ALONE: list[dict[str, str]] = [
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "-1"},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **MEETING},
    {"WORLD_SIZE": "", "RANK": ""},
    MEETING,
    {"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1"},
    {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
    {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "0"},
]
REFUSED: list[tuple[dict[str, str], str]] = [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 .* unset WORLD_SIZE"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT not, so no"),
    ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", **MEETING}, "RANK=2 is no process of"),
    ({"RANK": "1"}, "RANK=1 is no process of .* unset RANK"),
    ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 is no process of .* unset LOCAL_RANK"),
    ({"RANK": "first"}, "RANK=first is no number"),
    ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0 is no number"),
    ({"PMI_SIZE": "4"}, "PMI_SIZE=4 .* unset PMI_SIZE"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "unset ACCELERATE_USE_DEEPSPEED"),
    ({"ACCELERATE_USE_FSDP": "1"}, "unset ACCELERATE_USE_FSDP"),
]


@pytest.mark.parametrize("left", ALONE, ids=lambda left: " ".join(left))
def test_leftovers_of_one_process_are_dropped(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    launcher.settle()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE"} & set(os.environ)
    assert os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no"
    assert console.is_main_process()


@pytest.mark.parametrize(("left", "said"), REFUSED)
def test_variables_that_do_not_fit_are_named_by_training_doctor_and_estimate(
    left: dict[str, str],
    said: str,
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pt_app.models.platforms import decide
    from pt_app.preflight.doctor.machine import check_machine
    from pt_app.preflight.estimate.command import run_estimate

    platform = decide("mps")
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    for recipe in ("mps", "cuda"):
        with pytest.raises(UserError, match=said) as caught:
            main(recipe, flags(base, rows, tmp_path / "out", "--tracking=off"))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    failed = [one for one in check_machine("mps", platform) if one.status == "fail"]
    assert [one.name for one in failed] == ["launcher"]
    with pytest.raises(UserError, match=said):
        run_estimate("mps", flags(base, rows, tmp_path / "out"), lambda _: None)


@pytest.mark.slow
def test_one_process_trains_the_same_beside_leftovers(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """As a process of its own: accelerate reads the variables once."""
    weights: list[Any] = []
    for name, left in (("clean", {}), ("left", {"LOCAL_RANK": "0", "WORLD_SIZE": "1"})):
        more = ["--tracking=off", "--skip_eval", "--max_samples=8"]
        done = subprocess.run(
            [sys.executable, recipe_path("mps"), *flags(base, rows, tmp_path / name, *more)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | left,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / name).glob("*_final/adapter_model.safetensors")
        weights.append(load_file(file))
    assert "launcher: not used here: WORLD_SIZE=1, LOCAL_RANK=0" in done.stdout
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
