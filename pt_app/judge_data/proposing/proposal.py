"""What `judge init` proposes, and how it says so: 80 columns, and commands to copy."""

import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pt_app.core.wording import visible
from pt_app.judge_data.proposing.columns import Column

WIDTH = 80
MOST_COLUMNS = 40
_NAME, _LABEL = 22, 10


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompt and answer for one tokenizer. `counted` rows of the file were laid out."""

    model: str
    counted: int
    median: int
    p95: int
    longest: int
    limit: int | None = None

    @staticmethod
    def of(tokens: Sequence[int], drawn: int, model: str, limit: int | None) -> "Lengths":
        """Sum up the first `drawn` counts, a draw, and the longest of all."""
        fair = sorted(tokens[:drawn])
        at = (len(fair) * 95 - 1) // 100
        return Lengths(model, len(fair), fair[len(fair) // 2], fair[at], max(tokens), limit)

    @property
    def max_seq_length(self) -> int:
        """The longest row, up to a multiple of 64."""
        return -(-self.longest // 64) * 64

    def line(self) -> str:
        """Say the lengths, and where the model takes no more."""
        said = (
            f"prompt and answer take {self.median} (median), {self.p95} (95 %), {self.longest} "
            f"(longest) tokens of {self.model}, {self.counted:,} rows counted"
        )
        over = self.limit is not None and self.longest > self.limit
        return (
            f"{said}; the model takes {self.limit:,}: source and context will be cut"
            if over
            else said
        )


@dataclass(frozen=True)
class Proposal:
    """How a file becomes a dataset. `flags` are those of `judge data import`.

    `rows` is how many the file has, `told` what was recognised or guessed, a line for each thing;
    `missing` are the fields that no column could be told for, so that the commands do not work
    as they stand.
    """

    file: str
    rows: int
    notes: Sequence[str]
    columns: Mapping[str, Column]
    flags: Sequence[str]
    told: Mapping[str, str]
    missing: Sequence[str]
    rubric: str
    rubric_path: Path | None
    lengths: Lengths | None
    out: str

    def lines(self) -> list[str]:
        """Say it all, in lines of 80 columns where no name or command is longer."""
        lines = [f"{self.file}: {self.rows:,} rows, {', '.join(self.notes)}", ""]
        lines += [*self._table(), ""]
        for name, text in self.told.items():
            lines += _paragraph(name, text)
        if self.lengths:
            lines += _paragraph("lengths", self.lengths.line())
        if self.rubric:
            at = f"written to {self.rubric_path}" if self.rubric_path else "--out FILE writes it"
            lines += _paragraph("rubric", f"to complete ({at}):")
            for line in self.rubric.split("\n"):
                lines += _paragraph("", line)
        if self.usable:
            after = f", with {' and '.join(self.missing)} put in" if self.missing else ""
            lines += ["", f"next{after}:", *self._command_lines()]
        return [visible(line) for line in lines]

    @property
    def usable(self) -> bool:
        """Whether there is a next step: a row that can be used, or a field to name."""
        return bool(self.missing) or self.lengths is not None

    def commands(self) -> list[list[str]]:
        """Give the next commands as words: import, check, preview, train."""
        length = ["--max_seq_length", str(self.lengths.max_seq_length)] if self.lengths else []
        model = ["--model", self.lengths.model if self.lengths else "tiny"]
        rubric = ["--rubric", str(self.rubric_path)] if self.rubric and self.rubric_path else []
        return [
            ["judge", "data", "import", self.file, "--out", self.out, *self.flags, *rubric],
            ["judge", "data", "check", self.out, *model, *length],
            ["judge", "data", "preview", self.out, *model, *length],
            ["judge", "train", "--data_dir", self.out, *model, *length],
        ]

    def _command_lines(self) -> Iterator[str]:
        for command in self.commands():
            yield from command_lines(command)

    def _table(self) -> Iterator[str]:
        yield f"{'column':<{_NAME}} {'kind':<7} filled different  such as"
        for column in list(self.columns.values())[:MOST_COLUMNS]:
            share = f"{100 * column.rows // max(1, self.rows)} %"
            name = _cut(_line(column.name), _NAME)
            counts = f"{share:>6} {column.distinct:>9,}"
            yield _cut(f"{name} {column.kind:<7} {counts}  {described(column)}", WIDTH).rstrip()
        if len(self.columns) > MOST_COLUMNS:
            yield f"and {len(self.columns) - MOST_COLUMNS} more"


def described(column: Column) -> str:
    """Say in a few words what a column holds; texts may be long."""
    many = f"{column.most} in a list: " if column.most > 1 else ""
    if column.kind == "number":
        step = f" by {column.step.normalize():f}" if column.step else ""
        return f"{many}{column.low:f} to {column.high:f}{step}"
    if column.kind == "choice":
        return many + ", ".join(map(_line, column.values))
    return many + " ".join(f'"{_line(value)}"' for value in column.values[:2])


def escaped(name: str) -> str:
    """Write a column's name or a label as --map and --labels read it."""
    return re.sub(r"([,=+])", r"\\\1", name)


def _line(text: str) -> str:
    """A text of the file as one line, with the width that it will have when it is shown."""
    return " ".join(visible(text[:200]).split())


def _cut(text: str, width: int) -> str:
    """Fill or cut to a width in cells of a terminal, of which wide characters take two."""
    from rich.cells import cell_len, set_cell_size

    return (
        set_cell_size(text, width)
        if cell_len(text) <= width
        else set_cell_size(text, width - 1) + "…"
    )


def _paragraph(name: str, text: str) -> list[str]:
    indent = " " * _LABEL
    return textwrap.wrap(
        f"{name:<{_LABEL}}{text}",
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_lines(words: Sequence[str]) -> Iterator[str]:
    """Give a command as the shell reads it, a flag and its value together on a line."""
    line, lead = " ", "     "
    starts = [0, *(at for at, word in enumerate(words) if word.startswith("--")), len(words)]
    for start, end in itertools.pairwise(starts):
        part = shlex.join(words[start:end])
        if len(line) + len(part) + 3 > WIDTH and line.strip():
            yield f"{line} \\"
            line = lead
        line += f" {part}"
    yield line
