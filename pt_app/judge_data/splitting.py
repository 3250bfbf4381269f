"""`judge data split`: which rows go to which part, and what stays where it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pt_app.errors import UserError
from pt_app.eval_model.data import SPLITS
from pt_app.eval_model.records import JudgeExample
from pt_app.judge_data.duplicates import NEAR
from pt_app.judge_data.groups import Unit, place_by_time, place_units, strata_of, units_of


@dataclass(frozen=True)
class SplitPlan:
    """How to split: see `judge data split --help`. `into` puts all new rows into one split."""

    by: Literal["group", "time", "row"] = "group"
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    near: float = NEAR
    into: str | None = None
    folds: int = 0
    anew: bool = False

    @staticmethod
    def of(
        *,
        by: Literal["group", "time", "row"] = "group",
        ratios: str = "0.8,0.1,0.1",
        seed: int = 0,
        near: float = NEAR,
        into: str | None = None,
        folds: int = 0,
        anew: bool = False,
    ) -> "SplitPlan":
        """Read the flags; raises UserError for ratios or folds that make no split."""
        try:
            train, val, test = (float(part) for part in ratios.split(","))
        except ValueError as error:
            raise UserError(f"--ratios {ratios}: write three numbers, as 0.8,0.1,0.1") from error
        if (
            min(train, val, test) < 0
            or train <= 0
            or test <= 0
            or train + val + test == float("inf")
        ):
            raise UserError(f"--ratios {ratios}: train and test need a share above 0")
        if folds and not 2 <= folds <= 100:
            raise UserError(f"--folds {folds}: choose 2 to 100")
        if folds and by == "time":
            raise UserError("--folds mixes times: leave out --by time or --folds")
        return SplitPlan(by, (train, val, test), seed, near, into, folds, anew)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each split, train first."""
        return dict(zip(SPLITS, self.ratios, strict=True))


@dataclass(frozen=True)
class Placement:
    """Where each row goes; None for one that is left out. `notes` say what a person should know."""

    split_of: Sequence[str | None]
    examples: Sequence[JudgeExample]
    notes: tuple[str, ...]


def place(
    examples: Sequence[JudgeExample],
    old: Sequence[str | None],
    plan: SplitPlan,
    progress: bool = False,
) -> Placement:
    """Say for each row its split. `old` is where a row's group was placed before, or None.

    A new row that is a duplicate of placed rows goes with them; one that would stand on two sides
    (of two splits, or of `plan.into` and another) is left out, and noted.
    """
    if plan.by == "row":
        return _by_row(examples, plan)
    units = units_of(examples, plan.near, progress)
    told = {unit.name: {old[row] for row in unit.rows} - {None} for unit in units}
    mixed = [unit for unit in units if len(told[unit.name]) > 1]
    torn = [unit for unit in units if plan.into and told[unit.name] - {plan.into}]
    apart = {unit.name for unit in (*mixed, *torn)}
    placed = {name: next(iter(splits)) for name, splits in told.items() if splits}
    whole = [unit for unit in units if unit.name not in apart]
    where = _places(whole, examples, plan, {k: str(v) for k, v in placed.items()})
    split_of: list[str | None] = [None] * len(examples)
    for unit in units:
        for row in unit.rows:
            split_of[row] = old[row] if unit.name in apart else where[unit.name]
    return Placement(split_of, examples, tuple(_notes(units, split_of, len(mixed), plan)))


def _places(
    units: Sequence[Unit],
    examples: Sequence[JudgeExample],
    plan: SplitPlan,
    placed: Mapping[str, str],
) -> dict[str, str]:
    if plan.into:
        return {unit.name: plan.into for unit in units}
    if plan.by == "time":
        return place_by_time(units, examples, plan.shares)
    return place_units(units, strata_of(examples), plan.shares, plan.seed, placed)


def _notes(
    units: Sequence[Unit], split_of: Sequence[str | None], mixed: int, plan: SplitPlan
) -> list[str]:
    notes = []
    groups = len({group for unit in units for group in unit.groups})
    if groups > len(units):
        largest = max(len(unit.groups) for unit in units)
        notes.append(
            f"{groups:,} groups in {len(units):,} units: near duplicates stay together "
            f"(at most {largest} groups; --near {plan.near:g})"
        )
    if out := sum(split is None for split in split_of):
        notes.append(f"{out} rows left out: they would stand on two sides of the split")
    if mixed:
        notes.append(
            f"{mixed} units were on two sides already and stay there: `judge data split --anew` "
            "parts them anew"
        )
    return notes


def _by_row(examples: Sequence[JudgeExample], plan: SplitPlan) -> Placement:
    """Split rows as if they were independent, and say what that leaks."""
    rows = [
        Unit(example.id, (row,), frozenset([example.id])) for row, example in enumerate(examples)
    ]
    where = place_units(rows, strata_of(examples), plan.shares, plan.seed)
    split_of = [where[example.id] for example in examples]
    sides: dict[str, set[str]] = {}
    for example, split in zip(examples, split_of, strict=True):
        sides.setdefault(example.group, set()).add(split)
    leaked = {group for group, splits in sides.items() if len(splits) > 1}
    rows_of = sum(example.group in leaked for example in examples)
    note = (
        f"--by row leaks: {len(leaked)} of {len(sides)} groups ({rows_of} of {len(examples)} rows) "
        "stand on several sides; a test on it measures memory"
    )
    own = [example.model_copy(update={"group": example.id}) for example in examples]
    return Placement(split_of, own, (note,))


def fold_plan(plan: SplitPlan) -> tuple[SplitPlan, dict[str, float]]:
    """Give the plan of the folds' parts: equal shares, nothing placed."""
    return replace(plan, into=None), {str(fold): 1.0 for fold in range(1, plan.folds + 1)}
