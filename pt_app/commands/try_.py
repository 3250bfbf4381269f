"""`judge try`: a row from the keyboard, and what a judge says of it."""

from pathlib import Path

from pt_app.commands.flags import command, flag


@command()
def try_(
    *,
    adapter: Path = flag("adapter folder of the judge", positional=True),
    base: str | None = flag("the adapter's base, if it was a folder or file", None),
    feedback: bool = flag("also generate issues and feedback", False),
) -> None:
    """Type or paste rows, or pipe JSON Lines in, and see verdict, distribution and confidence."""
    from pt_app.core import console
    from pt_app.eval_model.trying import try_rows
    from pt_app.judge import Judge

    console.start()
    try_rows(Judge.load(adapter, base=base), feedback)
