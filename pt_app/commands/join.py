"""`judge join`: the evaluations of the folds of one dataset, joined."""

from pathlib import Path
from typing import Annotated

import typer


def join(
    adapters: Annotated[list[Path], typer.Argument(help="adapter folders of the folds")],
    out: Annotated[Path, typer.Option(help="output folder for results.json and the report")],
) -> None:
    """Join the evaluations of adapters that were trained on the folds of one dataset."""
    from pt_app.eval_model.folds import join_evaluations

    print(f"report: {join_evaluations(adapters, out)}")
