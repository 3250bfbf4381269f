"""`judge attack`: what candidates that play against a judge do to its verdicts."""

from pathlib import Path
from typing import Annotated

import typer


def attack(
    adapter: Annotated[Path, typer.Option(help="adapter folder of the judge")],
    data: Annotated[Path, typer.Option(help="dataset folder; its test rows are attacked")],
    rows: Annotated[int, typer.Option(min=0, help="number of test rows to attack; 0: all")] = 50,
    families: Annotated[
        str, typer.Option(help="families of attacks, separated by commas; default: all")
    ] = "",
    base: Annotated[str | None, typer.Option(help="the adapter's base, if it was a folder")] = None,
    held_out: Annotated[
        bool,
        typer.Option("--held_out", help="use only texts that --hard_negatives does not train on"),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="output folder; default: the adapter's evaluation")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed that draws the rows")] = 0,
) -> None:
    """Attack a judge: injected verdicts, control tokens, copies, empty and broken candidates."""
    from pt_app.core.dataset import find_folder

    find_folder(data)
    from pt_app.attack import run
    from pt_app.core import console
    from pt_app.report import attack_table, write_report

    console.start()
    names = [name.strip() for name in families.split(",") if name.strip()]
    results = run.attack(
        adapter, data, out, rows=rows, names=names, base=base, seed=seed, held_out=held_out
    )
    console.show(attack_table(results))
    if out is None and (adapter / "evaluation" / "results.json").exists():
        print(f"report: {write_report(adapter / 'evaluation')}")
