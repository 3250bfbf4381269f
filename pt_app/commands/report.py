"""`judge report`: the pages of an evaluation."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="folder with results.json and predictions.jsonl")],
) -> None:
    """Rewrite the pages of an evaluation from its results.json and predictions.jsonl."""
    from pt_app.report import write_report

    print(f"report: {write_report(folder)}")
