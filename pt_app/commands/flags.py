"""Flags that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pt_app.core import streams
from pt_app.core.errors import UserError

PRECISIONS = ("float32", "bf16", "int8")

Lexicons = Literal["full", "small"]
Tasks = Literal["score", "pairwise", "pass_fail"]
SplitBy = Literal["group", "time", "row"]
Splits = Literal["train", "val", "test"]
Encoding = Annotated[
    str, typer.Option(help="encoding of the file, if it is not UTF-8: cp1252, ...")
]
Delimiter = Annotated[str, typer.Option(help="delimiter of a CSV file, if it is not recognised")]
Quotes = Annotated[
    Literal["auto", "on", "off"], typer.Option(help="whether quote marks enclose fields")
]
Header = Annotated[
    str, typer.Option(help="column names, separated by commas, for a file without a header")
]
Decimals = Annotated[
    Literal["", "point", "comma"],
    typer.Option(help="decimal separator, for a column that can be read both ways"),
]
HubSplit = Annotated[str, typer.Option("--hub_split", help="split of a Hub dataset")]
Folder = Annotated[Path, typer.Argument(help="dataset folder")]
Model = Annotated[
    str, typer.Option(help="model whose tokenizer counts tokens: hub id, folder, or tiny")
]
Ratios = Annotated[str, typer.Option(help="fractions of the rows for train, val and test")]
Near = Annotated[
    float,
    typer.Option(help="fraction of shared words from which texts are near duplicates; 1: off"),
]
TargetAccuracy = Annotated[
    float, typer.Option("--target_accuracy", min=0.01, max=0.999, help="accuracy to reach")
]
ScorePrecision = Annotated[
    str, typer.Option("--score_precision", help="float32 (exact), bf16, int8")
]
RecipeName = Annotated[
    Literal["cpu", "mps", "cuda"],
    typer.Option(help="whose settings and packages; cpu: those of mps, which also trains on a CPU"),
]


def check_precision(value: str) -> str:
    """Return `value`; raises UserError if it is no score precision."""
    if value not in PRECISIONS:
        raise UserError(f"--score_precision {value}: must be one of {', '.join(PRECISIONS)}")
    return value


def _alone(context: typer.Context, asked: bool) -> bool:
    if asked:
        context.call_on_close(streams.only_json())
    return asked


Json = Annotated[
    bool, typer.Option("--json", callback=_alone, help="print JSON on stdout, and nothing else")
]
