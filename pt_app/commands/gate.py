"""`judge gate`: whether a new judge is worse than the one in use; for CI."""

from collections.abc import Sequence
from pathlib import Path

import typer

from pt_app.commands.flags import command, flag
from pt_app.core.errors import UserError
from pt_app.evidence.options import Limits


@command()
def gate(
    *,
    folders: Sequence[Path] = flag(
        "evaluation folder of the judge in use, then that of the new one", positional=True
    ),
    limits: Limits,
    junit: Path | None = flag("write JUnit XML to this file", None),
    markdown: Path | None = flag("write a Markdown table to this file", None),
) -> None:
    """Decide whether a new judge is worse: exit code 0 no, 3 yes, 4 undecided."""
    from pt_app.core.files import refuse_overwrite, write_text_atomic
    from pt_app.core.results import PREDICTIONS, RESULTS
    from pt_app.evidence.gate import EXIT_CODES, decide, gate_folders, to_junit, to_markdown

    if len(folders) > 2 or (len(folders) == 1 and limits.floor is None):
        raise UserError("name two evaluation folders, or one and --floor")
    read = [folder / name for folder in folders for name in (RESULTS, PREDICTIONS)]
    for flag_name, written in (("--junit", junit), ("--markdown", markdown)):
        refuse_overwrite([written] if written else [], read, flag_name)
    checks = gate_folders(folders, limits)
    decision = decide(checks)
    for check in checks:
        print(f"{check.decision:10} {check.name}: {check.why}")
    print(f"gate: {decision}")
    for file, text in ((junit, to_junit), (markdown, to_markdown)):
        if file:
            write_text_atomic(file, text(checks, f"judge gate {folders[-1]}"))
    raise typer.Exit(EXIT_CODES[decision])
