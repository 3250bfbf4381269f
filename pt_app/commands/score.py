"""`judge score`: judge the rows of a file."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import ScorePrecision, check_precision


def score(
    adapter: Annotated[Path, typer.Option(help="adapter folder of the judge")],
    input: Annotated[str, typer.Option(help="file of rows: CSV, TSV, JSON, JSON Lines, Parquet")],
    output: Annotated[Path, typer.Option(help="file to write: .jsonl, .csv or .parquet")],
    map: Annotated[
        list[str] | None, typer.Option(help="field=column pairs, separated by commas")
    ] = None,
    base: Annotated[str | None, typer.Option(help="the adapter's base, if it was a folder")] = None,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="also generate issues and feedback")
    ] = False,
    score_precision: ScorePrecision = "float32",
    shard: Annotated[
        str, typer.Option(help="score one shard of the rows: 1/8 is the first of eight")
    ] = "1/1",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps")] = "cpu",
    encoding: Annotated[str, typer.Option(help="encoding of the input, if it is not UTF-8")] = "",
) -> None:
    """Judge the rows of a file: verdict, probabilities, confidence; a killed run resumes."""
    from pt_app.core import console
    from pt_app.eval_model.score_file import ScoreOptions, Shard, score_file

    console.start()
    options = ScoreOptions(
        map=map or (),
        encoding=encoding,
        base=base,
        feedback=feedback,
        precision=check_precision(score_precision),
        device=device,
        shard=Shard.parse(shard),
    )
    counts = score_file(adapter, input, output, options)
    said = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    print(f"{output}: {sum(counts.values()):,} rows: {said or 'none'}")
