"""The proposal of `judge init` as text: lines of 80 columns, and commands to copy."""

import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pt_app.core.formatting import visible
from pt_app.judge_data.importing import Job
from pt_app.judge_data.proposing.columns import Column

WIDTH = 80
MAX_COLUMNS = 40
_NAME, _LABEL = 22, 10


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompt and answer for the tokenizer of `model`; `counted` rows were drawn."""

    model: str
    counted: int
    median: int
    p95: int
    longest: int

    @property
    def max_seq_length(self) -> int:
        """The longest row, rounded up to a multiple of 64."""
        return -(-self.longest // 64) * 64

    def line(self) -> str:
        """Describe the lengths."""
        return (
            f"prompt and answer take {self.median} (median), {self.p95} (95 %), {self.longest} "
            f"(longest) tokens of {self.model}, {self.counted:,} rows counted"
        )


@dataclass(frozen=True)
class Proposal:
    """How a file becomes a dataset.

    Attributes:
        flags: Those of `judge data import`.
        findings: What was recognised or guessed, by subject.
        job: How the rows are converted.
        rubric: That of the format, or a stub to complete; "" where rows have their own.
        missing: Fields for which no column was recognised, so that the user must complete the
            commands.
        rows: How many rows the file has.
        notes: How the file was read.
        rubric_path: Where the rubric was written.
        out: The dataset folder.
    """

    flags: Sequence[str]
    findings: Mapping[str, str]
    job: Job
    template: str
    rubric: str
    missing: Sequence[str] = ()
    file: str = ""
    rows: int = 0
    notes: Sequence[str] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    rubric_path: Path | None = None
    lengths: Lengths | None = None
    out: str = ""

    def lines(self) -> list[str]:
        """Describe it all, in lines of 80 columns unless a name or command is longer."""
        lines = [f"{self.file}: {self.rows:,} rows, {', '.join(self.notes)}", ""]
        lines += [*self._table(), ""]
        for name, text in self.findings.items():
            lines += _paragraph(name, text)
        if self.lengths:
            lines += _paragraph("lengths", self.lengths.line())
        if self.rubric:
            at = f"written to {self.rubric_path}" if self.rubric_path else "--out FILE writes it"
            lines += _paragraph("rubric", f"to complete ({at}):")
            for line in self.rubric.split("\n"):
                lines += _paragraph("", line)
        if self.missing or self.lengths:  # else no row can be used, and there is no next step
            after = f", with {' and '.join(self.missing)} put in" if self.missing else ""
            commands = (line for command in self._commands() for line in _command_lines(command))
            lines += ["", f"next{after}:", *commands]
        return [visible(line) for line in lines]

    def _commands(self) -> list[list[str]]:
        """Return the next commands as words: import, check, preview, train."""
        flags = ["--model", self.lengths.model if self.lengths else "tiny"]
        if self.lengths:
            flags += ["--max_seq_length", str(self.lengths.max_seq_length)]
        rubric = ["--rubric", str(self.rubric_path)] if self.rubric and self.rubric_path else []
        return [
            ["judge", "data", "import", self.file, "--out", self.out, *self.flags, *rubric],
            ["judge", "data", "check", self.out, *flags],
            ["judge", "data", "preview", self.out, *flags],
            ["judge", "train", "--data_dir", self.out, *flags],
        ]

    def _table(self) -> Iterator[str]:
        yield f"{'column':<{_NAME}} {'kind':<7} filled different  such as"
        for column in list(self.columns.values())[:MAX_COLUMNS]:
            filled = f"{100 * column.rows // max(1, self.rows)} %"
            name = _fitted(_line(column.name), _NAME)
            counts = f"{filled:>6} {column.distinct:>9,}"
            yield _fitted(f"{name} {column.kind:<7} {counts}  {_examples(column)}", WIDTH).rstrip()
        if len(self.columns) > MAX_COLUMNS:
            yield f"and {len(self.columns) - MAX_COLUMNS} more"


def _examples(column: Column) -> str:
    """Describe in a few words what a column holds."""
    many = f"{column.most} in a list: " if column.most > 1 else ""
    if column.kind == "number":
        step = f" by {column.step.normalize():f}" if column.step else ""
        return f"{many}{min(column.numbers):f} to {max(column.numbers):f}{step}"
    if column.kind == "choice":
        return many + ", ".join(map(_line, column.values))
    return many + " ".join(f'"{_line(value)}"' for value in column.values[:2])


def escaped(name: str) -> str:
    """Write the name of a column or a label as --map and --labels read it."""
    return re.sub(r"([,=+])", r"\\\1", name)


def _line(text: str) -> str:
    """Return a text of the file as one line, with the width that it has on a terminal."""
    return " ".join(visible(text[:200]).split())


def _fitted(text: str, width: int) -> str:
    """Pad or cut to a width in cells of a terminal, of which wide characters take two."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def _paragraph(name: str, text: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * _LABEL
    return wrapper.wrap(f"{name:<{_LABEL}}{text}")


def _command_lines(words: Sequence[str]) -> Iterator[str]:
    """Yield a command as the shell reads it, with a flag and its value together on a line."""
    line, lead = " ", "     "
    starts = [0, *(at for at, word in enumerate(words) if word.startswith("--")), len(words)]
    for start, end in itertools.pairwise(starts):
        part = shlex.join(words[start:end])
        if len(line) + len(part) + 3 > WIDTH and line.strip():
            yield f"{line} \\"
            line = lead
        line += f" {part}"
    yield line
