"""What is known of a public format: how its file is read, and what its rows mean."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked_dataclass

from pt_app.core.records import Place
from pt_app.core.verdicts import Scale, Verdict
from pt_app.judge_data.labels import reduce
from pt_app.judge_data.options import FormatOptions, Reading
from pt_app.judge_data.reading.files import is_archive
from pt_app.judge_data.reading.tables import Rows, Table, open_table
from pt_app.judge_data.rows import Converted, Row

BY_WEIGHTS = "by mqm_weights"


Convert = Callable[[Rows, Scale, FormatOptions], Iterator[Converted]]
Combine = Callable[[Sequence[Verdict]], Verdict]


@checked_dataclass(frozen=True)
class Format:
    """A public format, as formats.yaml describes it.

    Attributes:
        columns: The columns by which it is recognised.
        scale: The name of its scale, or `BY_WEIGHTS`.
        convert: Makes rows of a dataset from the rows of one file, or says why not.
        member: The member of an archive that holds the rows.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    scale: str
    convert: Convert
    template: str
    rubric: str = ""
    origin: str = ""
    licence: str = ""
    member: str = ""
    reading: Reading = Reading()

    def scale_of(self, options: FormatOptions) -> str:
        """Return the name of the scale; that of MQM scores depends on the weights."""
        from pt_app.judge_data.formats.mqm import Weights  # it imports this module

        by_weights = self.scale == BY_WEIGHTS
        return Weights.load(options.mqm_weights).scale if by_weights else self.scale

    def fits(self, columns: tuple[str, ...]) -> bool:
        """Return whether a file with these columns is of this format."""
        return set(self.columns) <= set(columns)

    def open(self, file: str, reading: Reading) -> Table:
        """Open a file of this format; the settings of `reading` overrule what is known of it."""
        if self.member and "::" not in file and is_archive(Path(file)):
            file = f"{file}::{self.member}"
        return open_table(file, replace(self.reading, **reading.given()))


def row_by_row(row_of: Callable[[Place, dict[str, Any], Combine], Row | str]) -> Convert:
    """Make the `convert` of a format whose rows stand for themselves.

    Args:
        row_of: Returns a row of the dataset, or the reason for none. It gets the place and the
            cells of a row, and the function that combines the labels of several annotators.
    """

    def convert(rows: Rows, scale: Scale, options: FormatOptions) -> Iterator[Converted]:
        def combine(verdicts: Sequence[Verdict]) -> Verdict:
            return reduce(verdicts, scale, options.reduce)

        for place, value in rows:
            made = row_of(place, value, combine)
            yield Converted(place, None, made) if isinstance(made, str) else Converted(place, made)

    return convert


def meaning(value: dict[str, Any], column: str, meanings: dict[str, Any], place: Place) -> Any:
    """Return what a label of a format means; raise RowError for one that the format does not have.

    Labels are compared as texts, so that 1 and "1" are alike.
    """
    cell = str(value[column])
    if cell not in meanings:
        raise place.error(column, f"{cell!r} is none of {', '.join(meanings)}", "correct it")
    return meanings[cell]


def stem(place: Place) -> str:
    """Return the name of a file up to its first dot, for ids."""
    return place.file.name.partition(".")[0]
