"""`judge combine`: several questions into one."""

from pathlib import Path

from pt_app.commands.flags import command, flag


@command()
def combine(
    *,
    adapter: Path = flag("adapter folder of a judge of several questions"),
    data: Path = flag("dataset folder: weights are fitted on its validation rows"),
    question: str = flag("question to predict from the others"),
    of: str = flag("questions to combine, separated by commas; default: all others", ""),
    base: str | None = flag("the adapter's base, if it was a folder or file", None),
    rows: int = flag("number of rows of each split; 0: all", 0, low=0),
    out: Path | None = flag("output folder; default: the adapter's evaluation", None),
) -> None:
    """Fit what a judge's answers to other questions say of one, and compare it with asking that."""
    from pt_app.core import console
    from pt_app.core.dataset import find_folder
    from pt_app.eval_model.combining import combine_questions
    from pt_app.evidence.combining import lines

    find_folder(data)
    console.start()
    names = [name.strip() for name in of.split(",") if name.strip()]
    found = combine_questions(adapter, data, question, out, of=names, base=base, rows=rows)
    print("\n".join(lines(found)))
