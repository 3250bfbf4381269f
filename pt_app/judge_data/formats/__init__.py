"""Public formats by name: what `judge data import --format NAME` reads."""

import difflib
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.records import Place
from pt_app.judge_data.formats.format import Combine, Format, FormatOptions, row_by_row
from pt_app.judge_data.formats.mqm import WMT_MQM
from pt_app.judge_data.formats.public import DEMETR, LLMBAR, MLQE_PE, PANDALM, PARACRAWL
from pt_app.judge_data.rows import Row

__all__ = ["CHAT", "FORMATS", "Format", "FormatOptions", "fitting", "get"]


@row_by_row
def _as_they_are(place: Place, value: dict[str, Any], combine: Combine) -> Row | str:
    return value


CHAT = Format(
    name="chat",
    about="rows of fields or of chat, as docs/DATA.md describes them",
    columns=(),
    scale="",  # rows of any scale
    convert=_as_they_are,
    template="translation",
)
FORMATS = {one.name: one for one in (MLQE_PE, WMT_MQM, PANDALM, LLMBAR, DEMETR, PARACRAWL, CHAT)}


def get(name: str) -> Format:
    """Return the format of that name; raise UserError for an unknown one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--format {name} is unknown, the nearest is {near}: use {', '.join(FORMATS)}, or --map"
        )
    return FORMATS[name]


def fitting(columns: tuple[str, ...]) -> list[Format]:
    """Return the formats that a file with these columns may be of."""
    return [one for one in FORMATS.values() if one.columns and one.fits(columns)]
