"""`judge data split`: which rows go to which part, and what stays where it was."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pt_app.core.dataset import SPLITS
from pt_app.core.records import JudgeExample, one_line
from pt_app.judge_data.duplicates import links
from pt_app.judge_data.groups import (
    Unit,
    place_by_time,
    place_units,
    strata_of,
    unit_of,
    units_of,
)
from pt_app.judge_data.options import SplitPlan

# Where a split by row, in which each row is its own group, keeps the group that the row had.
OWN_GROUP = "group_before_split_by_row"


@dataclass(frozen=True)
class Placement:
    """The rows of each split, and those `left_out`. `placed` counts units that got a split anew.

    `notes` say what a person should know.
    """

    splits: dict[str, list[JudgeExample]]
    left_out: Sequence[JudgeExample]
    placed: int
    notes: tuple[str, ...]


def place(
    examples: Sequence[JudgeExample],
    plan: SplitPlan,
    places: Mapping[str, str] | None = None,
    old: int = 0,
    progress: bool = False,
) -> Placement:
    """Give each row its split.

    `places` says where groups were placed before: they stay. The first `old` examples are a
    folder's own. Another row that is a duplicate of placed ones goes with them; rows through which
    two splits would share a text, or `plan.into` and another split, are left out. Raises UserError
    where the rows cannot fill the splits.
    """
    places = places or {}
    rows = [_alone(row) if plan.by == "row" else with_own_group(row) for row in examples]
    left_out: list[JudgeExample] = []
    while True:
        units = _units(rows, plan, progress)
        torn = {row for unit in units for row in _torn(rows, unit, places, old, plan.into)}
        if not torn:
            break
        # Without these rows a text may stand under so few inputs that it is boilerplate no longer.
        left_out += [rows[row] for row in sorted(torn)]
        rows, old = (
            [e for i, e in enumerate(rows) if i not in torn],
            old - sum(row < old for row in torn),
        )
    whole = [piece for unit in units for piece in _pieces(rows, unit, places)]
    placed = {u.name: places[g] for u in whole for g in sorted(u.groups) if g in places}
    where = _where(whole, rows, plan, placed)
    splits: dict[str, list[JudgeExample]] = {split: [] for split in SPLITS}
    for i, split in sorted((row, where[unit.name]) for unit in whole for row in unit.rows):
        splits[split].append(rows[i])
    notes = (
        *_notes(units, len(whole) - len(units), left_out, plan),
        *(_row_note(splits) if plan.by == "row" else ()),
        gap_line(splits),
    )
    return Placement(splits, left_out, len(whole) - len(placed), notes)


def _units(rows: Sequence[JudgeExample], plan: SplitPlan, progress: bool) -> list[Unit]:
    return units_of(rows, () if plan.by == "row" else links(rows, plan.near, progress))


def _torn(
    rows: Sequence[JudgeExample],
    unit: Unit,
    places: Mapping[str, str],
    old: int,
    into: str | None,
) -> list[int]:
    """Give the rows of a unit for which two splits would be right."""
    new = [row for row in unit.rows if row >= old or rows[row].group not in places]
    splits = {places[group] for group in unit.groups if group in places}
    if into and new:
        splits.add(into)
    return new if len(splits) > 1 else []


def _pieces(rows: Sequence[JudgeExample], unit: Unit, places: Mapping[str, str]) -> list[Unit]:
    """Part a unit that stands in several splits already, so that its groups stay there."""
    parts: dict[str | None, list[int]] = {}
    if len({places[group] for group in unit.groups if group in places}) < 2:
        return [unit]
    for row in unit.rows:
        parts.setdefault(places[rows[row].group], []).append(row)
    return [unit_of(rows, part) for part in parts.values()]


def _where(
    units: Sequence[Unit],
    rows: Sequence[JudgeExample],
    plan: SplitPlan,
    placed: Mapping[str, str],
) -> dict[str, str]:
    if plan.into:
        return {unit.name: placed.get(unit.name, plan.into) for unit in units}
    if plan.by == "time":
        return place_by_time(units, rows, plan.shares, placed)
    return place_units(units, strata_of(rows), plan.shares, plan.seed, placed)


def _notes(
    units: Sequence[Unit], pieces: int, left_out: Sequence[JudgeExample], plan: SplitPlan
) -> list[str]:
    notes = []
    groups = sum(len(unit.groups) for unit in units)
    if groups > len(units):
        largest = max(len(unit.groups) for unit in units)
        notes.append(
            f"{groups:,} groups in {len(units):,} units: near duplicates stay together "
            f"(at most {largest} groups; --near {plan.near:g})"
        )
    if left_out:
        names = ", ".join(row.id for row in left_out[:3]) + (", ..." if left_out[3:] else "")
        notes.append(
            f"{len(left_out)} rows left out, their texts would stand on two sides of the split: "
            + names
        )
    if pieces:
        notes.append(
            f"{pieces} duplicates were on two sides already and stay there: "
            "`judge data split --anew` parts them anew"
        )
    return notes


def _alone(row: JudgeExample) -> JudgeExample:
    """Make a row its own group; the one it had is kept for a split by group."""
    meta = {OWN_GROUP: row.group, **row.meta}
    return row.model_copy(update={"group": one_line(row.id), "meta": meta})


def with_own_group(row: JudgeExample) -> JudgeExample:
    """Give a row back the group that it had before a split by row."""
    if OWN_GROUP not in row.meta:
        return row
    meta = dict(row.meta)
    return row.model_copy(update={"group": meta.pop(OWN_GROUP), "meta": meta})


def _row_note(splits: Mapping[str, Sequence[JudgeExample]]) -> list[str]:
    """Say what a split by row leaks."""
    sides: dict[str, set[str]] = {}
    groups = [(row.meta[OWN_GROUP], split) for split, part in splits.items() for row in part]
    for group, split in groups:
        sides.setdefault(group, set()).add(split)
    leaked = {group for group, on in sides.items() if len(on) > 1}
    rows = sum(group in leaked for group, _ in groups)
    return [
        f"--by row leaks: {len(leaked):,} of {len(sides):,} groups ({rows:,} of {len(groups):,} "
        "rows) stand on several sides; a test on it measures memory"
    ]


def gap_line(splits: Mapping[str, Sequence[JudgeExample]]) -> str:
    """Say how far the labels of each split are from those of all rows."""
    labels = {split: _labels(part) for split, part in splits.items() if part}
    whole = _labels([row for part in splits.values() for row in part])
    gaps = [f"{split} {_gap(counts, whole):.1%}" for split, counts in labels.items()]
    return f"labels that differ from those of all rows: {', '.join(gaps)}"


def _labels(rows: Iterable[JudgeExample]) -> Counter[object]:
    return Counter(row.label.verdict if row.label else None for row in rows)


def _gap(counts: Counter[object], whole: Counter[object]) -> float:
    """Give the total variation distance of two distributions, 0 to 1."""
    n, total = counts.total(), whole.total()
    return sum(abs(counts[label] / n - whole[label] / total) for label in whole) / 2
