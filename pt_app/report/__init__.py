"""Pages that are made of results.json and predictions.jsonl only, so that they can be rebuilt."""

from pathlib import Path

from pt_app.report.terminal import attack_table, terminal_table

__all__ = ["attack_table", "terminal_table", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html and report.md from its two files; return the path of the HTML.

    The pages of each question, of several, are in the folder of its name.

    Raises:
        UserError: if either file is missing or broken.
    """
    from pt_app.core.files import refuse_overwrite, write_text_atomic
    from pt_app.core.results import PREDICTIONS, RESULTS, read_predictions, read_results
    from pt_app.report.content import content
    from pt_app.report.page import written

    read = [folder / RESULTS, folder / PREDICTIONS]
    refuse_overwrite([folder / "report.md", folder / "report.html"], read, "the report")
    results = read_results(folder)
    for name, summary in results.questions.items():
        if summary.n:
            write_report(folder / name)
    predictions = [] if results.questions else read_predictions(folder)
    sections, warning = content(folder, results, predictions), results.leak_line()
    for page in ("report.md", "report.html"):
        write_text_atomic(folder / page, written(sections, warning, f"{page}.jinja"))
    return folder / "report.html"
