"""`judge data split`: which rows stay together, and which split they go to."""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import accumulate

from pt_app.core.dataset import SPLITS, members_of
from pt_app.core.errors import UserError
from pt_app.core.leaks import input_text
from pt_app.core.records import JudgeExample, one_line
from pt_app.core.verdicts import Verdict
from pt_app.core.words import normalised
from pt_app.judge_data.duplicates import links
from pt_app.judge_data.options import SplitPlan

# Up to this many different labels are balanced one by one, more of them by quantiles.
MAX_STRATA = 12
QUANTILES = 5
UNLABELLED, ALL_ROWS = -1, -2
# The smallest expected count: a tiny share times the rows may underflow to 0, and it is divided by.
MIN_TARGET = 1e-9
# A split by row makes each row a group of its own; the row's meta keeps the group it had here.
OWN_GROUP = "group_before_split_by_row"


@dataclass(frozen=True)
class Unit:
    """Rows, by their positions, that no split may divide. `name` is the first of their groups."""

    name: str
    rows: tuple[int, ...]
    groups: frozenset[str]


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
        units = units_of(rows, () if plan.by == "row" else links_of(rows, plan.near))
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


# --- units ---


def group_of(example: JudgeExample) -> str:
    """Name the group of a row that has none: a hash of what is judged against, normalised."""
    return _hash(normalised(input_text(example)))[:12]


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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


def links_of(examples: Sequence[JudgeExample], near: float) -> list[tuple[int, int]]:
    """Return the positions of near duplicates; the examples of a row have one text."""
    firsts = [own[0] for own in members_of(examples)]
    found = links([examples[row] for row in firsts], near)
    return [(firsts[a], firsts[b]) for a, b in found]


def units_of(examples: Sequence[JudgeExample], links: Iterable[tuple[int, int]] = ()) -> list[Unit]:
    """Join the rows of one group, and those that `links` connect by their positions."""
    from scipy.cluster.hierarchy import DisjointSet  # half a second, which flags need not wait for

    together = DisjointSet(range(len(examples)))
    first: dict[str, int] = {}
    for row, example in enumerate(examples):
        together.merge(first.setdefault(example.group, row), row)
    for a, b in links:
        together.merge(a, b)
    return [_unit(examples, sorted(rows)) for rows in together.subsets()]


def _unit(examples: Sequence[JudgeExample], rows: Sequence[int]) -> Unit:
    groups = frozenset(examples[row].group for row in rows)
    return Unit(min(groups), tuple(rows), groups)


def _torn(
    rows: Sequence[JudgeExample], unit: Unit, places: Mapping[str, str], old: int, into: str | None
) -> list[int]:
    """List the new rows of a unit that would have to be in two splits."""
    new = [row for row in unit.rows if row >= old or rows[row].group not in places]
    splits = {places[group] for group in unit.groups if group in places}
    return new if len(splits | ({into} if into else set())) > 1 else []


def _pieces(rows: Sequence[JudgeExample], unit: Unit, places: Mapping[str, str]) -> list[Unit]:
    """Divide a unit that already is in several splits, so that its groups stay there."""
    if len({places[group] for group in unit.groups if group in places}) < 2:
        return [unit]
    by_split: dict[str, list[int]] = defaultdict(list)
    for row in unit.rows:
        by_split[places[rows[row].group]].append(row)
    return [_unit(rows, part) for part in by_split.values()]


# --- by label ---


def strata_of(examples: Sequence[JudgeExample]) -> list[int]:
    """Return the stratum of each row: its label, or its quantile among many numbers.

    Each question has strata of its own.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_of[example.asks].append(row)
    strata, taken = [UNLABELLED] * len(examples), 0
    for rows in rows_of.values():
        own = _strata_of([examples[row] for row in rows])
        for row, stratum in zip(rows, own, strict=True):
            strata[row] = stratum + taken if stratum >= 0 else stratum
        taken += max(own) + 1
    return strata


def _strata_of(examples: Sequence[JudgeExample]) -> list[int]:
    verdicts = [example.label.verdict if example.label else None for example in examples]
    labels = [verdict for verdict in verdicts if verdict is not None]
    strata = {verdict: i for i, verdict in enumerate(sorted(set(labels), key=str))}
    numbers = sorted(label for label in labels if not isinstance(label, str))
    if len(strata) > MAX_STRATA and numbers:
        edges = [numbers[len(numbers) * i // QUANTILES] for i in range(1, QUANTILES)]
        strata = {number: sum(number >= edge for edge in edges) for number in numbers}
    return [UNLABELLED if verdict is None else strata[verdict] for verdict in verdicts]


def place_units(
    units: Sequence[Unit],
    strata: Sequence[int],
    shares: Mapping[str, float],
    seed: int,
    placed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Choose a split for each unit, so that the splits' label counts come near their shares.

    The largest units go first, units of one size in the seed's order, each to the split that is
    most short of rows and of the unit's labels (chi-square of counts against `shares`, which are
    above 0). `placed` units stay. Neither the order of the units nor that of their rows matters.
    Returns the split of each unit's name. Raises UserError for fewer units than splits, unless
    some are placed.
    """
    split_of = dict(placed or {})
    if not split_of:
        _check_enough(len(units), "groups", shares)
    total, all_rows = sum(shares.values()), _counts(range(len(strata)), strata)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for unit in units:
        if unit.name in split_of:
            counts[split_of[unit.name]].update(_counts(unit.rows, strata))

    def cost(name: str, labels: Counter[int]) -> float:
        """Return the change of the sum of (count - target)^2 / target if the labels are added."""
        change = 0.0
        for stratum, n in labels.items():
            target = max(all_rows[stratum] * (shares[name] / total), MIN_TARGET)
            change += n * (2 * (counts[name][stratum] - target) + n) / target
        return change

    new = [unit for unit in units if unit.name not in split_of]
    new.sort(key=lambda unit: (-len(unit.rows), _hash(f"{seed}:{unit.name}")))
    for left, unit in zip(range(len(new), 0, -1), new, strict=True):
        labels = _counts(unit.rows, strata)
        empty = [name for name in shares if not counts[name]]
        best = min(empty if left <= len(empty) else shares, key=lambda name: cost(name, labels))
        split_of[unit.name] = best
        counts[best].update(labels)
    return split_of


def _counts(rows: Iterable[int], strata: Sequence[int]) -> Counter[int]:
    """Count the rows of each stratum, and all of them: sizes matter beside labels."""
    counts = Counter(strata[row] for row in rows)
    counts[ALL_ROWS] = counts.total()
    return counts


def _check_enough(units: int, what: str, shares: Mapping[str, float]) -> None:
    if units < len(shares):
        names = list(shares)
        shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
        raise UserError(
            f"{units} {what} cannot fill {len(shares)} splits ({shown}): add rows of other {what}, "
            "or ask for fewer splits with --ratios or --folds"
        )


# --- by time ---


def place_by_time(
    units: Sequence[Unit],
    examples: Sequence[JudgeExample],
    shares: Mapping[str, float],
    placed: Mapping[str, str],
) -> dict[str, str]:
    """Put the oldest units into the first split and the newest into the last.

    A unit is as old as its newest row; units of one time stay together. Beside `placed` units a
    new one goes into the first split that holds a unit as new, else into the last. Raises
    UserError for fewer times than splits, and for a row whose `meta.time` is absent or neither a
    date nor a number.
    """
    times = _times(examples)
    newest = {unit.name: max(times[row] for row in unit.rows) for unit in units}
    if placed:  # in order of their age, so that the newest unit of a split decides
        until = {placed[name]: newest[name] for name in sorted(placed, key=newest.__getitem__)}
    else:
        until = _cut(Counter(newest[unit.name] for unit in units for _ in unit.rows), shares)
    *earlier, last = shares
    return {
        name: placed.get(name)
        or next((split for split in earlier if time <= until.get(split, -math.inf)), last)
        for name, time in newest.items()
    }


def _cut(rows: Counter[float], shares: Mapping[str, float]) -> dict[str, float]:
    """Cut the times, of so many `rows` each, where the shares end; every split gets a time.

    Returns the newest time of each split.
    """
    _check_enough(len(rows), "times", shares)
    names = list(shares)
    *ends, total = accumulate(shares.values())
    ends = [end / total * rows.total() for end in ends]
    until: dict[str, float] = {}
    at, before = -1, 0
    for left, time in zip(range(len(rows), 0, -1), sorted(rows), strict=True):
        wanted = bisect_left(ends, before + rows[time] / 2)  # of most of the rows of this time
        at = max(at, min(wanted, at + 1), len(names) - left)  # no split is skipped
        until[names[at]] = time
        before += rows[time]
    return until


def _times(examples: Sequence[JudgeExample]) -> list[float]:
    """Read `meta.time` of every row: all are numbers, or all are dates, as the first one is."""
    values = [example.meta.get("time") for example in examples]
    numeric = bool(values) and _time(values[0], numeric=True) is not None
    times = [_time(value, numeric) for value in values]
    for example, value, time in zip(examples, values, times, strict=True):
        if time is None:
            kind = "number, as the first row's is" if numeric else "date"
            remedy = "map a column of dates (2026-11-21, 2026-11-21T10:00:00) or of numbers with "
            remedy += "--map time=..."
            where = f"{example.where or example.id}, field meta.time"
            raise UserError(f"{where}: {value!r} is no {kind}: {remedy}")
    return [time for time in times if time is not None]


def _time(value: object, numeric: bool) -> float | None:
    """Read a number as it is, or a date as seconds, in UTC if it has no zone; else give None."""
    try:
        if numeric:
            number = float(str(value))
            return number if math.isfinite(number) else None
        date = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


# --- what a person should know ---


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
        ids = list(dict.fromkeys(row.id for row in left_out))
        names = ", ".join(ids[:3]) + (", ..." if ids[3:] else "")
        notes.append(f"{len(ids)} rows left out, their texts would be in two splits: {names}")
    if pieces:
        notes.append(
            f"{pieces} duplicates were in two splits already and stay there: "
            "`judge data split --anew` places them again"
        )
    return notes


def _row_note(splits: Mapping[str, Sequence[JudgeExample]]) -> str:
    """Say how much a split by row leaks."""
    groups = [
        (rows[own[0]].meta[OWN_GROUP], split)
        for split, rows in splits.items()
        for own in members_of(rows)
    ]
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
    labels = {
        split: Counter((row.asks, row.label.verdict if row.label else None) for row in rows)
        for split, rows in splits.items()
        if rows
    }
    whole = sum(labels.values(), Counter[tuple[str, Verdict | None]]())
    gaps = []
    for split, own in labels.items():
        gap = sum(abs(own[v] / own.total() - whole[v] / whole.total()) for v in whole) / 2
        gaps.append(f"{split} {gap:.1%}")
    what = "labels that would have to change to match the distribution over all rows"
    return f"{what}: {', '.join(gaps)}"
