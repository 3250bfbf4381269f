"""`make demo` and `make demo-real`: data, adapter and report of a judge, in their own folders."""

import itertools
import os
import shlex
import shutil
from pathlib import Path

import pt_app
from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.results import read_results
from pt_app.core.settings import resolve
from pt_app.eval_model import judge_train_mps, repeats
from pt_app.eval_model.dispatch import recipe_command
from pt_app.models.known_bases import fetch
from pt_app.report import terminal_table

TRAIN_ROWS, VAL_ROWS, TEST_ROWS = 12_000, 300, 400
ADAPTERS = Path("adapters_eval/demo")
REAL_PAIRS = ("ro-en", "et-en")  # of languages, whose translations people scored
# The same labels on the Hub: six people's scores of translations of Wikipedia, 0 to 100.
ON_THE_HUB = "wmt/wmt20_mlqe_task1"


def run_demo(seed: int = 0, real: bool = False) -> Path:
    """Make or read the data, train, evaluate, and print the table; return the path of report.html.

    Data that are there already are used again, and so is a judge that these settings made.

    Args:
        seed: of generated data and of the training. Each has folders of its own.
        real: take labels of people and a pretrained base instead of generated data and the tiny
            base.

    Raises:
        UserError: if base or labels cannot be had here.
    """
    name = "demo-real" if real else "demo"
    data = Path("datasets") / (name if real or seed == 0 else f"{name}-{seed}")
    config = _config("real.yaml" if real else "tiny.yaml")
    flags = ["--data_dir", str(data), "--output_dir", str(ADAPTERS), "--seed", str(seed)]
    argv = ["--config", config, *flags]
    settings = resolve("mps", argv, "judge demo", "")
    print("\n".join(_real_data(data, settings.model) if real else _generated(data, seed)))
    report = Path("evaluation/report.html")
    made = [folder for folder in repeats.trained_before(settings) if (folder / report).exists()]
    if made:
        print(f"trained and evaluated before: {made[0]}")
        console.show(terminal_table(read_results(made[0] / "evaluation")))
    else:
        print(f"$ {shlex.join(recipe_command('mps', argv))}", flush=True)
        made = repeats.run(settings, judge_train_mps.train)
    print(f"report: {made[0] / report}")
    return made[0] / report


def _generated(data: Path, seed: int) -> list[str]:
    """Generate the data of the demo into the folder, and describe them."""
    from pt_app.judge_data.generator.generate import generate
    from pt_app.judge_data.options import GenerateOptions

    return generate(data, GenerateOptions(TRAIN_ROWS, VAL_ROWS, TEST_ROWS, seed)).lines()


def _real_data(data: Path, base: str) -> list[str]:
    """Fetch the base, and import labels of people: the official dev rows to train on, test to test.

    Raises:
        UserError: if they are neither in the folder that JUDGE_REAL_DATA names nor on the Hub, and
            if `data` holds files of something else.
    """
    whole = (data / "dataset.json").exists()
    if not whole and data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise UserError(f"{data} holds other files, and no dataset.json: move it away")
    fetch(base)
    if whole:
        return [f"{data}: imported before"]
    own = os.environ.get("JUDGE_REAL_DATA")
    # Renamed when it is whole: an import that was interrupted is begun again.
    staged = data.with_name(f".{data.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    lines: list[str] = []
    for pair, split in itertools.product(REAL_PAIRS, ("dev", "test")):
        imported = _imported(pair, split, staged, Path(own) if own else None)
        lines += [line for line in imported if not line.startswith("  raters ")]  # 45 of each file
    staged.rename(data)
    return lines


def _imported(pair: str, split: str, data: Path, own: Path | None) -> list[str]:
    """Add one file of labels to the dataset folder, and describe it."""
    from pt_app.judge_data.importing import import_labels
    from pt_app.judge_data.options import ImportOptions, Reading, SplitPlan

    plan = SplitPlan(into="test") if split == "test" else SplitPlan(ratios="0.9,0.1,0")
    options = ImportOptions(format="mlqe-pe")
    file = str(own / "mlqe-pe" / f"{pair}-{split}.tar.gz") if own else f"{ON_THE_HUB}::{pair}"
    if own is None:
        source, target = pair.split("-")
        columns = f"source=translation.{source},candidate=translation.{target},label=scores.*"
        reading = Reading(hub_split="validation" if split == "dev" else split)
        prefix = f"{pair}-{split}"
        options = ImportOptions(map=[columns], scale="0-100", reading=reading, prefix=prefix)
    try:
        return import_labels([file], data, options, plan, append=True)
    except UserError as error:
        remedy = (
            "set JUDGE_REAL_DATA to a folder that holds mlqe-pe/{ro-en,et-en}-{dev,test}.tar.gz, "
            "the direct assessments of github.com/sheffieldnlp/mlqe-pe"
        )
        raise UserError(f"{error}; or {remedy}") from error


def _config(name: str) -> str:
    file = Path(pt_app.__file__).parents[1] / "configs" / name
    if not file.exists():
        raise UserError(f"{file} is not there: run the demo from a clone of the repository")
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
