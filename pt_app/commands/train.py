"""`judge train`: the recipe for this machine."""

import typer

from pt_app.commands.flags import RECIPE_FLAGS, command


@command(context_settings=RECIPE_FLAGS, add_help_option=False)
def train(*, context: typer.Context) -> None:
    """Train a judge with the recipe for this machine; takes recipe flags (see --help)."""
    from pt_app.eval_model.dispatch import train_here

    train_here(context.args)
