"""Pages that are made of results.json and predictions.jsonl only, so that they can be rebuilt."""

from pathlib import Path

from pt_app.report.terminal import attack_table, terminal_table

__all__ = ["attack_table", "terminal_table", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html and report.md from its two files; return the path of the HTML.

    Raises:
        UserError: if either file is missing or broken.
    """
    from pt_app.core.files import refuse_overwrite, write_text_atomic
    from pt_app.core.formatting import inline, leak_line, one_line
    from pt_app.evidence.results import PREDICTIONS, RESULTS
    from pt_app.report.content import content
    from pt_app.report.source import read_predictions, read_results
    from pt_app.report.writers import to_html, to_markdown

    read = [folder / RESULTS, folder / PREDICTIONS]
    refuse_overwrite([folder / "report.md", folder / "report.html"], read, "the report")
    results, predictions = read_results(folder), read_predictions(folder)
    warning = leak_line(results)
    markdown = to_markdown(content(folder, results, predictions, inline), warning)
    html = to_html(content(folder, results, predictions, one_line), warning)
    write_text_atomic(folder / "report.md", markdown)
    write_text_atomic(folder / "report.html", html)
    return folder / "report.html"
