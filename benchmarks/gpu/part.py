"""What the parts of the check share: sizes, folders, child processes, and where numbers go."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, Shape
from pt_app.core.files import write_json_atomic

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sizes:
    """How large the check is: the shapes of its bases, its rows, its steps."""

    big: Shape
    small: Shape
    rows: int
    """Training rows; a sixteenth as many again are test rows."""
    examples: int
    """Of an optimizer step where speed is measured."""
    steps: int
    """Of a timed training; the first quarter warms up."""
    attention: tuple[int, ...]
    """Tokens of the packs on which kinds of attention are compared."""
    scored: int
    answer: int
    """Tokens that `generate` writes for a row."""


FULL = Sizes(
    big=SHAPES["qwen2.5-3b"],
    small=Shape(512, 1536, 8, 8, 2, vocabulary=4096),
    rows=1024,
    examples=16,
    steps=16,
    attention=(2048, 8192),
    scored=256,
    answer=40,
)
SMOKE = Sizes(
    big=SHAPES["tiny"],
    small=Shape(64, 128, 2, 4, 2, vocabulary=4096),
    rows=48,
    examples=4,
    steps=4,
    attention=(512,),
    scored=3,
    answer=10,
)


@dataclass(frozen=True)
class Part:
    """A part of the check: its name, its size, and the folder that it shares with the others."""

    name: str
    sizes: Sizes
    smoke: bool
    work: Path

    @staticmethod
    def started(name: str) -> "Part":
        """Return the part that this process is, as its arguments say."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--smoke", action="store_true")
        given = parser.parse_args()
        return Part(name, SMOKE if given.smoke else FULL, given.smoke, given.work)

    @property
    def big(self) -> Path:
        """The folder of the large base."""
        return self.work / "big-base"

    @property
    def small(self) -> Path:
        """The folder of the small base."""
        return self.work / "small-base"

    @property
    def rows(self) -> Path:
        """The dataset folder."""
        return self.work / "rows"

    def save(self, numbers: Mapping[str, Any]) -> None:
        """Write the numbers found so far; a part that is cut off keeps its last ones."""
        write_json_atomic(self.work / f"{self.name}.json", numbers)

    def folder(self, name: str) -> Path:
        """Make a folder of this part's own."""
        made = self.work / self.name / name
        made.mkdir(parents=True, exist_ok=True)
        return made


def recipe_flags(model: Path, rows: Path, out: Path, *more: str) -> list[str]:
    """Return the recipe's flags of a run that trains and does nothing else."""
    given = {"model": model, "data_dir": rows, "output_dir": out, "max_seq_length": 1024}
    flags = [f"--{name}={value}" for name, value in given.items()]
    return [*flags, "--tracking=off", "--eval_steps=0", "--skip_eval", *more]


def start(
    arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start Python with `arguments`, its output in `log`."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def ended(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a process.

    Raises RuntimeError, with the end of what it said, where its exit code is not 0.
    """
    if code := process.wait():
        raise RuntimeError(f"exit code {code}: {last_words(log)}")


def last_words(log: Path, lines: int = 4) -> str:
    """Return the last lines of a log as one."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in said[-lines:])[-800:]
