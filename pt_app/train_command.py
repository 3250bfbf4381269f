"""`judge train`: the recipe for this machine, said and run."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pt_app
from pt_app.eval_model.settings import Recipe


def recipe_command(recipe: Recipe, argv: Sequence[str]) -> list[str]:
    """The command line that runs a recipe with `argv`, as a person would type it."""
    script = Path(pt_app.__file__).parent / "eval_model" / f"judge_train_{recipe}.py"
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return ["python", str(script), *argv]


def run_recipe(name: Recipe, argv: Sequence[str]) -> None:
    """Print the recipe's command line and run it; ends this process where it fails."""
    command = recipe_command(name, argv)
    print(f"$ {shlex.join(command)}", flush=True)
    recipe = subprocess.Popen([sys.executable, *command[1:]])
    try:
        code = recipe.wait()
    except KeyboardInterrupt:
        code = recipe.wait()  # the terminal interrupts it too, and it ends after a checkpoint
    if code:
        sys.exit(code)


def train_here(argv: Sequence[str]) -> None:
    """Run the recipe that uses what this machine has."""
    from pt_app.eval_model.platforms import recipe_for_this_machine

    run_recipe(recipe_for_this_machine(), argv)
