"""The `judge` command, and what importing this project does and does not bring along."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pt_app.cli import app
from pt_app.commands.data import data
from pt_app.eval_model.dispatch import recipe_command
from pt_app.models.platforms import recipe_for_this_machine
from tests.conftest import ROOT, run_offline

JUDGE = Path(sys.executable).with_name("judge")


def test_help_brings_no_heavy_package_along() -> None:
    code = (
        "import sys\nfrom pt_app.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic', 'wandb', 'weave'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


@pytest.mark.parametrize("command", [["nonsense"], ["data", "generate", "--rows", "many"]])
def test_wrong_command_gets_one_line_and_exit_code_2(command: list[str]) -> None:
    done = subprocess.run([JUDGE, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_flags_have_underscores() -> None:
    import typer

    names = [
        option
        for group in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for command in (getattr(group, "commands", None) or {"": group}).values()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    ]
    assert "--val_rows" in names
    assert not [name for name in names if "-" in name.removeprefix("--")]


@pytest.mark.slow
def test_judge_train_prints_the_recipe_it_stands_for_and_passes_its_end_on(tmp_path: Path) -> None:
    done = run_offline([str(JUDGE), "train", "--data_dir", str(tmp_path)])
    assert done.returncode == 2
    script = f"pt_app/eval_model/judge_train_{recipe_for_this_machine()}.py"
    assert done.stdout.startswith(f"$ python {script} --data_dir {tmp_path}")
    assert "judge_train.json" in done.stderr
    assert recipe_command("cuda", ["--lr", "1"])[1:] == [
        "pt_app/eval_model/judge_train_cuda.py",
        "--lr",
        "1",
    ]


@pytest.mark.parametrize("where", [ROOT, ROOT / "pt_app" / "eval_model", ROOT / "datasets"])
def test_import_of_datasets_is_never_this_repositorys_folder(where: Path) -> None:
    code = "import pt_app.core.dataset, datasets; print(datasets.__file__, datasets.Dataset)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where)
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout


@pytest.mark.parametrize("recipe", ["mps", "cuda"])
def test_recipe_run_by_path_keeps_its_folder_off_the_path_and_modules_single(recipe: str) -> None:
    script = ROOT / "pt_app" / "eval_model" / f"judge_train_{recipe}.py"
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--epochs', '0']\n"
        f"sys.path.insert(0, {str(script.parent)!r})\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        f"assert {str(script.parent)!r} not in sys.path\n"
        "assert not {'data', 'metrics', 'settings', 'pipeline', 'prompts'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["import", "split", "check", "preview", "relabel", "distil"])
def test_every_flag_of_a_data_command_is_in_its_page(name: str) -> None:
    page = (ROOT / "docs" / "DATA.md").read_text(encoding="utf-8")
    command = typer.main.get_command(data).commands[name]  # type: ignore[attr-defined]
    flags = [flag for option in command.params for flag in option.opts if flag.startswith("-")]
    assert flags
    assert [flag for flag in flags if not re.search(rf"{flag}\b", page)] == []
