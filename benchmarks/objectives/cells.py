"""What the cells of the experiment are: cells.yaml, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.objectives.measures import MEASURES
from pt_app.core.errors import UserError
from pt_app.core.records import checked
from pt_app.core.yaml_files import read_yaml

CELLS = Path(__file__).with_name("cells.yaml")
USUAL = "ce"  # the entry with which the others are compared, and which has base and baselines
Values = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Import(_Strict):
    """One `judge data import`: files below JUDGE_REAL_DATA, and its flags.

    A file of questions is named from this folder.
    """

    files: list[str]
    options: Values = Field(default_factory=dict)
    plan: Values = Field(default_factory=dict)


class Set(_Strict):
    """A set of labels of people, or a generated one.

    Attributes:
        primary: the measure by which judges are compared on it, fixed before any run; "" of a set
            of questions, on which `judge gate` compares adapters question by question.
        also: measures shown beside it.
        held_out: kinds of errors that no training row has.
        folds: split into so many by group, of which seed s tests number s + 1; 0: none.
        imports: how its folder is made; the second and later ones add to it.
        generate: flags of `judge data generate`, of a set that is not imported.
        test_rows: how many are drawn where it is not the experiment's number; 0: all.
        settings: what training on it changes.
    """

    primary: str = ""
    also: list[str] = Field(default_factory=list)
    held_out: list[str] = Field(default_factory=list)
    folds: int = 0
    imports: list[Import] = Field(default_factory=list)
    generate: Values = Field(default_factory=dict)
    test_rows: int | None = None
    settings: Values = Field(default_factory=dict)


class Entry(_Strict):
    """Cells that differ in their set and seed.

    Attributes:
        way: "judge", this project's training and reading, or "trl", SFT and the greedy answer.
        objective: weights of the losses in `losses.LOSSES`.
        orders: in which pairs are trained; the product trains both.
    """

    name: str
    sets: list[str]
    seeds: list[int]
    way: Literal["judge", "trl"] = "judge"
    objective: dict[str, float] = Field(default_factory=lambda: {"ce": 1.0})
    orders: Literal["both", "given"] = "both"
    settings: Values = Field(default_factory=dict)

    @property
    def is_usual(self) -> bool:
        """Whether what is minimized is what the product minimizes."""
        return self.objective == {"ce": 1} and self.orders == "both"


class Quick(_Strict):
    """What --quick runs, and what it changes."""

    only: list[str]
    settings: Values
    test_rows: int
    validation_rows: int


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation."""

    set: str
    entry: Entry
    seed: int
    settings: Values

    @property
    def name(self) -> str:
        """The set, the entry and the seed."""
        return f"{self.set}.{self.entry.name}.{self.seed}"


class Experiment(_Strict):
    """All cells; `test_rows` and `validation_rows` are drawn alike for every seed."""

    settings: Values
    test_rows: int
    validation_rows: int
    sets: dict[str, Set]
    cells: list[Entry]
    quick: Quick | None = None

    def all(self) -> list[Cell]:
        """Return the cells in the order in which they run."""
        return [
            Cell(name, entry, seed, {**self.settings, **self.sets[name].settings, **entry.settings})
            for entry in self.cells
            for seed in entry.seeds
            for name in entry.sets
        ]

    def named(self, patterns: Sequence[str]) -> list[Cell]:
        """Return the cells that fit one of the patterns (`ro-en.*`); all without patterns.

        Raises:
            UserError: for a pattern that fits none.
        """
        cells = self.all()
        for pattern in patterns:
            if not any(fnmatch(cell.name, pattern) for cell in cells):
                near = get_close_matches(pattern, [cell.name for cell in cells], 3, cutoff=0)
                said = f"--only {pattern} is no cell, near are {', '.join(near)}"
                remedy = f"name SET.ENTRY.SEED of the file of cells ({CELLS.name}, or --cells)"
                raise UserError(f"{said}: {remedy}")
        return [c for c in cells if not patterns or any(fnmatch(c.name, p) for p in patterns)]


def read_experiment(path: Path, quick: bool = False) -> Experiment:
    """Read a file of cells; with `quick` the short version that it describes.

    Raises:
        UserError: for a file that cannot be read, an unknown key, set or measure.
    """
    read = checked(Experiment, read_yaml(path, "is not there: name a file with --cells"), path)
    for name, each in read.sets.items():
        if unknown := {each.primary, *each.also} - {"", *MEASURES}:
            known = f"choose of {', '.join(MEASURES)}"
            raise UserError(f"{path}: set {name}: no measure {min(unknown)}: {known}")
    for entry in read.cells:
        if missing := set(entry.sets) - read.sets.keys():
            raise UserError(f"{path}: cells {entry.name}: no set {min(missing)}")
    return _shortened(read, path) if quick else read


def _shortened(whole: Experiment, path: Path) -> Experiment:
    quick = whole.quick
    if quick is None:
        raise UserError(f"{path} says nothing of a quick version: leave out --quick")
    entries = [
        Entry(**{**cell.entry.model_dump(), "sets": [cell.set], "seeds": [cell.seed]})
        for cell in whole.named(quick.only)
    ]
    changed = {
        "cells": [e.model_copy(update={"settings": e.settings | quick.settings}) for e in entries],
        "test_rows": quick.test_rows,
        "validation_rows": quick.validation_rows,
    }
    return whole.model_copy(update=changed)
