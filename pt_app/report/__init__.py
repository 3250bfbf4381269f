"""Pages made from results.json and predictions.jsonl alone, so that they can be rebuilt."""

from pt_app.report.markdown import write_report
from pt_app.report.terminal import terminal_table

__all__ = ["terminal_table", "write_report"]
