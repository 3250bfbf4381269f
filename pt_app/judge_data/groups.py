"""Units of rows that no split may divide, and which split each unit goes to."""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import accumulate

from pt_app.core.errors import UserError
from pt_app.core.leaks import input_text
from pt_app.core.records import JudgeExample
from pt_app.core.words import normalised

# Up to this many different labels are balanced one by one, more of them by quantiles.
MAX_STRATA = 12
QUANTILES = 5
UNLABELLED, ALL_ROWS = -1, -2
# The smallest expected count: a tiny share times the rows may underflow to 0, and it is divided by.
MIN_TARGET = 1e-9


@dataclass(frozen=True)
class Unit:
    """Rows, by their positions, that stay together. `name` is the first of their groups."""

    name: str
    rows: tuple[int, ...]
    groups: frozenset[str]


def group_of(example: JudgeExample) -> str:
    """Name the group of a row that has none: a hash of what is judged against, normalised."""
    return sha256(normalised(input_text(example)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def units_of(examples: Sequence[JudgeExample], links: Iterable[tuple[int, int]] = ()) -> list[Unit]:
    """Join the rows of one group, and those that `links` connect by their positions."""
    from scipy.cluster.hierarchy import DisjointSet  # half a second, which flags need not wait for

    together = DisjointSet(range(len(examples)))
    first: dict[str, int] = {}
    for row, example in enumerate(examples):
        together.merge(first.setdefault(example.group, row), row)
    for a, b in links:
        together.merge(a, b)
    rows: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        rows[together[row]].append(row)
    return [unit_of(examples, at) for at in rows.values()]


def unit_of(examples: Sequence[JudgeExample], rows: Sequence[int]) -> Unit:
    """Make one unit of these rows."""
    groups = frozenset(examples[row].group for row in rows)
    return Unit(min(groups), tuple(rows), groups)


def strata_of(examples: Sequence[JudgeExample]) -> list[int]:
    """Return the stratum of each row: its label, or the label's quantile where there are many."""
    verdicts = [example.label.verdict if example.label else None for example in examples]
    labels = [verdict for verdict in verdicts if verdict is not None]
    strata = {verdict: i for i, verdict in enumerate(sorted(set(labels), key=str))}
    if len(strata) > MAX_STRATA:
        numbers = sorted(map(float, labels))
        edges = [numbers[len(numbers) * i // QUANTILES] for i in range(1, QUANTILES)]
        strata = {verdict: sum(float(verdict) >= edge for edge in edges) for verdict in strata}
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
    placed = placed or {}
    names = list(shares)
    if not placed and len(units) < len(names):
        raise _too_few(len(units), names)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for unit in units:
        if unit.name in placed:
            counts[placed[unit.name]].update(_counts(unit.rows, strata))
    targets = _targets(strata, shares)
    empty = {name for name in names if not counts[name]}
    split_of = {unit.name: placed[unit.name] for unit in units if unit.name in placed}
    new = sorted(
        (unit for unit in units if unit.name not in placed),
        key=lambda unit: (-len(unit.rows), _shuffled(unit.name, seed)),
    )
    for left, unit in zip(range(len(new), 0, -1), new, strict=True):
        labels = _counts(unit.rows, strata)
        candidates = [name for name in names if name in empty] if left <= len(empty) else names
        best = min(candidates, key=lambda name: _cost(labels, counts[name], targets[name]))
        split_of[unit.name] = best
        counts[best].update(labels)
        empty.discard(best)
    return split_of


def _counts(rows: Iterable[int], strata: Sequence[int]) -> Counter[int]:
    """Count the rows of each stratum, and all of them: sizes matter beside labels."""
    counts = Counter(strata[row] for row in rows)
    counts[ALL_ROWS] = counts.total()
    return counts


def _too_few(units: int, names: Sequence[str], what: str = "groups") -> UserError:
    shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
    return UserError(
        f"{units} {what} cannot fill {len(names)} splits ({shown}): add rows of other {what}, or "
        "ask for fewer splits with --ratios or --folds"
    )


def _targets(strata: Sequence[int], shares: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Return the expected count of each stratum in each split."""
    total = sum(shares.values())
    counts = _counts(range(len(strata)), strata)
    return {
        name: {s: max(n * (share / total), MIN_TARGET) for s, n in counts.items()}
        for name, share in shares.items()
    }


def _cost(labels: Counter[int], counts: Counter[int], targets: Mapping[int, float]) -> float:
    """Return the change of the sum of (count - target)^2 / target if the labels are added."""
    return sum(n * (2 * (counts[s] - targets[s]) + n) / targets[s] for s, n in labels.items())


def _shuffled(name: str, seed: int) -> str:
    return sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).hexdigest()


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
    until: dict[str, float] = defaultdict(lambda: -math.inf)
    for name, split in placed.items():
        until[split] = max(until[split], newest[name])
    if not placed:
        rows: Counter[float] = Counter()
        for unit in units:
            rows[newest[unit.name]] += len(unit.rows)
        until = _cut(rows, shares)
    *earlier, last = shares
    return {
        name: placed.get(name) or next((s for s in earlier if time <= until[s]), last)
        for name, time in newest.items()
    }


def _cut(rows: Counter[float], shares: Mapping[str, float]) -> dict[str, float]:
    """Cut the times, of so many `rows` each, where the shares end; every split gets a time.

    Returns the newest time of each split.
    """
    names = list(shares)
    if len(rows) < len(names):
        raise _too_few(len(rows), names, "times")
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
    times: list[float] = []
    numeric = bool(examples) and _time(examples[0].meta.get("time"), numeric=True) is not None
    for example in examples:
        value = example.meta.get("time")
        time = _time(value, numeric)
        if time is None:
            kind = "number, as the first row's is" if numeric else "date"
            raise UserError(
                f"{example.where or example.id}, field meta.time: {value!r} is no {kind}: map a "
                "column of dates (2026-11-21, 2026-11-21T10:00:00) or of numbers with "
                "--map time=..."
            )
        times.append(time)
    return times


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
