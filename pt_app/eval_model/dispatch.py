"""`judge train`: the recipe for this machine, said and run; on folds, one adapter a fold."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pt_app
from pt_app.core.errors import UserError
from pt_app.core.settings import (
    Recipe,
    Settings,
    build_parser,
    check_flags,
    resolve,
)

ABOUT = """Train a judge with the recipe for this machine, whose command line is printed:

judge_train_cuda.py   on an NVIDIA or AMD GPU
judge_train_mps.py    on an Apple GPU, or on the CPU"""


def recipe_command(recipe: Recipe, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs a recipe with `argv`, as a person would type it."""
    script = Path(pt_app.__file__).parent / "eval_model" / f"judge_train_{recipe}.py"
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return ["python", str(script), *argv]


def run_recipe(name: Recipe, argv: Sequence[str]) -> None:
    """Print the recipe's command line and run it; ends this process where it fails."""
    command = recipe_command(name, argv)
    print(f"$ {shlex.join(command)}", flush=True)
    recipe = subprocess.Popen([sys.executable, *command[1:]])
    with _handed_on_to(recipe):
        try:
            code = recipe.wait()
        except KeyboardInterrupt:
            code = recipe.wait()  # the terminal interrupts it too, and it ends after a checkpoint
    if code:
        sys.exit(code)


@contextmanager
def _handed_on_to(recipe: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, signals that ask a recipe for a checkpoint reach it: a supervisor knows this process
    alone."""
    asking = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(n, lambda number, _: recipe.send_signal(number)) for n in asking]
    try:
        yield
    finally:
        for number, handler in zip(asking, before, strict=True):
            signal.signal(number, handler)


def train_here(argv: Sequence[str]) -> None:
    """Run the recipe that uses what this machine has, once for each fold where the data has folds.

    The folds' evaluations are then joined below the output folder. Raises UserError for wrong
    flags and a missing dataset, mostly before torch is imported.
    """
    if {"--help", "-h"} & set(argv):
        build_parser(None, "judge train", ABOUT).print_help()
        return
    from pt_app.core.dataset import find_folder

    find_folder(check_flags(argv, "judge train").data_dir)
    from pt_app.models.platforms import recipe_for_this_machine

    recipe = recipe_for_this_machine()
    settings = resolve(recipe, argv, "judge train", ABOUT)
    folds = fold_folders(Path(settings.data_dir))
    if folds:
        train_folds(recipe, argv, settings, folds)
    else:
        run_recipe(recipe, argv)


def fold_folders(data_dir: Path) -> list[Path]:
    """Return the dataset folders of the folds in `data_dir`, in order; none if it holds none."""
    numbered = [path for path in data_dir.glob("*/judge_test.json") if path.parent.name.isdigit()]
    return sorted((path.parent for path in numbered), key=lambda path: int(path.name))


def train_folds(
    recipe: Recipe, argv: Sequence[str], settings: Settings, folds: Sequence[Path]
) -> None:
    """Train one adapter a fold, one after the other, and join their evaluations."""
    from pt_app.eval_model.folds import join_evaluations

    if settings.skip_eval or settings.resume != "off":
        raise UserError(
            "folds are trained from their start and evaluated: leave out --skip_eval and --resume, "
            f"or train one fold with --data_dir {folds[0]}"
        )
    root = Path(settings.output_dir) / f"folds-of-{folds[0].parents[1].name}"
    if root.exists():
        raise UserError(f"{root} is there: choose another --output_dir, or delete it")
    adapters: list[Path] = []
    for fold in folds:
        own = ["--data_dir", str(fold), "--output_dir", str(root / f"fold-{fold.name}")]
        run_recipe(recipe, [*argv, *own])  # of a flag given twice the last counts
        adapters += (root / f"fold-{fold.name}").glob("*_final")
    print(f"report of all folds: {join_evaluations(adapters, root / 'evaluation')}")
