"""Would more labels help? The adapter's own training, on a quarter and on half of its rows."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.settings import Recipe, Settings, table
from pt_app.eval_model.dispatch import run_recipe
from pt_app.models.model_card import AdapterInfo
from pt_app.models.platforms import recipe_for_this_machine

SHARES = {"quarter": 0.25, "half": 0.5}
# What a part's training does not take from the adapter's.
OWN = {"data_dir", "output_dir", "model", "max_samples", "skip_eval", "resume", "tracking"}
OWN |= {"seeds", "folds", "log_texts", "test_samples"}


def train_parts(
    info: AdapterInfo, data: Path, rows: int, base: str | None, out: Path
) -> dict[str, Path]:
    """Train on parts of the `rows` training rows of `data`, below `out`; give the adapters by name.

    Parts that are there are not trained again. Raises UserError for an adapter whose settings are
    not known, and for under 8 rows.
    """
    settings = info.training.get("settings")
    if not settings:
        raise UserError(f"{info.folder} does not say how it was trained: no curve can be made")
    if rows < 8:
        raise UserError(f"{data} has {rows} training rows: too few for a curve")
    recipe = recipe_for_this_machine()
    found = {}
    for name, share in SHARES.items():
        folder = out / "curve" / name
        if not list(folder.glob("*_final")):
            own = {
                "data_dir": data,
                "output_dir": folder,
                "model": base or info.identity["name"],
                "max_samples": max(2, round(rows * share)),
                "tracking": "off",
            }
            run_recipe(recipe, [*_flags(settings, recipe), *_words(own), "--skip_eval"])
        found[name] = sorted(folder.glob("*_final"))[-1]
    return found


def _flags(settings: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the settings of the adapter as flags, without those that the fraction changes."""
    known = table(recipe)
    kept = {
        field.name: settings[field.name]
        for field in fields(Settings)
        if field.name in settings and field.name in known and field.name not in OWN
    }
    switches = [f"--{name}" for name, value in kept.items() if value is True]
    return [*switches, *_words({n: v for n, v in kept.items() if not isinstance(v, bool)})]


def _words(flags: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]
