"""`judge demo`: data, adapter and report of a judge, from nothing."""

from pt_app.commands.flags import command, flag


@command()
def demo(
    *,
    seed: int = flag("seed of the data and of the training", 0),
    real: bool = flag("labels of people and a pretrained base, which are fetched", False),
) -> None:
    """Generate data, train a tiny judge on it and evaluate it, without a hub or a key."""
    from pt_app.eval_model.demo import run_demo

    run_demo(seed, real)
