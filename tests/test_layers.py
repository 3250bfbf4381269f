"""The layers of docs/ARCHITECTURE.md hold, and a breach of one is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LINT = Path(sys.executable).with_name("lint-imports")
BREACHES = {
    "an upward import": ("core/words.py", "import pt_app.training.loss"),
    "an import within a layer": ("report/page.py", "import pt_app.judge_data.rows"),
    "torch in the statistics": ("evidence/ranks.py", "import torch"),
    "typer below the commands": ("judge_data/rows.py", "import typer"),
    "a report written by the run": ("eval_model/pipeline.py", "import pt_app.report"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package without its data, and of its contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    only_code = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.json", "*.tsv")
    shutil.copytree(ROOT / "pt_app", tmp_path / "pt_app", ignore=only_code)
    return tmp_path


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_every_import_keeps_to_the_layers(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_layers_is_refused(breach: str, copy: Path) -> None:
    name, line = BREACHES[breach]
    module = copy / "pt_app" / name
    module.write_text(f"{module.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
