"""`judge estimate`: memory, time, disk and price of a run before it begins."""

from typing import Annotated

import typer

from pt_app.commands.flags import Json


def estimate(
    context: typer.Context,
    platform: Annotated[
        str, typer.Option(help="auto: this machine; cpu: its CPU; mps, cuda: a GPU, present or not")
    ] = "auto",
    recipe: Annotated[
        str, typer.Option(help="recipe, if not the platform's: cpu, mps or cuda")
    ] = "",
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
    from pt_app.preflight.estimate.asked import Asked

    asked = Asked(platform, recipe, gpu_memory, price, not no_timing, json)
    asked.check(context.args)
    from pt_app.preflight.estimate.command import run_estimate

    run_estimate(asked, context.args)
