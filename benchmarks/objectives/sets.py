"""The dataset folders of the experiment, made by the product's own import or generator."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pt_app
from benchmarks.objectives.cells import Set
from pt_app.core.errors import UserError
from pt_app.core.files import held
from pt_app.judge_data.folder import split_folder
from pt_app.judge_data.generator.generate import generate
from pt_app.judge_data.importing import import_labels
from pt_app.judge_data.options import GenerateOptions, ImportOptions, SplitPlan
from pt_app.judge_data.question_import import import_questions


def real_data() -> Path:
    """Return the folder of the sets as they were published: JUDGE_REAL_DATA names it."""
    beside = Path(pt_app.__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("JUDGE_REAL_DATA") or beside)


def dataset_of(name: str, about: Set, seed: int, out: Path) -> Path:
    """Return the dataset folder of a set below `out`, made once; of folds that of the seed.

    Raises:
        UserError: for files that are not there or cannot be used.
    """
    folder = out / name
    with held(out / f".{name}.lock", f"another process makes {folder}", wait=True):
        if not folder.exists():
            staged = out / f".{name}"
            shutil.rmtree(staged, ignore_errors=True)
            make_folder(about, staged)
            os.replace(staged, folder)
    return folder / "folds" / str(seed % about.folds + 1) if about.folds else folder


def make_folder(about: Set, folder: Path) -> None:
    """Import a set into `folder`, or generate it."""
    if about.generate:
        generate(folder, GenerateOptions(**about.generate))
    root = real_data()
    for number, each in enumerate(about.imports):
        for file in each.files:
            if not (root / file).exists():
                problem = f"{root / file} is not there"
                raise UserError(f"{problem}: name the folder of {file} in JUDGE_REAL_DATA")
        files = [str(root / file) for file in each.files]
        options, plan = ImportOptions(**each.options), SplitPlan(**each.plan)
        run = import_labels
        if options.questions:
            run = import_questions
            options = replace(options, questions=Path(__file__).parent / options.questions)
        run(files, folder, options, plan, append=number > 0)
    if about.folds:
        split_folder(folder, SplitPlan(folds=about.folds))
