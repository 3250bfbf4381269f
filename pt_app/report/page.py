"""The blocks of a page, and how a page is written: as Markdown, and as one HTML file.

Texts are lines of Markdown; `formatting.inline` escapes what is not the report's own. The HTML page
needs neither network nor scripts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from pt_app.core.formatting import (
    NAMES,
    VERDICT_RULES,
    estimate,
    fenced,
    inline,
    number,
    p_value,
    shortened,
    table,
    visible,
    with_n,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

FOLDER = Path(__file__).parent
_BETWEEN_CELLS = re.compile(r"(?<!\\)\|")  # a "|" of a text is escaped
# An escaped sign, code, or a link to a page beside this one: "[" of a text is escaped.
_MARKUP = re.compile(r"\\([^A-Za-z0-9])|`([^`]+)`|\[([\w.-]+)\]\(([\w.-]+/report\.html)\)")


class Titles(BaseModel):
    """What numbers and alarms are called: the content of titles.yaml."""

    alarms: dict[str, tuple[str, str]]
    checks: dict[str, str]
    short_names: dict[str, str]


@cache
def titles() -> Titles:
    """Read titles.yaml."""
    import yaml

    return Titles.model_validate(yaml.safe_load((FOLDER / "titles.yaml").read_text("utf-8")))


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        cells=table,
        estimate=estimate,
        fenced=fenced,
        inline=inline,
        line=_line_to_html,
        number=number,
        p_value=p_value,
        percent=lambda share: f"{100 * share:.0f} %",
        text=lambda text: visible(shortened(text)),
        with_n=with_n,
    )
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    environment.globals |= {"NAMES": NAMES, "VERDICT_RULES": VERDICT_RULES}
    environment.globals["CHECKS"] = titles().checks
    return environment


def _parts(macro: str, values: dict[str, object]) -> list[str]:
    """Fill in a macro of sentences.jinja, and return what blank lines separate in it."""
    macros = _environment().get_template("sentences.jinja").module
    return str(getattr(macros, macro)(**values)).split("\n\n")


def paragraphs(macro: str, **values: object) -> list[str]:
    """Write the paragraphs of a macro of sentences.jinja, each on one line of Markdown."""
    return [line for part in _parts(macro, values) if (line := " ".join(part.split()))]


def sentences(macro: str, **values: object) -> str:
    """Write the one paragraph of a macro of sentences.jinja; "" if it has nothing to say."""
    return " ".join(paragraphs(macro, **values))


@dataclass(frozen=True)
class Lines:
    """A list of short lines."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table whose first column names the rows. `heat`: its numbers are counts of a matrix."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: bool = False

    @property
    def shades(self) -> list[list[float]]:
        """How dark each cell of a matrix is, its share of the row; [] for other tables."""
        if not self.heat:
            return []
        counts = [[int(cell or 0) for cell in row[1:-1]] for row in self.rows]
        return [[count / max(1, sum(row)) for count in row] for row in counts]


@dataclass(frozen=True)
class Chart:
    """A picture that only HTML shows: how its SVG is drawn, and what it shows in plain words."""

    draw: Callable[[], str]
    says: str


@dataclass(frozen=True)
class Texts:
    """A row's own texts by name, below a line with its name and verdicts."""

    name: str
    says: str
    fields: Sequence[tuple[str, str]]


# A text is a paragraph.
Block = str | Lines | Grid | Chart | Texts


def blocks(macro: str, **values: object) -> list[Block]:
    """Write the paragraphs and the tables of a macro of sentences.jinja."""
    return [_block(part.strip()) for part in _parts(macro, values) if part.strip()]


def _block(part: str) -> Block:
    """Make a table of lines like `| a | b |`, whose first one is the header, else a paragraph."""
    if not part.startswith("|"):
        return " ".join(part.split())
    lines = [_BETWEEN_CELLS.split(line)[1:-1] for line in part.split("\n")]
    header, *rows = [[cell.strip() for cell in line] for line in lines]
    return Grid(header, rows)


@dataclass(frozen=True)
class Section:
    """A title and the blocks below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def written(sections: Sequence[Section], warning: str, template: str) -> str:
    """Write the whole page, `warning` before anything else.

    Args:
        sections: of the page; the first one's title is the page's.
        warning: a line of plain text; "" for none.
        template: the name of the template, report.html.jinja or report.md.jinja. The former escapes
            every text; it alone shows the charts.
    """
    page = _environment().get_template(template).render(sections=sections, warning=warning)
    return page.rstrip("\n") + "\n"


def _line_to_html(line: str) -> "Markup":
    """Render a line of Markdown that holds escaped characters and `code`, but no other markup."""
    from markupsafe import Markup, escape

    html, end = Markup(), 0
    line = unescape(line)
    for match in _MARKUP.finditer(line):
        shown = match[1] or Markup("<code>{}</code>").format(match[2])
        if match[3]:
            shown = Markup('<a href="{}">{}</a>').format(match[4], match[3])
        html += escape(line[end : match.start()]) + shown
        end = match.end()
    return html + line[end:]
