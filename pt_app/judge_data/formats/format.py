"""What is known of a public format: how its file is read, and what its rows mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pt_app.core.records import Place
from pt_app.core.verdicts import Scale
from pt_app.judge_data.reading.tables import Reading
from pt_app.judge_data.rows import Converted

FileRows = Iterator[tuple[Place, dict[str, Any]]]


@dataclass(frozen=True)
class FormatOptions:
    """What a person may choose: how several labels become one, and the weights of MQM errors."""

    reduce: str = ""
    mqm_weights: str = "google"


@dataclass(frozen=True)
class Format:
    """A public format. `columns` are those it is recognised by; `member` names a packed file.

    `convert` gets the rows of one file and makes rows of a dataset, or says why not.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    scale: str | Callable[[FormatOptions], str]
    convert: Callable[[FileRows, Scale, FormatOptions], Iterator[Converted]]
    template: str
    rubric: str = ""
    origin: str = ""
    licence: str = ""
    member: str = ""
    reading: Reading = field(default_factory=Reading)

    def scale_of(self, options: FormatOptions) -> str:
        """Name the scale; that of MQM scores stands with their weights."""
        return self.scale if isinstance(self.scale, str) else self.scale(options)

    def fits(self, columns: tuple[str, ...]) -> bool:
        """Whether a file with these columns is of this format."""
        return set(self.columns) <= set(columns)


def stem(place: Place) -> str:
    """Give a file's name up to its first dot, for ids."""
    return place.file.name.partition(".")[0]
