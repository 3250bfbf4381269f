"""The proposal of `judge init` as text: lines of 80 columns, and commands to copy."""

import itertools
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment

from pt_app.core.formatting import one_line, visible
from pt_app.judge_data.importing import Job, Tally
from pt_app.judge_data.labels import rule
from pt_app.judge_data.proposing.columns import Column

if TYPE_CHECKING:
    from pt_app.judge_data.proposing.questions import Questions

WIDTH = 80
_LABEL = 10
PAGE = Path(__file__).with_name("proposal.txt.jinja")


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


@dataclass(frozen=True)
class Proposal:
    """How a file becomes a dataset.

    Attributes:
        flags: Those of `judge data import`.
        facts: What was recognised or guessed, as the page of the proposal names it.
        job: How the rows are converted.
        rubric: That of the format, or a stub to complete; "" where rows have their own.
        missing: Fields for which no column was recognised, so that the user must complete the
            commands.
        rows: How many rows the file has.
        notes: How the file was read.
        tally: What became of its rows; None where none could be made.
        rubric_path: Where the rubric was written.
        questions: What one judge could be asked, if there are several columns of labels.
        questions_path: Where the questions were written.
        out: The dataset folder.
    """

    flags: Sequence[str]
    facts: Mapping[str, object]
    job: Job
    template: str
    rubric: str
    missing: Sequence[str] = ()
    file: str = ""
    rows: int = 0
    notes: Sequence[str] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    tally: Tally | None = None
    rubric_path: Path | None = None
    questions: "Questions | None" = None
    questions_path: Path | None = None
    lengths: Lengths | None = None
    out: str = ""

    def lines(self) -> list[str]:
        """Describe it all, in lines of 80 columns unless a name or command is longer."""
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters.update(paragraph=_paragraph, command=_command, fitted=_fitted)
        environment.filters.update(one_line=one_line, examples=_examples)
        template = environment.from_string(PAGE.read_text(encoding="utf-8"))
        found = _found_in_rows(self.tally) if self.tally else []
        text = template.render(vars(self), flags=list(self.flags), rule=rule, found=found)
        return [visible(line.rstrip()) for line in text.rstrip("\n").split("\n")]


def _found_in_rows(tally: Tally) -> list[tuple[str, str]]:
    """Describe which rows and answers cannot be used, and how labels are read."""
    counts, first = tally.dropped.counts, tally.dropped.first  # only bad rows have a first problem
    left_out = [f"{n:,} {reason}" for reason, n in counts.most_common() if reason not in first]
    bad = sum(counts[reason] for reason in first)
    problem = next(iter(first.values()), "")
    return [
        ("left out", ", ".join(left_out)),
        ("answers", "; ".join(tally.answers.as_answers())),
        ("numbers", "; ".join(tally.decisions)),
        ("unusable", f"{bad:,}, left out by --drop_bad; the first: {problem}" if bad else ""),
        ("no rows", "" if tally.kept else "no row of the file can be used"),
    ]


def _examples(column: Column) -> str:
    """Describe in a few words what a column holds."""
    many = f"{column.most} in a list: " if column.most > 1 else ""
    if column.kind == "number":
        step = f" by {column.step.normalize():f}" if column.step else ""
        return f"{many}{min(column.numbers):f} to {max(column.numbers):f}{step}"
    texts = [one_line(value[:200]) for value in column.values]
    if column.kind == "choice":
        return many + ", ".join(texts)
    return many + " ".join(f'"{text}"' for text in texts[:2])


def escaped(name: str) -> str:
    """Write the name of a column or a label as --map and --labels read it."""
    return re.sub(r"([,=+])", r"\\\1", name)


def _fitted(text: str, width: int) -> str:
    """Pad or cut to a width in cells of a terminal, of which wide characters take two."""
    from rich.text import Text

    fitted = Text(text)
    fitted.truncate(width, overflow="ellipsis", pad=True)
    return fitted.plain


def _paragraph(text: str, name: str) -> str:
    """Wrap a text behind its name."""
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * _LABEL
    return wrapper.fill(f"{name:<{_LABEL}}{text}")


def _command(words: Sequence[str]) -> str:
    """Write a command as the shell reads it, with a flag and its value together on a line."""
    line, lines = " ", []
    starts = [0, *(at for at, word in enumerate(words) if word.startswith("--")), len(words)]
    for start, end in itertools.pairwise(starts):
        part = shlex.join(words[start:end])
        if len(line) + len(part) + 3 > WIDTH and line.strip():
            lines.append(f"{line} \\")
            line = "     "
        line += f" {part}"
    return "\n".join([*lines, line])
