"""`judge data split`: which split each row goes to, and which rows stay where they were."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pt_app.core.dataset import SPLITS
from pt_app.core.records import JudgeExample, one_line
from pt_app.core.verdicts import Verdict
from pt_app.judge_data.card import label_counts
from pt_app.judge_data.duplicates import links
from pt_app.judge_data.groups import Unit, place_by_time, place_units, strata_of, unit_of, units_of
from pt_app.judge_data.options import SplitPlan

# A split by row makes each row a group of its own; the row's meta keeps the group it had here.
OWN_GROUP = "group_before_split_by_row"


@dataclass(frozen=True)
class Placement:
    """The rows of each split, and those `left_out`. `placed` counts units that are newly placed.

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
) -> Placement:
    """Give each row its split.

    `places` says where groups were placed before: they stay. The first `old` examples are a
    folder's own. Another row that is a duplicate of placed ones goes with them; rows through which
    two splits, or `plan.into` and another split, would share a text are left out. Raises UserError
    where the rows cannot fill the splits.
    """
    places = places or {}
    rows = [_alone(row) if plan.by == "row" else with_own_group(row) for row in examples]
    left_out: list[JudgeExample] = []
    while True:
        units = units_of(rows, () if plan.by == "row" else links(rows, plan.near))
        torn = {row for unit in units for row in _torn(rows, unit, places, old, plan.into)}
        if not torn:
            break
        # Once more: without these rows a text may occur with so few inputs that it is no longer
        # boilerplate, and links rows of two splits.
        left_out += [rows[row] for row in sorted(torn)]
        old -= sum(row < old for row in torn)
        rows = [row for i, row in enumerate(rows) if i not in torn]
    pieces = [piece for unit in units for piece in _pieces(rows, unit, places)]
    placed = {u.name: places[g] for u in pieces for g in sorted(u.groups) if g in places}
    if plan.into:
        split_of = {unit.name: placed.get(unit.name, plan.into) for unit in pieces}
    elif plan.by == "time":
        split_of = place_by_time(pieces, rows, plan.shares, placed)
    else:
        split_of = place_units(pieces, strata_of(rows), plan.shares, plan.seed, placed)
    splits: dict[str, list[JudgeExample]] = {split: [] for split in SPLITS}
    for i, split in sorted((row, split_of[unit.name]) for unit in pieces for row in unit.rows):
        splits[split].append(rows[i])
    notes = _notes(units, len(pieces) - len(units), left_out, plan)
    notes += [_row_note(splits)] if plan.by == "row" else []
    notes.append(gap_line(splits))
    return Placement(splits, left_out, len(pieces) - len(placed), tuple(notes))


def _torn(
    rows: Sequence[JudgeExample], unit: Unit, places: Mapping[str, str], old: int, into: str | None
) -> list[int]:
    """List the new rows of a unit that would have to be in two splits."""
    new = [row for row in unit.rows if row >= old or rows[row].group not in places]
    splits = {places[group] for group in unit.groups if group in places}
    if into and new:
        splits.add(into)
    return new if len(splits) > 1 else []


def _pieces(rows: Sequence[JudgeExample], unit: Unit, places: Mapping[str, str]) -> list[Unit]:
    """Divide a unit that already is in several splits, so that its groups stay there."""
    if len({places[group] for group in unit.groups if group in places}) < 2:
        return [unit]
    by_split: dict[str, list[int]] = defaultdict(list)
    for row in unit.rows:
        by_split[places[rows[row].group]].append(row)
    return [unit_of(rows, part) for part in by_split.values()]


def _notes(
    units: Sequence[Unit], pieces: int, left_out: Sequence[JudgeExample], plan: SplitPlan
) -> list[str]:
    notes = []
    if (groups := sum(len(unit.groups) for unit in units)) > len(units):
        largest = max(len(unit.groups) for unit in units)
        notes.append(
            f"{groups:,} groups in {len(units):,} units: near duplicates stay together "
            f"(at most {largest} groups; --near {plan.near:g})"
        )
    if left_out:
        names = ", ".join(row.id for row in left_out[:3]) + (", ..." if left_out[3:] else "")
        notes.append(f"{len(left_out)} rows left out, their texts would be in two splits: {names}")
    if pieces:
        notes.append(
            f"{pieces} duplicates were in two splits already and stay there: "
            "`judge data split --anew` places them again"
        )
    return notes


def _alone(row: JudgeExample) -> JudgeExample:
    """Make a row a group of its own; the group it had is kept for a split by group."""
    meta = {OWN_GROUP: row.group, **row.meta}
    return row.model_copy(update={"group": one_line(row.id), "meta": meta})


def with_own_group(row: JudgeExample) -> JudgeExample:
    """Give a row back the group that it had before a split by row."""
    if OWN_GROUP not in row.meta:
        return row
    meta = dict(row.meta)
    return row.model_copy(update={"group": meta.pop(OWN_GROUP), "meta": meta})


def _row_note(splits: Mapping[str, Sequence[JudgeExample]]) -> str:
    """Say how much a split by row leaks."""
    groups = [(row.meta[OWN_GROUP], split) for split, rows in splits.items() for row in rows]
    splits_of = Counter(group for group, _ in set(groups))
    leaked = {group for group, count in splits_of.items() if count > 1}
    rows = sum(group in leaked for group, _ in groups)
    return (
        f"--by row leaks: {len(leaked):,} of {len(splits_of):,} groups ({rows:,} of "
        f"{len(groups):,} rows) are in several splits; a test on it measures memory"
    )


def gap_line(splits: Mapping[str, Sequence[JudgeExample]]) -> str:
    """Compare the label distribution of each split with that of all rows.

    The number is their total variation distance: the least share of a split's labels that would
    have to change for the two distributions to be equal.
    """
    labels = label_counts({split: rows for split, rows in splits.items() if rows})
    whole = sum(labels.values(), Counter[Verdict | None]())
    gaps = []
    for split, own in labels.items():
        gap = sum(abs(own[v] / own.total() - whole[v] / whole.total()) for v in whole) / 2
        gaps.append(f"{split} {gap:.1%}")
    what = "labels that would have to change to match the distribution over all rows"
    return f"{what}: {', '.join(gaps)}"
