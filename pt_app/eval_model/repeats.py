"""Repeated trainings: over seeds, whose spread no bootstrap shows, or over folds of the data.

Users' mistakes are reported before torch is imported, which takes seconds.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic
from pt_app.core.settings import Recipe, Settings

if TYPE_CHECKING:
    from pt_app.training.run import LoadBase, MakeArguments

log = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    settings: Settings,
    load_base: LoadBase,
    arguments: MakeArguments,
) -> list[Path]:
    """Train once, or once for each of `--seeds` or `--folds`; return the adapters' folders.

    Raises:
        UserError: for whatever the user can fix.
    """
    _check(settings)
    from pt_app.core.dataset import find_folder

    find_folder(settings.data_dir)
    from pt_app.eval_model import entry

    if settings.folds:
        return _over_folds(recipe, settings, load_base, arguments)
    adapters = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        one = replace(settings, seed=seed, seeds=1)
        adapters.append(entry.run(recipe, one, load_base, arguments))
    if settings.seeds > 1:
        _write_spread(adapters)
    return adapters


def _check(settings: Settings) -> None:
    repeated = f"--seeds {settings.seeds}" if settings.seeds > 1 else f"--folds {settings.folds}"
    if settings.seeds == 1 and not settings.folds:
        return
    if settings.seeds > 1 and settings.folds:
        raise UserError("--seeds and --folds: choose one of them")
    if settings.skip_eval or settings.resume != "off":
        raise UserError(f"{repeated}: leave out --skip_eval and --resume, or train them one by one")
    if settings.test_samples and settings.seeds > 1:
        raise UserError(f"{repeated}: leave out --test_samples, which each seed draws anew")
    if console.ranks() > 1:
        raise UserError(f"{repeated}: start one run after the other under a launcher")


def _over_folds(
    recipe: Recipe,
    settings: Settings,
    load_base: LoadBase,
    arguments: MakeArguments,
) -> list[Path]:
    """Split all rows into folds by group, train one adapter on the rest of each, and join them."""
    from pt_app.eval_model import entry
    from pt_app.eval_model.folds import join_evaluations
    from pt_app.judge_data.folder import split_folder
    from pt_app.judge_data.options import SplitPlan

    data = Path(settings.data_dir)
    root = Path(settings.output_dir) / f"folds-of-{data.name}"
    if root.exists():
        raise UserError(f"{root} is there: choose another --output_dir, or delete it")
    plan = SplitPlan(folds=settings.folds, seed=settings.seed)
    print("\n".join(split_folder(data, plan).lines()))
    adapters = []
    for fold in range(1, settings.folds + 1):
        one = replace(
            settings,
            folds=0,
            data_dir=str(data / "folds" / str(fold)),
            output_dir=str(root / f"fold-{fold}"),
        )
        adapters.append(entry.run(recipe, one, load_base, arguments))
    log.info("report of all folds: %s", join_evaluations(adapters, root / "evaluation"))
    return adapters


def _write_spread(adapters: Sequence[Path]) -> None:
    """Write into each adapter's results how the headline number varies over the seeds."""
    from pt_app.core.results import RESULTS, SeedSpread, read_results
    from pt_app.report import write_report

    results = [read_results(adapter / "evaluation") for adapter in adapters]
    metric = results[0].columns()[0]
    values = [one.models[0].best[metric].value for one in results]
    defined = [value for value in values if value is not None]
    spread = SeedSpread(
        metric=metric,
        seeds=[one.run["seed"] for one in results],
        values=values,
        mean=statistics.mean(defined) if defined else None,
        sd=statistics.stdev(defined) if len(defined) > 1 else None,
    )
    for adapter, one in zip(adapters, results, strict=True):
        one.over_seeds = spread
        write_json_atomic(adapter / "evaluation" / RESULTS, one.as_json())
        log.info("report: %s", write_report(adapter / "evaluation"))
