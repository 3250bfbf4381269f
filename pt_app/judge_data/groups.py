"""Groups of rows that no split may part, and where a split puts them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from pt_app.errors import UserError
from pt_app.eval_model.leaks import input_text, normalised
from pt_app.eval_model.records import JudgeExample
from pt_app.judge_data.duplicates import Union, links

MOST_STRATA = 12
STRATA_OF_MANY = 5


@dataclass(frozen=True)
class Unit:
    """Rows, by their places, that stay together. `name` is the first of their groups."""

    name: str
    rows: tuple[int, ...]
    groups: frozenset[str]


def group_of(example: JudgeExample) -> str:
    """Name the group of a row that has none: a hash of what is judged against, normalised."""
    return sha256(normalised(input_text(example)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def units_of(examples: Sequence[JudgeExample], near: float, progress: bool = False) -> list[Unit]:
    """Join the rows of one group, and those that a check would call each other's duplicates."""
    together = Union(len(examples))
    first: dict[str, int] = {}
    for row, example in enumerate(examples):
        together.join(first.setdefault(example.group, row), row)
    for a, b in links(examples, near, progress):
        together.join(a, b)
    rows: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        rows[together.find(row)].append(row)
    found = [(tuple(at), frozenset(examples[row].group for row in at)) for at in rows.values()]
    return [Unit(min(groups), at, groups) for at, groups in found]


def strata_of(examples: Sequence[JudgeExample]) -> list[int]:
    """Give each row its stratum: its label, or a fifth of the labels' order where they are many."""
    verdicts = [example.label.verdict if example.label else "" for example in examples]
    known = {verdict: i for i, verdict in enumerate(sorted(set(verdicts), key=str))}
    if len(known) <= MOST_STRATA:
        return [known[verdict] for verdict in verdicts]
    numbers = sorted(float(verdict) for verdict in verdicts)
    edges = [numbers[len(numbers) * i // STRATA_OF_MANY] for i in range(1, STRATA_OF_MANY)]
    return [sum(float(verdict) >= edge for edge in edges) for verdict in verdicts]


def place_units(
    units: Sequence[Unit],
    strata: Sequence[int],
    shares: Mapping[str, float],
    seed: int,
    placed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Say for each unit's name its split, so that the splits' labels come near their shares.

    The largest units go first, those of one size in the seed's order, each to where the shortfall
    of its labels is greatest (chi-square of counts against shares). `placed` units stay. Neither
    the order of the units nor that of their rows matters. Raises UserError for fewer units than
    splits.
    """
    placed = placed or {}
    names = [name for name, share in shares.items() if share > 0]
    counts = {name: Counter[int]() for name in names}
    targets = _targets(strata, shares, names)
    where: dict[str, str] = {}
    new: list[Unit] = []
    for unit in units:
        if unit.name in placed:
            where[unit.name] = placed[unit.name]
            counts.setdefault(placed[unit.name], Counter()).update(strata[r] for r in unit.rows)
        else:
            new.append(unit)
    empty = {name for name in names if not counts[name]}
    if len(new) < len(empty):
        raise UserError(
            f"{len(units)} groups cannot fill {len(names)} splits ({', '.join(names)}): add rows "
            "of other sources, or ask for fewer splits with --ratios or --folds"
        )
    new.sort(key=lambda unit: (-len(unit.rows), _shuffled(unit.name, seed)))
    for left, unit in zip(range(len(new), 0, -1), new, strict=True):
        labels = Counter(strata[row] for row in unit.rows)
        open_to = [name for name in names if name in empty] if left <= len(empty) else names
        best = min(open_to, key=lambda name: _cost(labels, counts[name], targets[name]))
        where[unit.name] = best
        counts[best].update(labels)
        empty.discard(best)
    return where


def _targets(
    strata: Sequence[int], shares: Mapping[str, float], names: Sequence[str]
) -> dict[str, dict[int, float]]:
    whole = sum(shares[name] for name in names)
    return {
        name: {stratum: n * shares[name] / whole for stratum, n in Counter(strata).items()}
        for name in names
    }


def _cost(labels: Counter[int], counts: Counter[int], targets: Mapping[int, float]) -> float:
    """Give the change of the sum of (count - target)^2 / target if the labels are added."""
    return sum(n * (2 * (counts[s] - targets[s]) + n) / targets[s] for s, n in labels.items())


def _shuffled(name: str, seed: int) -> str:
    return sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).hexdigest()


def place_by_time(
    units: Sequence[Unit], examples: Sequence[JudgeExample], shares: Mapping[str, float]
) -> dict[str, str]:
    """Put the oldest units into the first split and the newest into the last.

    A unit is as old as its newest row, so that no row of training is newer than one of test.
    Raises UserError for a row without `meta.time`, or one that is no date and no number.
    """
    names = [name for name, share in shares.items() if share > 0]
    if len(units) < len(names):
        raise UserError(f"{len(units)} groups cannot fill {len(names)} splits: add rows")
    newest = {unit.name: max(_time(examples[row]) for row in unit.rows) for unit in units}
    ordered = sorted(units, key=lambda unit: (newest[unit.name], unit.name))
    whole, where, done, at = sum(shares[name] for name in names), {}, 0, 0
    total = sum(len(unit.rows) for unit in units)
    for i, unit in enumerate(ordered):
        reached = sum(shares[name] for name in names[: at + 1]) / whole * total
        must_go_on = len(ordered) - i <= len(names) - at - 1
        if at < len(names) - 1 and i and (done >= reached or must_go_on):
            at += 1
        where[unit.name] = names[at]
        done += len(unit.rows)
    return where


def _time(example: JudgeExample) -> float:
    time = example.meta.get("time")
    try:
        return float(time)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pass
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError as error:
        raise UserError(
            f"{example.where or example.id}, field meta.time: {time!r} is no date and no number: "
            "map a column with --map time=... (2026-11-21, 2026-11-21T10:00:00)"
        ) from error
