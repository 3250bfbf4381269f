"""`judge init`: propose how to make a dataset of a file of labels."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import Decimals, Delimiter, Encoding, Header, HubSplit, Quotes


def init(
    file: Annotated[
        str, typer.Argument(help="file of labels: CSV, TSV, JSON, JSON Lines, Parquet")
    ],
    model: Annotated[str, typer.Option(help="model whose tokenizer counts lengths")] = "tiny",
    encoding: Encoding = "",
    delimiter: Delimiter = "",
    quoting: Quotes = "auto",
    header: Header = "",
    decimal: Decimals = "",
    hub_split: HubSplit = "train",
    out: Annotated[
        Path | None, typer.Option(help="write a stub of the rubric to this file")
    ] = None,
) -> None:
    """Look at a file of labels; propose task, map, scale, template and the next commands."""
    from pt_app.judge_data.proposing.inspecting import inspect
    from pt_app.judge_data.reading.tables import Reading, names_of

    reading = Reading(encoding, delimiter, quoting, names_of(header), decimal, hub_split)
    print("\n".join(inspect(file, model=model, reading=reading, rubric=out).lines()))
