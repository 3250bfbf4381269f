"""`judge join`: the evaluations of the folds of one dataset, joined."""

from collections.abc import Sequence
from pathlib import Path

from pt_app.commands.flags import command, flag


@command()
def join(
    *,
    adapters: Sequence[Path] = flag("adapter folders of the folds", positional=True),
    out: Path = flag("output folder for results.json and the report"),
) -> None:
    """Join the evaluations of adapters that were trained on the folds of one dataset."""
    from pt_app.eval_model.folds import join_evaluations

    print(f"report: {join_evaluations(adapters, out)}")
