"""`judge agree`: the evidence about anybody's verdicts."""

from pathlib import Path

from pt_app.commands.flags import command, flag
from pt_app.eval_model.options import AgreeOptions
from pt_app.evidence.options import EvidenceOptions
from pt_app.judge_data.options import Columns, FileOptions


@command()
def agree(
    *,
    file: str = flag("CSV, TSV, JSON, JSON Lines, Parquet", positional=True),
    columns: Columns,
    out: Path | None = flag("output folder; default: FILE-evidence", None),
    options: AgreeOptions,
    evidence: EvidenceOptions,
    reading: FileOptions,
) -> None:
    """Measure anybody's verdicts against labels: agreement, baselines, annotators, biases."""
    from pt_app.core import console
    from pt_app.eval_model.agree import agree as measure
    from pt_app.report import terminal_table

    console.start()
    folder = out or Path(f"{Path(file).stem}-evidence")
    results, notes = measure(file, folder, columns, reading, options, evidence)
    for note in notes:
        print(f"note: {note}")
    console.show(terminal_table(results))
    print(f"report: {folder / 'report.html'}")
