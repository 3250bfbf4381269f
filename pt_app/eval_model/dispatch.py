"""`judge train`: print and run the recipe for this machine; train on folds in this process."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pt_app
from pt_app.core.settings import Recipe, build_parser, check_flags, resolve
from pt_app.eval_model.repeats import fold_folders, over_folds, train_with

ABOUT = """Train a judge with the recipe for this machine, whose command line is printed:

judge_train_cuda.py   on an NVIDIA or AMD GPU
judge_train_mps.py    on an Apple GPU, or on the CPU"""


def recipe_command(recipe: Recipe, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs a recipe with `argv`, as a person would type it."""
    script = Path(pt_app.__file__).parent / "eval_model" / f"judge_train_{recipe}.py"
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return ["python", str(script), *argv]


def train_here(argv: Sequence[str]) -> None:
    """Run the recipe for this machine, once for each fold where the data folder holds folds.

    Raises:
        UserError: for wrong flags and a missing dataset, mostly before torch is imported.
    """
    if {"--help", "-h"} & set(argv):
        build_parser(None, "judge train", ABOUT).print_help()
        return
    from pt_app.core.dataset import find_folder

    find_folder(check_flags(argv, "judge train").data_dir)
    from pt_app.models.platforms import recipe_for_this_machine

    recipe = recipe_for_this_machine()
    settings = resolve(recipe, argv, "judge train", ABOUT)
    if folds := fold_folders(Path(settings.data_dir)):
        over_folds(settings, folds, train_with(recipe))
    else:
        command = recipe_command(recipe, argv)
        print(f"$ {shlex.join(command)}", flush=True)
        # In the place of this process, so that signals of a supervisor reach the recipe.
        os.execv(sys.executable, [sys.executable, *command[1:]])
