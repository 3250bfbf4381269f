"""`judge export`: a judge for other engines."""

from pathlib import Path

import typer

from pt_app.commands.flags import command, flag
from pt_app.serving.options import ExportOptions, Target


@command()
def export(
    *,
    adapter: Path = flag("adapter folder of the judge", positional=True),
    to: Target = flag("what to write"),
    out: Path = flag("folder to write"),
    data: Path = flag("dataset folder, on whose test rows it is compared with the judge"),
    options: ExportOptions,
) -> None:
    """Write a judge for another engine, kept only if `judge parity` says that it is the same."""
    from pt_app.core import console
    from pt_app.serving.exporting import export as exported
    from pt_app.serving.parity import EXIT_CODES, table

    console.start()
    found = exported(adapter, to, out, data, options)
    print(table(found))
    others = f": --questions {','.join(found.kept)} would be kept" if found.kept else ""
    print(f"{out}: written" if found.decision == "same" else f"{out}: not kept{others}")
    raise typer.Exit(EXIT_CODES[found.decision])
