"""`judge doctor`: does this machine compute correctly, and is what a run needs there?"""

import typer

from pt_app.commands.flags import JSON, RECIPE_FLAGS, command, flag
from pt_app.core.settings import Where


@command(context_settings=RECIPE_FLAGS)
def doctor(
    *,
    context: typer.Context,
    platform: Where | None = flag(
        "platform to check; default: this machine's; cpu ignores a GPU", None
    ),
    offline: bool = flag("check that a run would find all it needs without a network", False),
    as_json: bool = JSON,
) -> None:
    """Check that this machine computes correctly and has what a run needs; takes recipe flags.

    Each failure prints its fix. The exit code is 2 if a check failed.
    """
    from pt_app.core.settings import check_flags, recipe_of

    check_flags(context.args, "judge train", recipe_of(platform) if platform else None)
    from pt_app.preflight.doctor.command import run_doctor

    raise typer.Exit(run_doctor(platform, context.args, offline, as_json))
