"""Groups of rows that no split may part, and where a split puts them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from pt_app.core.errors import UserError
from pt_app.core.leaks import input_text
from pt_app.core.records import JudgeExample
from pt_app.core.words import normalised
from pt_app.judge_data.duplicates import Union

# Labels are balanced one by one up to so many, more of them by fifths of their order.
MAX_STRATA = 12
STRATA_OF_MANY = 5
UNLABELLED, ALL = -1, -2
# A share may be so small that its part of the rows is no number above 0.
LEAST_TARGET = 1e-9


@dataclass(frozen=True)
class Unit:
    """Rows, by their places, that stay together. `name` is the first of their groups."""

    name: str
    rows: tuple[int, ...]
    groups: frozenset[str]


def group_of(example: JudgeExample) -> str:
    """Name the group of a row that has none: a hash of what is judged against, normalised."""
    return sha256(normalised(input_text(example)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def units_of(examples: Sequence[JudgeExample], links: Iterable[tuple[int, int]] = ()) -> list[Unit]:
    """Join the rows of one group, and those that `links` name by their places."""
    together = Union(len(examples))
    first: dict[str, int] = {}
    for row, example in enumerate(examples):
        together.join(first.setdefault(example.group, row), row)
    for a, b in links:
        together.join(a, b)
    rows: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        rows[together.find(row)].append(row)
    return [unit_of(examples, at) for at in rows.values()]


def unit_of(examples: Sequence[JudgeExample], rows: Sequence[int]) -> Unit:
    """Make a unit of these rows."""
    groups = frozenset(examples[row].group for row in rows)
    return Unit(min(groups), tuple(rows), groups)


def strata_of(examples: Sequence[JudgeExample]) -> list[int]:
    """Give each row its stratum: its label, or a fifth of the labels' order where they are many."""
    verdicts = [example.label.verdict if example.label else None for example in examples]
    told = [verdict for verdict in verdicts if verdict is not None]
    known = {verdict: i for i, verdict in enumerate(sorted(set(told), key=str))}
    if len(known) > MAX_STRATA:
        numbers = sorted(map(float, told))
        edges = [numbers[len(numbers) * i // STRATA_OF_MANY] for i in range(1, STRATA_OF_MANY)]
        known = {verdict: sum(float(verdict) >= edge for edge in edges) for verdict in known}
    return [UNLABELLED if verdict is None else known[verdict] for verdict in verdicts]


def place_units(
    units: Sequence[Unit],
    strata: Sequence[int],
    shares: Mapping[str, float],
    seed: int,
    placed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Say for each unit's name its split, so that the splits' labels come near their shares.

    The largest units go first, those of one size in the seed's order, each to where the shortfall
    of rows and of its labels is greatest (chi-square of counts against shares). `placed` units
    stay. Neither the order of the units nor that of their rows matters. Raises UserError for fewer
    units than splits, unless some are placed.
    """
    placed = placed or {}
    names = _wanted(shares)
    counts = {name: Counter[int]() for name in names}
    targets = _targets(strata, shares, names)
    where: dict[str, str] = {}
    new: list[Unit] = []
    for unit in units:
        if unit.name in placed:
            where[unit.name] = placed[unit.name]
            counts.setdefault(placed[unit.name], Counter()).update(_counts(unit.rows, strata))
        else:
            new.append(unit)
    empty = {name for name in names if not counts[name]}
    if not placed and len(new) < len(names):
        raise _too_few(len(units), names)
    new.sort(key=lambda unit: (-len(unit.rows), _shuffled(unit.name, seed)))
    for left, unit in zip(range(len(new), 0, -1), new, strict=True):
        labels = _counts(unit.rows, strata)
        open_to = [name for name in names if name in empty] if left <= len(empty) else names
        best = min(open_to, key=lambda name: _cost(labels, counts[name], targets[name]))
        where[unit.name] = best
        counts[best].update(labels)
        empty.discard(best)
    return where


def _counts(rows: Iterable[int], strata: Sequence[int]) -> Counter[int]:
    """Count the rows of each stratum, and all of them: sizes matter beside labels."""
    counts = Counter(strata[row] for row in rows)
    counts[ALL] = counts.total()
    return counts


def _wanted(shares: Mapping[str, float]) -> list[str]:
    return [name for name, share in shares.items() if share > 0]


def _too_few(units: int, names: Sequence[str], what: str = "groups") -> UserError:
    shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
    return UserError(
        f"{units} {what} cannot fill {len(names)} splits ({shown}): add rows of other {what}, or "
        "ask for fewer splits with --ratios or --folds"
    )


def _targets(
    strata: Sequence[int], shares: Mapping[str, float], names: Sequence[str]
) -> dict[str, dict[int, float]]:
    whole = sum(shares[name] for name in names)
    every = _counts(range(len(strata)), strata)
    return {
        name: {s: max(n * (shares[name] / whole), LEAST_TARGET) for s, n in every.items()}
        for name in names
    }


def _cost(labels: Counter[int], counts: Counter[int], targets: Mapping[int, float]) -> float:
    """Give the change of the sum of (count - target)^2 / target if the labels are added."""
    return sum(n * (2 * (counts[s] - targets[s]) + n) / targets[s] for s, n in labels.items())


def _shuffled(name: str, seed: int) -> str:
    return sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).hexdigest()


def place_by_time(
    units: Sequence[Unit],
    examples: Sequence[JudgeExample],
    shares: Mapping[str, float],
    placed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Put the oldest units into the first split and the newest into the last.

    A unit is as old as its newest row; units of one time stay together. Beside `placed` units a
    new one goes into the first split that has one as new, else into the last. Raises UserError for
    fewer times than splits, and for a row without `meta.time`, or one that is no date and no
    number.
    """
    times = _times(examples)
    newest = {unit.name: max(times[row] for row in unit.rows) for unit in units}
    names = _wanted(shares)
    if not placed:
        return _cut(units, newest, shares)
    until: dict[str, float] = defaultdict(lambda: -math.inf)
    for name, split in placed.items():
        until[split] = max(until[split], newest[name])
    return {
        name: placed.get(name) or next((s for s in names[:-1] if time <= until[s]), names[-1])
        for name, time in newest.items()
    }


def _cut(
    units: Sequence[Unit], newest: Mapping[str, float], shares: Mapping[str, float]
) -> dict[str, str]:
    """Cut the row of times where the shares are; every split gets a time."""
    names = _wanted(shares)
    rows: Counter[float] = Counter()
    for unit in units:
        rows[newest[unit.name]] += len(unit.rows)
    if len(rows) < len(names):
        raise _too_few(len(rows), names, "times")
    whole, total = sum(shares[name] for name in names), rows.total()
    split_at: dict[float, str] = {}
    at, before = 0, 0
    for i, time in enumerate(sorted(rows)):
        end = sum(shares[name] for name in names[: at + 1]) / whole * total
        past = before + rows[time] / 2 > end
        must_go_on = len(rows) - i < len(names) - at
        if i and at < len(names) - 1 and (past or must_go_on):
            at += 1
        split_at[time] = names[at]
        before += rows[time]
    return {unit.name: split_at[newest[unit.name]] for unit in units}


def _times(examples: Sequence[JudgeExample]) -> list[float]:
    """Read `meta.time` of every row: numbers as they are, dates as seconds, UTC if not told."""
    numbers = [_number(example.meta.get("time")) for example in examples]
    dates = [_date(example.meta.get("time")) for example in examples]
    found = numbers if numbers and numbers[0] is not None else dates
    for example, time in zip(examples, found, strict=True):
        if time is None:
            kind = "date" if found is dates else "number, as the first row's is"
            raise UserError(
                f"{example.where or example.id}, field meta.time: "
                f"{example.meta.get('time')!r} is no {kind}: map a column of dates "
                "(2026-11-21, 2026-11-21T10:00:00) or of numbers with --map time=..."
            )
    return [time for time in found if time is not None]


def _number(time: object) -> float | None:
    try:
        number = float(time)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _date(time: object) -> float | None:
    try:
        date = datetime.fromisoformat(str(time).strip())
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
