"""`judge sync`: send what runs without a network kept on disk."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.core.errors import UserError


def sync(
    folder: Annotated[
        str, typer.Argument(help="folder of a run, or a parent folder of several runs")
    ],
    deadline: Annotated[float, typer.Option(help="time limit in seconds")] = 600.0,
) -> None:
    """Send to W&B and Weave what offline runs kept on disk."""
    from pt_app.tracking.sync import sync as send

    if not folder:  # an unset variable; as a path it would be the current folder
        raise UserError("judge sync got an empty path: name the folder of a run")
    summary = send(Path(folder), deadline)
    print(str(summary))
    if summary.failed:
        raise UserError(f"{len(summary.failed)} not sent: run judge sync {folder} again later")
