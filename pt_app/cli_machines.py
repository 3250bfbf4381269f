"""Subcommands about the machines that judges are trained on."""

from typing import Annotated, Literal

import typer


def doctor(
    context: typer.Context,
    platform: Annotated[
        Literal["mps", "cuda"] | None, typer.Option(help="the recipe, if not this machine's own")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="would a run find all it needs without a network?")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Check that this machine computes right and has what a run needs; takes the recipe's flags.

    Each failure prints its fix. Exit code 2 where something failed.
    """
    from pt_app.doctor.command import run_doctor

    raise typer.Exit(run_doctor(platform, context.args, offline, as_json))


def estimate(
    context: typer.Context,
    platform: Annotated[
        str, typer.Option(help="auto: this machine; mps or cuda: such a GPU, here or not")
    ] = "auto",
    recipe: Annotated[
        str, typer.Option(help="whose settings, if not the platform's: mps or cuda")
    ] = "",
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu_memory", help="GiB of a GPU that is not here")
    ] = None,
    price: Annotated[float | None, typer.Option(help="dollars an hour")] = None,
    no_timing: Annotated[
        bool, typer.Option("--no_timing", help="load no model, time no steps")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Memory, time, disk and price of a run before it begins; takes the recipe's flags too."""
    from pt_app.estimate.command import Asked, run_estimate

    run_estimate(Asked(platform, recipe, gpu_memory, price, not no_timing, json), context.args)
