"""`judge attack`: what candidates that play against a judge do to its verdicts."""

from pathlib import Path

from pt_app.commands.flags import command, flag


@command()
def attack(
    *,
    adapter: Path = flag("adapter folder of the judge"),
    data: Path = flag("dataset folder; its test rows are attacked"),
    rows: int = flag("number of test rows to attack; 0: all", 50, low=0),
    families: str = flag("families of attacks, separated by commas; default: all", ""),
    base: str | None = flag("the adapter's base, if it was a folder or file", None),
    held_out: bool = flag("use only texts that --hard_negatives does not train on", False),
    out: Path | None = flag("output folder; default: the adapter's evaluation", None),
    seed: int = flag("seed that draws the rows", 0),
) -> None:
    """Attack a judge: injected verdicts, control tokens, copies, empty and broken candidates."""
    from pt_app.core.dataset import find_folder

    find_folder(data)
    from pt_app.attack import run
    from pt_app.core import console
    from pt_app.report import attack_table, write_report

    console.start()
    names = [name.strip() for name in families.split(",") if name.strip()]
    by_question = run.attack(
        adapter, data, out, rows=rows, names=names, base=base, seed=seed, held_out=held_out
    )
    for results in by_question.values():
        console.show(attack_table(results))
    if out is None and (adapter / "evaluation" / "results.json").exists():
        print(f"report: {write_report(adapter / 'evaluation')}")
