"""`judge init`: propose how to make a dataset of a file of labels."""

from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.judge_data.options import Reading


@command()
def init(
    *,
    file: str = flag("file of labels: CSV, TSV, JSON, JSON Lines, Parquet", positional=True),
    model: str = flag("model of the proposed commands; its tokenizer counts lengths", "tiny"),
    reading: Reading,
    out: Path | None = flag("write a stub of the rubric to this file", None),
    questions: Path | None = flag(
        "write questions for several columns of labels to this file", None
    ),
) -> None:
    """Look at a file of labels; propose task, map, scale, template and the next commands."""
    from pt_app.judge_data.proposing.inspecting import inspect

    found = inspect(file, model=model, reading=reading, rubric=out, questions=questions)
    print("\n".join(found.lines()))
