"""`judge score`: judge the rows of a file."""

from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.eval_model.options import ScoreOptions


@command()
def score(
    *,
    adapter: Path = flag("adapter folder of the judge"),
    input: str = flag("file of rows: CSV, TSV, JSON, JSON Lines, Parquet"),
    output: Path = flag("file to write: .jsonl, .csv or .parquet"),
    options: ScoreOptions,
) -> None:
    """Judge the rows of a file: verdict, probabilities, confidence; a killed run resumes."""
    from pt_app.core import console
    from pt_app.eval_model.score_file import score_file

    console.start()
    counts = score_file(adapter, input, output, options)
    by_status = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    print(f"{output}: {sum(counts.values()):,} rows: {by_status or 'none'}")
