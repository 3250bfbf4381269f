"""What a reader of labels passes on: rows on their way to a dataset folder."""

from dataclasses import dataclass
from typing import Any

from pt_app.core.records import Place

Row = dict[str, Any]
"""A row of fields or of chat, as docs/DATA.md describes them."""


@dataclass(frozen=True)
class Converted:
    """What became of one or more rows of a file: a row of the dataset, or the reason for none.

    `rows_read` is the number of rows of the file behind it, so that kept plus dropped equals read.
    """

    place: Place
    row: Row | None
    reason: str = ""
    rows_read: int = 1
