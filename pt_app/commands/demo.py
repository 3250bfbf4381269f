"""`judge demo`: data, adapter and report of a tiny judge."""

from typing import Annotated

import typer


def demo(
    seed: Annotated[int, typer.Option(help="seed of the data and of the training")] = 0,
) -> None:
    """Generate data, train a tiny judge on it and evaluate it, without a hub or a key."""
    from pt_app.eval_model.demo import run_demo

    run_demo(seed)
