"""`judge gate`: whether a new judge is worse than the one in use; for CI."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.core.errors import UserError


def gate(
    folders: Annotated[
        list[Path],
        typer.Argument(help="evaluation folder of the judge in use, then that of the new one"),
    ],
    margin: Annotated[float, typer.Option(min=0, help="allowed loss of agreement")] = 0.02,
    floor: Annotated[
        float | None, typer.Option(help="minimum agreement; required if only one folder is given")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="minimum number of rows for a decision")] = 100,
    parse_failures: Annotated[
        float, typer.Option("--parse_failures", min=0, max=1, help="maximum fraction")
    ] = 0.02,
    unscored: Annotated[float, typer.Option(min=0, max=1, help="maximum fraction")] = 0.02,
    abstentions: Annotated[
        float, typer.Option(min=0, max=1, help="maximum fraction below the confidence threshold")
    ] = 1.0,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML to this file")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="write a Markdown table to this file")
    ] = None,
) -> None:
    """Decide whether a new judge is worse: exit code 0 no, 3 yes, 4 undecided."""
    from pt_app.core.files import refuse_overwrite, write_text_atomic
    from pt_app.evidence.gate import EXIT_CODES, Limits, decide, to_junit, to_markdown
    from pt_app.evidence.gate import gate as checked
    from pt_app.evidence.results import PREDICTIONS, RESULTS
    from pt_app.report.source import read_judged

    if len(folders) > 2 or (len(folders) == 1 and floor is None):
        raise UserError("name two evaluation folders, or one and --floor")
    read = [folder / name for folder in folders for name in (RESULTS, PREDICTIONS)]
    for flag, written in (("--junit", junit), ("--markdown", markdown)):
        refuse_overwrite([written] if written else [], read, flag)
    new, before = read_judged(folders[-1]), read_judged(folders[0]) if len(folders) == 2 else None
    limits = Limits(margin, floor, rows, parse_failures, unscored, abstentions)
    checks = checked(new, before, limits)
    decision = decide(checks)
    for check in checks:
        print(f"{check.decision:10} {check.name}: {check.why}")
    print(f"gate: {decision}")
    for file, text in ((junit, to_junit), (markdown, to_markdown)):
        if file:
            write_text_atomic(file, text(checks, f"judge gate {new.name}"))
    raise typer.Exit(EXIT_CODES[decision])
