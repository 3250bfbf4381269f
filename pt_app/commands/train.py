"""`judge train`: the recipe for this machine."""

import typer


def train(context: typer.Context) -> None:
    """Train a judge with the recipe for this machine; takes recipe flags (see --help)."""
    from pt_app.eval_model.dispatch import train_here

    train_here(context.args)
