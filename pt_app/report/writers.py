"""Write the content of a report as one HTML file, without network or scripts, and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from pt_app.core.formatting import fenced, shortened, table, visible
from pt_app.report.page import Block, Chart, Grid, Lines, Section, Texts

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def to_html(sections: Sequence[Section], warning: str) -> str:
    """Write the whole page; the template escapes every text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = [(section.title, [_prepared(block) for block in section.blocks]) for section in sections]
    return template.render(sections=page, warning=warning) + "\n"


def _prepared(block: Block) -> dict[str, object]:
    """Return what the template needs of a block."""
    match block:
        case Chart(draw, says):
            return {"kind": "chart", "svg": draw(), "says": says}
        case Grid(header, rows, heat):
            cells = [[cell.replace(", ", ",\u00a0") for cell in row] for row in rows]
            return {"kind": "grid", "header": header, "rows": cells, "shades": _shades(rows, heat)}
        case Lines(lines):
            return {"kind": "lines", "lines": lines}
        case Texts(name, says, fields):
            shown = [(field, visible(shortened(text))) for field, text in fields]
            return {"kind": "texts", "name": name, "says": says, "fields": shown}
    return {"kind": "words", "text": block.text}


def _shades(rows: Sequence[Sequence[str]], heat: bool) -> list[list[float]]:
    """Return how dark each cell of a matrix is, its share of the row; [] for other tables."""
    if not heat:
        return []
    counts = [[int(cell or 0) for cell in row[1:-1]] for row in rows]
    return [[count / max(1, sum(row)) for count in row] for row in counts]


def to_markdown(sections: Sequence[Section], warning: str) -> str:
    """Write the whole page, `warning` before anything else. Only HTML shows the charts."""
    parts = [f"**{warning}**"] if warning else []
    for level, section in enumerate(sections):
        parts.append(f"{'#' if level == 0 else '##'} {section.title}")
        parts += [_in_markdown(block) for block in section.blocks if not isinstance(block, Chart)]
    return "\n\n".join(parts) + "\n"


def _in_markdown(block: Block) -> str:
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
