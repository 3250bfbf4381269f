"""Train again: over seeds, whose spread no bootstrap shows, over folds of the data, on fewer rows.

Each repeat is a `Settings` of its own, and all of them are trained in this process, one after the
other. Users' mistakes are reported before torch is imported, which takes seconds.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.settings import Recipe, Settings, resolve, table

if TYPE_CHECKING:
    from pt_app.core.dataset import JudgeData
    from pt_app.models.adapters import AdapterInfo

# Trains and evaluates one judge, and returns the adapter's folder: `train` of a recipe.
Train = Callable[[Settings], Path]
SHARES = {"quarter": 0.25, "half": 0.5}  # of the training rows, for a learning curve
MIN_CURVE_ROWS = 8
# What a run on fewer rows does not take from the adapter's own training.
NOT_REPEATED = {"data_dir", "output_dir", "model", "max_samples", "skip_eval", "resume"}
NOT_REPEATED |= {"tracking", "seeds", "folds", "log_texts", "test_samples"}
PLACES = ("data_dir", "output_dir", "model")  # settings that name where something lies
log = logging.getLogger(__name__)


def train_with(recipe: Recipe) -> Train:
    """Return the function that trains one judge in this process as a recipe does."""
    from pt_app.eval_model import judge_train_cuda, judge_train_mps

    return {"mps": judge_train_mps.train, "cuda": judge_train_cuda.train}[recipe]


def run(settings: Settings, train: Train) -> list[Path]:
    """Train once, or once for each of `--seeds` or `--folds`; return the adapters' folders.

    Raises:
        UserError: for whatever the user can fix.
    """
    from pt_app.core.dataset import find_folder

    if settings.folds or settings.seeds > 1:
        _check(settings, folds=bool(settings.folds))
    data = find_folder(settings.data_dir)
    if settings.folds:
        return _over_new_folds(settings, data, train)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    adapters = [train(replace(settings, seed=seed, seeds=1)) for seed in seeds]
    if settings.seeds > 1:
        _write_spread(adapters)
    return adapters


def _check(settings: Settings, *, folds: bool) -> None:
    if folds and settings.seeds > 1:
        raise UserError("--seeds and --folds: choose one of them")
    repeated = "training on folds" if folds else f"--seeds {settings.seeds}"
    if settings.skip_eval or settings.resume != "off":
        raise UserError(f"{repeated}: leave out --skip_eval and --resume, or train them one by one")
    if settings.test_samples and not folds:
        raise UserError(f"{repeated}: leave out --test_samples, which each seed draws again")
    if console.ranks() > 1:
        remedy = "start a run of its own for each adapter"
        raise UserError(f"{repeated} does not work under a launcher: {remedy}")


def fold_folders(data_dir: Path) -> list[Path]:
    """Return the dataset folders of the folds in `data_dir`, in order; none if it holds none."""
    numbered = [path for path in data_dir.glob("*/judge_test.json") if path.parent.name.isdecimal()]
    return sorted((path.parent for path in numbered), key=lambda path: int(path.name))


def _over_new_folds(settings: Settings, data: Path, train: Train) -> list[Path]:
    """Split all rows into folds by group, and train on the rest of each."""
    from pt_app.judge_data.folder import split_folder
    from pt_app.judge_data.options import SplitPlan

    folds = [data / "folds" / str(number) for number in range(1, settings.folds + 1)]
    _output_of(settings, folds)  # refuses an old folder before the data are split
    plan = SplitPlan(folds=settings.folds, seed=settings.seed)
    print("\n".join(split_folder(data, plan)))
    return over_folds(replace(settings, folds=0), folds, train)


def over_folds(settings: Settings, folds: Sequence[Path], train: Train) -> list[Path]:
    """Train one adapter per dataset folder of `folds`, and join their evaluations.

    Raises:
        UserError: for settings that do not fit, and an output folder that exists.
    """
    from pt_app.core.dataset import read_dataset

    _check(settings, folds=True)
    root = _output_of(settings, folds)
    # Chosen by the rows of the first fold for all of them: near a threshold they might differ.
    first = read_dataset(folds[0], settings.allow_leaks)
    settings = replace(settings, grid=_grid_of(settings, first))
    adapters = [
        train(replace(settings, data_dir=str(fold), output_dir=str(root / f"fold-{fold.name}")))
        for fold in folds
    ]
    from pt_app.eval_model.folds import join_evaluations

    log.info("report of all folds: %s", join_evaluations(adapters, root / "evaluation"))
    return adapters


def _grid_of(settings: Settings, data: JudgeData) -> str:
    from pt_app.core.grids import choose_grid, grid_name

    how = settings.max_samples, (*data.val, *data.test)
    asked, _ = choose_grid(settings.grid, data.asked, data.train, *how)
    return grid_name(asked)


def trained_before(settings: Settings) -> list[Path]:
    """Return the adapters in `--output_dir` of the same settings, data and base, the newest first.

    Where data and base lie does not matter. Of the data, rows, prompts and what is asked count.
    """
    from pt_app.core.dataset import read_dataset
    from pt_app.core.prompt_templates import Template
    from pt_app.core.records import checked
    from pt_app.models.adapters import TRAINING, Trained, verify_adapter
    from pt_app.models.bases import model_identity, read_json, resolve_model
    from pt_app.models.provenance import without_absolute_paths

    folders = sorted(Path(settings.output_dir).glob("*_final"), reverse=True)
    if not folders:
        return []
    data = read_dataset(Path(settings.data_dir), settings.allow_leaks)
    places = dict.fromkeys(PLACES)
    own = without_absolute_paths(asdict(settings)) | {"grid": _grid_of(settings, data)} | places
    base = model_identity(resolve_model(settings.model))
    asked = Template.load(data.card.template, data.card.rubric), data.asked

    def is_same(folder: Path) -> bool:
        path = folder / TRAINING
        made = checked(Trained, read_json(path), path, f"move {folder} away")
        by = made.settings | places, made.data.get("sha256"), made.base.model_dump()
        if by != (own, data.sha256, base):
            return False
        info = verify_adapter(folder)
        return (info.template, info.asked) == asked

    return [folder for folder in folders if is_same(folder)]


def _output_of(settings: Settings, folds: Sequence[Path]) -> Path:
    root = Path(settings.output_dir) / f"folds-of-{folds[0].parents[1].name}"
    if root.exists():
        raise UserError(f"{root} is there: choose another --output_dir, or delete it")
    return root


def on_fewer_rows(
    info: AdapterInfo, data: Path, rows: int, base: str | None, out: Path
) -> dict[str, Path]:
    """Train as an adapter was trained, on shares of its rows: would more labels help?

    Args:
        info: the adapter, whose settings are used.
        data: its dataset folder.
        rows: the number of training rows there.
        base: the path of its base, if that was a folder.
        out: the folder below which to train; shares that were trained so are not trained again.

    Returns:
        The adapters' folders by the name of the share.

    Raises:
        UserError: for an adapter whose settings are not recorded, and for too few rows.
    """
    from pt_app.core.grids import grid_name
    from pt_app.models.adapters import TEMPLATE, base_place
    from pt_app.models.platforms import recipe_for_this_machine

    recorded = info.training.get("settings") or {}
    if not recorded:
        raise UserError(f"{info.folder} does not say how it was trained: no curve can be made")
    if rows < MIN_CURVE_ROWS:
        raise UserError(f"{data} has {rows} training rows: too few for a curve")
    recipe = recipe_for_this_machine()
    recorded = {"grid": grid_name(info.scale)} | recorded
    if recorded.get("chat_template"):  # of a file the name alone was recorded
        recorded["chat_template"] = str(info.folder / TEMPLATE)
    repeated = (table(recipe).keys() & recorded.keys()) - NOT_REPEATED
    settings = replace(
        resolve(recipe, (), "judge eval", ""),
        **{name: recorded[name] for name in repeated},
        data_dir=str(data),
        model=base_place(info, base),
        skip_eval=True,
        tracking="off",
    )
    shares = {}
    for name, share in SHARES.items():
        count, folder = max(2, round(rows * share)), out / "curve" / name
        own = replace(settings, max_samples=count, output_dir=str(folder))
        made = trained_before(own)
        shares[name] = made[0] if made else train_with(recipe)(own)
    return shares


def _write_spread(adapters: Sequence[Path]) -> None:
    """Write into each adapter's results how the headline number varies over the seeds."""
    from pt_app.core.results import read_results

    for name in read_results(adapters[0] / "evaluation").questions or ("",):
        _write_spread_of([adapter / "evaluation" / name for adapter in adapters])


def _write_spread_of(folders: Sequence[Path]) -> None:
    from pt_app.core.results import RESULTS, SeedSpread, read_results
    from pt_app.report import write_report

    if not all((folder / RESULTS).exists() for folder in folders):
        return  # a question without a test row
    results = [read_results(folder) for folder in folders]
    metric = results[0].columns()[0]
    values = [result.models[0].metrics[metric].value for result in results]
    defined = [value for value in values if value is not None]
    spread = SeedSpread(
        metric=metric,
        seeds=[result.run["seed"] for result in results],
        values=values,
        mean=statistics.mean(defined) if defined else None,
        sd=statistics.stdev(defined) if len(defined) > 1 else None,
    )
    for folder, result in zip(folders, results, strict=True):
        result.over_seeds = spread
        write_json_atomic(folder / RESULTS, result.as_json())
        log.info("report: %s", write_report(folder))
