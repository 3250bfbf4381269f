"""`judge prefetch`: fetch what a run reads."""

import typer

from pt_app.commands.flags import RECIPE, RECIPE_FLAGS, command
from pt_app.core.settings import Where


@command(context_settings=RECIPE_FLAGS)
def prefetch(*, context: typer.Context, recipe: Where = RECIPE) -> None:
    """Fetch what a run reads, then load it with the hub off; takes recipe flags."""
    from pt_app.core import console
    from pt_app.core.settings import recipe_of
    from pt_app.preflight.prefetch import prefetch as fetch

    console.start()
    fetch(recipe_of(recipe), context.args)
