"""`judge sync`: send what runs without a network kept on disk."""

from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.core.errors import UserError


@command()
def sync(
    *,
    folder: str = flag("folder of a run, or a parent folder of several runs", positional=True),
    deadline: float = flag("time limit", 600.0, unit="seconds"),
) -> None:
    """Send to W&B and Weave what offline runs kept on disk."""
    from pt_app.tracking.sync import sync as send

    summary = send(Path(folder), deadline)
    print(str(summary))
    if summary.failed:
        raise UserError(f"{len(summary.failed)} not sent: run judge sync {folder} again later")
