"""`judge serve`: a judge as a decision model over HTTP."""

from collections.abc import Sequence
from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.serving.options import ServeOptions


@command()
def serve(
    *,
    adapters: Sequence[Path] = flag("adapter folders of the judges", positional=True),
    options: ServeOptions,
) -> None:
    """Serve judges to the clients of decision models: System One, OpenAI's Decisions, rows."""
    from pt_app.core import console
    from pt_app.serving.server import serve as served

    console.start()
    served(adapters, options)
