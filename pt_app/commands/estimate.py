"""`judge estimate`: memory, time, disk and price of a run before it begins."""

import importlib
import math
from typing import Annotated, Literal

import typer

from pt_app.commands.flags import Json


def estimate(
    context: typer.Context,
    platform: Annotated[
        Literal["auto", "cpu", "mps", "cuda"],
        typer.Option(help="auto: this machine; cpu: its CPU; mps, cuda: a GPU, present or not"),
    ] = "auto",
    recipe: Annotated[
        Literal["cpu", "mps", "cuda"] | None,
        typer.Option(help="recipe, if not the platform's"),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu_memory", help="memory in GiB of a GPU that is not present"),
    ] = None,
    price: Annotated[float | None, typer.Option(help="price in dollars per hour")] = None,
    no_timing: Annotated[
        bool, typer.Option("--no_timing", help="do not load the model to time steps")
    ] = False,
    json: Json = False,
) -> None:
    """Estimate memory, time, disk and price of a run before it starts; takes recipe flags."""
    from pt_app.core.dataset import find_folder
    from pt_app.core.errors import UserError
    from pt_app.core.settings import check_flags, recipe_of

    for flag, value in (("--gpu_memory", gpu_memory), ("--price", price)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag} {value:g}: must be a number above 0")
    if gpu_memory is not None and platform not in ("mps", "cuda"):
        raise UserError("--gpu_memory is of a GPU: name it with --platform cuda or mps")
    where = recipe or (None if platform == "auto" else platform)
    named = recipe_of(where) if where else None
    find_folder(check_flags(context.args, "judge estimate", named).data_dir)
    from pt_app.preflight.estimate.command import run_estimate

    run_estimate(
        named,
        context.args,
        lambda name: importlib.import_module(f"pt_app.eval_model.judge_train_{name}"),
        device=platform,
        gpu_memory=gpu_memory,
        price=price,
        timing=not no_timing,
        as_json=json,
    )
