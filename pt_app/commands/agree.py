"""`judge agree`: the evidence about anybody's verdicts."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import TargetAccuracy

FileArgument = Annotated[str, typer.Argument(help="CSV, TSV, JSON, JSON Lines, Parquet")]
Label = Annotated[str, typer.Option(help="column of the labels; an empty cell is not labelled")]
Verdict = Annotated[
    str, typer.Option(help="column of the verdicts; an empty cell is a parse failure")
]
Out = Annotated[Path | None, typer.Option(help="output folder; default: FILE-evidence")]
Scale = Annotated[str, typer.Option(help="0-10, 1-5, pass_fail, pairwise ...")]
Id = Annotated[str, typer.Option(help="column that identifies a row")]
Group = Annotated[str, typer.Option(help="column of the source, whose rows depend on each other")]
Judge = Annotated[str, typer.Option(help="column of the name of the judge, if there are several")]
Probabilities = Annotated[
    str, typer.Option(help="column of the verdicts' probabilities, in the order of the scale")
]
Annotators = Annotated[str, typer.Option(help="column of all annotators' labels, as a list")]
Swapped = Annotated[str, typer.Option(help="column of the verdict on the swapped pair")]
Candidate = Annotated[str, typer.Option(help="column of the judged text; two of a pair: A,B")]
Reference = Annotated[str, typer.Option(help="column of the reference")]
Source = Annotated[str, typer.Option(help="column of the source text")]
System = Annotated[str, typer.Option(help="column of the system that wrote the candidate")]
Slice = Annotated[list[str] | None, typer.Option(help="column to report separate numbers for")]
Train = Annotated[str, typer.Option(help="file of labelled rows to fit the baselines on")]
Tolerance = Annotated[
    float | None, typer.Option(help="distance that counts as correct (1; on short scales 0)")
]
MissedFail = Annotated[float, typer.Option("--missed_fail", min=0, help="cost of passing a FAIL")]
FalseAlarm = Annotated[float, typer.Option("--false_alarm", min=0, help="cost of failing a PASS")]
Metric = Annotated[
    bool, typer.Option("--metric", help="the verdicts are a metric's scores, of any range")
]
LowerIsBetter = Annotated[
    bool, typer.Option("--lower_is_better", help="lower scores of such a metric are better")
]
Validation = Annotated[
    str, typer.Option(help="file of rows to fit the map from such scores to verdicts")
]
Encoding = Annotated[str, typer.Option(help="encoding of the file, if it is not UTF-8")]
Labels = Annotated[
    str, typer.Option(help="meaning of labels and verdicts: yes=PASS,no=FAIL,unsure= (no label)")
]
Only = Annotated[list[str] | None, typer.Option(help="column=value of the rows to measure")]
Decimal = Annotated[str, typer.Option(help="decimal separator of the file: point or comma")]


def agree(
    file: FileArgument,
    label: Label,
    verdict: Verdict,
    out: Out = None,
    scale: Scale = "",
    id: Id = "",
    group: Group = "",
    judge: Judge = "",
    probabilities: Probabilities = "",
    annotators: Annotators = "",
    swapped: Swapped = "",
    candidate: Candidate = "",
    reference: Reference = "",
    source: Source = "",
    system: System = "",
    slice: Slice = None,
    train: Train = "",
    target_accuracy: TargetAccuracy = 0.9,
    tolerance: Tolerance = None,
    missed_fail: MissedFail = 1.0,
    false_alarm: FalseAlarm = 1.0,
    metric: Metric = False,
    lower_is_better: LowerIsBetter = False,
    validation: Validation = "",
    encoding: Encoding = "",
    labels: Labels = "",
    only: Only = None,
    decimal: Decimal = "",
) -> None:
    """Measure anybody's verdicts against labels: agreement, baselines, annotators, biases."""
    from pt_app.core import console
    from pt_app.eval_model.agree import agree as measure
    from pt_app.evidence.judge_numbers import Asked
    from pt_app.judge_data import verdict_files
    from pt_app.report import terminal_table

    console.start()
    one, _, two = candidate.partition(",")
    columns = verdict_files.Columns(
        label=label,
        verdict=verdict,
        id=id,
        group=group,
        judge=judge,
        system=system,
        probabilities=probabilities,
        annotators=annotators,
        swapped=swapped,
        candidate="" if two else one,
        candidates=(one, two) if two else (),
        reference=reference,
        source=source,
        slices=tuple(slice or ()),
    )
    folder = out or Path(f"{Path(file).stem}-evidence")
    asked = Asked(target_accuracy, tolerance, missed_fail, false_alarm)
    reading = verdict_files.FileOptions(encoding, labels, tuple(only or ()), decimal)
    results, notes = measure(
        file,
        folder,
        columns,
        reading,
        asked,
        scale=scale,
        train=train,
        by_rank=metric,
        lower_is_better=lower_is_better,
        validation=validation,
    )
    for note in notes:
        print(f"note: {note}")
    console.show(terminal_table(results))
    print(f"report: {folder / 'report.html'}")
