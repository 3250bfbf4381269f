"""`judge demo`: data, adapter and report of a tiny judge."""

from pt_app.commands.flags import command, flag


@command()
def demo(*, seed: int = flag("seed of the data and of the training", 0)) -> None:
    """Generate data, train a tiny judge on it and evaluate it, without a hub or a key."""
    from pt_app.eval_model.demo import run_demo

    run_demo(seed)
