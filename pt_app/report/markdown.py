"""report.md: the report's content as Markdown."""

from collections.abc import Sequence

from pt_app.core.formatting import fenced, table
from pt_app.report.page import Block, Chart, Grid, Lines, Section, Texts


def to_markdown(sections: Sequence[Section], warning: str) -> str:
    """Write the whole page, `warning` before anything else. Only HTML shows the charts."""
    parts = [f"**{warning}**"] if warning else []
    for level, section in enumerate(sections):
        parts.append(f"{'#' if level == 0 else '##'} {section.title}")
        parts += [_block(block) for block in section.blocks if not isinstance(block, Chart)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Grid(header, rows, heat):
            bold = [[f"**{first}**", *rest] if heat else [first, *rest] for first, *rest in rows]
            return table(header, bold)
        case Lines(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Texts(name, says, fields):
            head = f"**{name}**: {says}"
            return f"{head}\n\n{fenced(fields)}" if fields else head
        case Chart():
            return ""
    return block.text
