"""scripts/skypilot.yaml: what its run block hands to the recipe, at first and when it resumes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pt_app.core.settings import resolve
from tests.conftest import ROOT


@pytest.fixture
def task() -> dict[str, Any]:
    text = (ROOT / "scripts" / "skypilot.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def flags(task: dict[str, Any], folder: Path, recipe: str) -> list[str]:
    """The words that the recipe gets where `folder` is the machine's working folder."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "RECIPE": recipe},
        capture_output=True,
        text=True,
        check=True,
    )
    script, *words = done.stdout.split()
    assert (ROOT / script).is_file()
    return words


def test_recipe_runs_offline_without_evaluation_and_with_the_flags_given(
    task: dict[str, Any], tmp_path: Path
) -> None:
    words = flags(task, tmp_path, task["envs"]["RECIPE"] + " --lr 1e-3")
    settings = resolve("cuda", words, "recipe", "")
    assert (settings.epochs, settings.lr) == (3.0, 1e-3)
    assert (settings.tracking, settings.skip_eval, settings.resume) == ("offline", True, "off")


def test_job_that_starts_again_goes_on_from_its_checkpoint(
    task: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "adapters_eval" / "judge-1" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    assert "--resume" not in flags(task, tmp_path, ""), "it is not complete"
    (checkpoint / "complete.json").write_text("{}")
    assert resolve("cuda", flags(task, tmp_path, ""), "recipe", "").resume == "newest"
    words = flags(task, tmp_path, "--resume adapters_eval/judge-1")
    assert resolve("cuda", words, "recipe", "").resume == "adapters_eval/judge-1"


def test_machine_is_ended_when_nothing_runs_and_gets_no_key(task: dict[str, Any]) -> None:
    assert task["resources"]["autostop"] == {"idle_minutes": 10, "down": True}
    assert set(task["envs"]) == {"RECIPE"}
    assert "secrets" not in task
    assert "file_mounts" not in task
    assert subprocess.run(["bash", "-n"], input=task["setup"], text=True).returncode == 0
