"""Public formats by name: what `judge data import --format NAME` reads."""

import difflib
from collections.abc import Iterator

from pt_app.core.errors import UserError
from pt_app.core.verdicts import Scale
from pt_app.judge_data.formats.format import FileRows, Format, FormatOptions
from pt_app.judge_data.formats.mqm import WMT_MQM
from pt_app.judge_data.formats.pairs import LLMBAR, PANDALM
from pt_app.judge_data.formats.translations import DEMETR, MLQE_PE, PARACRAWL
from pt_app.judge_data.rows import Converted

__all__ = ["FORMATS", "FileRows", "Format", "FormatOptions", "get"]


def _as_they_are(rows: FileRows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
    for place, value in rows:
        yield Converted(place, value)


CHAT = Format(
    name="chat",
    about="rows of fields or of chat, as docs/DATA.md describes them",
    columns=(),
    scale="0-10",
    convert=_as_they_are,
    template="translation",
)
FORMATS = {one.name: one for one in (MLQE_PE, WMT_MQM, PANDALM, LLMBAR, DEMETR, PARACRAWL, CHAT)}


def get(name: str) -> Format:
    """Give the format of that name; raises UserError for an unknown one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--format {name} is unknown, the nearest is {near}: use {', '.join(FORMATS)}, or --map"
        )
    return FORMATS[name]
