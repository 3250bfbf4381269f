"""`judge prefetch` and `judge bundle`: machines without internet."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeName = Annotated[
    Literal["mps", "cuda"], typer.Option(help="whose settings and packages: mps or cuda")
]


def prefetch(
    context: typer.Context,
    recipe: RecipeName = "cuda",
) -> None:
    """Fetch what a run reads, then load it with the hub off; takes the recipe's flags."""
    from pt_app.eval_model import console
    from pt_app.prefetch import prefetch as fetch

    console.start()
    fetch(recipe, context.args)
