"""`judge parity`: whether an export or a server gives the judge's numbers."""

from collections.abc import Sequence
from pathlib import Path

import typer

from pt_app.commands.flags import command, flag
from pt_app.serving.options import ParityOptions


@command()
def parity(
    *,
    adapter: Path = flag("adapter folder of the judge", positional=True),
    against: Sequence[str] = flag(
        "gguf:FILE, gguf:BASE+LORA, mlx:FOLDER, merged:FOLDER, transformers:FOLDER or a URL; "
        "may be repeated"
    ),
    data: Path = flag("dataset folder, whose test rows are compared"),
    options: ParityOptions,
) -> None:
    """Compare probabilities with the trained judge's: exit code 0 same, 3 differs, 4 undecided."""
    from pt_app.core import console
    from pt_app.serving.parity import EXIT_CODES, check, table

    console.start()
    found = check(adapter, data, against, options)
    print(table(found))
    raise typer.Exit(EXIT_CODES[found.decision])
