"""How numbers, tables and texts of others are written, on pages, in terminals and in messages."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from pt_app.core.results import Metric

DIGITS = 3  # two would hide differences that intervals show: 0.955 and 0.949 are both 0.95
UNDEFINED = "–"
_INVISIBLE = regex.compile(r"(?V1)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}--[\n\t]]")
MAX_TEXT = 1000  # characters of a text that a page shows

_METRICS = tomllib.loads(Path(__file__).with_name("metrics.toml").read_text(encoding="utf-8"))
NAMES: dict[str, str] = _METRICS["names"]
VERDICT_RULES: dict[str, str] = _METRICS["verdict_rules"]
ANNOTATORS: dict[str, str] = _METRICS["annotators"]
COLUMNS: dict[str, list[str]] = _METRICS["columns"]
SHOWN_WITH: dict[str, str] = _METRICS["shown_with"]
BOUNDS = {name: bound for bound, names in _METRICS["bounds"].items() for name in names}
"""By name whether a number is a correlation, a share or an error."""


def number(value: float | None) -> str:
    """Write `DIGITS` digits after the point, or a dash where undefined; never "-0.000"."""
    return UNDEFINED if value is None else f"{round(value, DIGITS) + 0.0:.{DIGITS}f}"


def interval(metric: "Metric") -> str:
    """Write `[0.834, 0.886]`; "" where no interval exists."""
    if metric.low is None or metric.high is None:
        return ""
    return f"[{number(metric.low)}, {number(metric.high)}]"


def estimate(metric: "Metric | None") -> str:
    """Write `0.861 [0.834, 0.886]`; a dash where undefined; the value alone without interval."""
    if metric is None or metric.value is None:
        return UNDEFINED
    return f"{number(metric.value)} {interval(metric)}".rstrip()


def with_n(metric: "Metric | None") -> str:
    """Write `0.861 [0.834, 0.886] (n = 40)`, or why the number is undefined, for a sentence."""
    if metric is None or metric.value is None:
        return f"undefined ({(metric and metric.reason) or 'not computed'})"
    return f"{estimate(metric)} (n = {metric.n})"


def p_value(p: float) -> str:
    """Write `= 0.031`, or `< 0.001` below that."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def visible(text: str) -> str:
    """Spell control and invisible characters out as `\\u001b`; line ends and tabs stay.

    An escape sequence of a terminal or a direction override in a candidate would otherwise change
    how the page around it reads.
    """
    return str(_INVISIBLE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text))


def one_line(text: object) -> str:
    """Write a text of others on one line, its control characters spelled out."""
    return " ".join(visible(str(text)).split())


def shortened(text: str) -> str:
    """Cut a text after `MAX_TEXT` characters and append its length."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text)} characters)"


def inline(text: object) -> str:
    """Write `text` as one line of Markdown that renders as these characters, not as markup."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!$@]|^[-+=])", r"\\\1", line)


def fenced(fields: Sequence[tuple[str, str]]) -> str:
    """Write named texts into one code block, which renders every character of them as it is.

    Lines after the first are indented, so that no text can forge a field or close the block.
    """
    width = max(len(name) for name, _ in fields) + 2
    lines = []
    for name, text in fields:
        body = visible(shortened(text)).replace("\n", "\n" + " " * width)
        lines.append(f"{name + ':':<{width}}{body}".rstrip())
    block = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{block}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], bold: bool = False) -> str:
    """Lay out a Markdown table of cells that are already safe, numbers aligned to the right.

    `bold`: the first column names the rows in bold type.
    """
    rule = ["---"] + ["---:"] * (len(header) - 1)
    rows = [[f"**{first}**", *rest] for first, *rest in rows] if bold else rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])
