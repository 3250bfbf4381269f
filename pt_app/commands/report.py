"""`judge report`: the pages of an evaluation."""

from pathlib import Path

from pt_app.commands.flags import command, flag


@command()
def report(
    *, folder: Path = flag("folder with results.json and predictions.jsonl", positional=True)
) -> None:
    """Rewrite the pages of an evaluation from its results.json and predictions.jsonl."""
    from pt_app.report import write_report

    print(f"report: {write_report(folder)}")
