"""Public formats by name: what `judge data import --format NAME` reads.

`formats.yaml` describes them, and `public` and `mqm` convert their rows.
"""

import difflib
from pathlib import Path

import yaml

from pt_app.core.errors import UserError
from pt_app.judge_data.formats import mqm, public
from pt_app.judge_data.formats.format import Format

__all__ = ["CHAT", "FORMATS", "Format", "fitting", "get"]

CONVERT = {
    "mlqe-pe": public.mlqe_pe,
    "wmt-mqm": mqm.wmt_mqm,
    "pandalm": public.pandalm,
    "llmbar": public.llmbar,
    "demetr": public.demetr,
    "paracrawl-human": public.paracrawl,
    "chat": public.as_they_are,
}
_FILE = Path(__file__).with_name("formats.yaml")
_ABOUT = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
FORMATS = {name: Format(name, convert=CONVERT[name], **about) for name, about in _ABOUT.items()}
CHAT = FORMATS["chat"]


def get(name: str) -> Format:
    """Return the format of that name; raise UserError for an unknown one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
        use = f"use {', '.join(FORMATS)}, or --map"
        raise UserError(f"--format {name} is unknown, the nearest is {near}: {use}")
    return FORMATS[name]


def fitting(columns: tuple[str, ...]) -> list[Format]:
    """Return the formats that a file with these columns may be of."""
    return [fmt for fmt in FORMATS.values() if fmt.columns and fmt.fits(columns)]
