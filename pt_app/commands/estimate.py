"""`judge estimate`: memory, time, disk and price of a run before it begins."""

import importlib
from typing import Literal

import typer

from pt_app.commands.flags import JSON, RECIPE_FLAGS, command, flag
from pt_app.core.settings import Where


@command(context_settings=RECIPE_FLAGS)
def estimate(
    *,
    context: typer.Context,
    platform: Literal["auto", "cpu", "mps", "cuda"] = flag(
        "auto: this machine; cpu: its CPU; mps, cuda: a GPU, present or not", "auto"
    ),
    recipe: Where | None = flag("recipe, if not the platform's", None),
    gpu_memory: float | None = flag(
        "memory of a GPU that is not present, in GiB", None, above=0, unit="GiB"
    ),
    price: float | None = flag(
        "price of the machine, in dollars per hour", None, above=0, unit="dollars/hour"
    ),
    no_timing: bool = flag("do not load the model to time steps", False),
    as_json: bool = JSON,
) -> None:
    """Estimate memory, time, disk and price of a run before it starts; takes recipe flags."""
    from pt_app.core.dataset import find_folder
    from pt_app.core.errors import UserError
    from pt_app.core.settings import check_flags, recipe_of

    if gpu_memory is not None and platform not in ("mps", "cuda"):
        raise UserError("--gpu_memory is of a GPU: name it with --platform cuda or mps")
    where = recipe or (None if platform == "auto" else platform)
    own = recipe_of(where) if where else None
    find_folder(check_flags(context.args, "judge train", own).data_dir)
    from pt_app.preflight.estimate.command import run_estimate

    run_estimate(
        own,
        context.args,
        lambda name: importlib.import_module(f"pt_app.eval_model.judge_train_{name}"),
        device=platform,
        gpu_memory=gpu_memory,
        price=price,
        timing=not no_timing,
        as_json=as_json,
    )
