"""`judge doctor`: what the machine is fit for."""

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
