"""The results of the experiment as tables with intervals, from the files that its cells keep.

The interval of a number over several seeds is a cluster bootstrap over sources and seeds: each
resample draws sources, the same for all seeds and judges on the same rows, and then seeds. The
difference of two judges is taken within each resample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from benchmarks.objectives.cells import USUAL, Cell, Experiment, Set
from benchmarks.objectives.measures import MEASURES, Judged
from benchmarks.objectives.run import CELL, is_finished
from pt_app.core.files import read_json
from pt_app.core.formatting import UNDEFINED, estimate, p_value, table
from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.records import checked
from pt_app.core.results import PROBE, Metric, Prediction, read_predictions, read_results
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import gate
from pt_app.evidence.coding import headline
from pt_app.evidence.comparison import holm
from pt_app.evidence.intervals import percentile_interval
from pt_app.evidence.options import Limits

RESAMPLES = 2000
LOWER_IS_BETTER = {"mae", "rps", "flips"}


@dataclass(frozen=True)
class Drawn:
    """A number of one judge by seed: on all its rows, and on each resample of the sources.

    Attributes:
        folded: the seeds have other test rows; else one seed stands for any.
    """

    values: Mapping[int, float]
    resampled: Mapping[int, FloatArray]
    rows: int
    groups: int
    folded: bool

    def has(self, seed: int) -> bool:
        """Return whether there is a number for the test rows of a seed."""
        return seed in self.values or (len(self.values) == 1 and not self.folded)

    def at(self, seeds: Sequence[int]) -> FloatArray:
        """Return the resampled numbers [seeds, resamples]."""
        only = next(iter(self.values))
        return np.stack([self.resampled[s if s in self.values else only] for s in seeds])

    def value(self, seeds: Sequence[int]) -> float:
        """Return the mean over the seeds."""
        only = next(iter(self.values))
        return float(np.mean([self.values[s if s in self.values else only] for s in seeds]))


class OfSet:
    """The finished cells of one set.

    Attributes:
        shown: the entries of the cells that were chosen; the others are there to compare with.
    """

    def __init__(
        self, name: str, about: Set, cells: Sequence[Cell], chosen: Sequence[Cell], out: Path
    ) -> None:
        self.name, self.about, self.out = name, about, out
        self.shown = [*dict.fromkeys(c.entry.name for c in chosen if c.set == name)]
        self.entries: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.set == name and is_finished(cell, out):
                self.entries.setdefault(cell.entry.name, []).append(cell)
        self._drawn: dict[tuple[str, str], Drawn | None] = {}

    def seeds(self, entry: str) -> list[int]:
        """Return the seeds of an entry that are finished."""
        return [cell.seed for cell in self.entries.get(entry, [])]

    @cached_property
    def _rows(self) -> dict[str, dict[int, Sequence[Prediction]]]:
        """The rows of each judge by seed: entries, "base", and the baselines with theirs."""
        found: dict[str, dict[int, Sequence[Prediction]]] = {}
        for entry, cells in self.entries.items():
            for cell in cells:
                rows = read_predictions(self.out / cell.name)
                first = [row for row in rows if row.model == rows[0].model]
                found.setdefault(entry, {})[cell.seed] = first
                if base := [row for row in rows if row.model == "base"]:
                    found.setdefault("base", {})[cell.seed] = base
                    for name in first[0].rules or {}:
                        own = [as_rule(row, name) for row in first]
                        found.setdefault(f"rule {name}", {})[cell.seed] = own
                    if self._scale.task == "pass_fail":  # which F1 rewards
                        own = [_ruled(row, "FAIL") for row in first]
                        found.setdefault("rule always FAIL", {})[cell.seed] = own
        return found

    def _fail_from(self, judge: str, seed: int) -> float | None:
        """Return the threshold of F1 of a cell's validation rows; None: it has none."""
        entry, model = (USUAL, "base") if judge == "base" else (judge, "adapter")
        found = [_told(cell, self.out) for cell in self.entries.get(entry, []) if cell.seed == seed]
        return (found[0].fail_from or {}).get(model) if found else None

    def _temperature(self, of_seeds: Mapping[int, Sequence[Prediction]], seed: int) -> float:
        """Return the temperature that fits a judge's rows of the other folds.

        A fold has no validation rows to fit it on.
        """
        rows = [row for other, own in of_seeds.items() if other != seed for row in own]
        return Judged(rows, self._scale).fitted_temperature() if rows else 1.0

    @cached_property
    def _scale(self) -> Scale:
        return Scale.from_name(_told(next(iter(self.entries.values()))[0], self.out).scale)

    def drawn(self, judge: str, measure: str) -> Drawn | None:
        """Return a number of a judge, an entry, "base" or "rule NAME"; None: it has no rows."""
        if (judge, measure) not in self._drawn:
            rows = self._rows.get(judge)
            made = None if rows is None else self._draw(judge, rows, measure)
            self._drawn[judge, measure] = made
        return self._drawn[judge, measure]

    def _draw(
        self, judge: str, of_seeds: Mapping[int, Sequence[Prediction]], measure: str
    ) -> Drawn:
        values, resampled, groups = {}, {}, set()
        for seed, rows in of_seeds.items():
            judged = Judged(rows, self._scale, self.about.held_out, self._fail_from(judge, seed))
            if self.about.folds and measure == "log_score":
                judged = replace(judged, temperature=self._temperature(of_seeds, seed))
            statistic = MEASURES[measure](judged)
            values[seed] = statistic(np.arange(len(rows)))
            draws = resamples([row.group for row in rows])
            resampled[seed] = np.array([statistic(at) for at in draws])
            groups |= {row.group for row in rows}
        count = len(next(iter(of_seeds.values())))
        return Drawn(values, resampled, count, len(groups), self.about.folds > 0)

    def gap(self, judge: str, other: str, measure: str) -> tuple[Metric, float]:
        """Return the difference of two judges and its p, on the seeds that both have."""
        return difference(self.drawn(judge, measure), self.drawn(other, measure), self.seeds(judge))

    def best_rule(self) -> str | None:
        """Return the simple baseline with the best primary number on the test rows."""
        sign = -1 if self.about.primary in LOWER_IS_BETTER else 1
        found = {}
        for judge in self._rows:
            drawn = self.drawn(judge, self.about.primary) if judge.startswith("rule ") else None
            if drawn is None or judge == f"rule {PROBE}":
                continue
            if math.isfinite(value := drawn.value([*drawn.values])):
                found[judge] = sign * value
        return max(found, key=lambda name: found[name], default=None)


def as_rule(row: Prediction, name: str) -> Prediction:
    """Return a row as a baseline answered it, with its score before that was rounded."""
    expected = (row.rules_expected or {}).get(name)
    return _ruled(row, (row.rules or {})[name], expected)


def _ruled(row: Prediction, verdict: Verdict, expected: float | None = None) -> Prediction:
    gone = ("probabilities", "swapped", "swapped_greedy", "swapped_probabilities")
    changed = {"verdict": verdict, "expected": expected, **dict.fromkeys(gone)}
    return row.model_copy(update=changed)


def resamples(groups: Sequence[str | int]) -> list[IntArray]:
    """Return the rows of each resample of whole groups; the same for equally many groups."""
    positions: dict[str | int, list[int]] = {}
    for row, group in enumerate(groups):
        positions.setdefault(group, []).append(row)
    members = [np.array(rows) for rows in positions.values()]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(members), size=(RESAMPLES, len(members)))
    return [np.concatenate([members[place] for place in draw]) for draw in draws]


def number(drawn: Drawn | None, seeds: Sequence[int]) -> Metric:
    """Return the mean over seeds with its interval over sources and seeds."""
    if drawn is None or not seeds:
        return Metric()
    return _metric(drawn.value(seeds), over_seeds(drawn.at(seeds)), drawn)


def difference(a: Drawn | None, b: Drawn | None, seeds: Sequence[int]) -> tuple[Metric, float]:
    """Return a - b with its interval, and the two-sided p of the bootstrap (NaN: undefined)."""
    if a is not None and b is not None:
        seeds = [seed for seed in seeds if a.has(seed) and b.has(seed)]
    if a is None or b is None or not seeds:
        return Metric(), math.nan
    drawn = over_seeds(a.at(seeds) - b.at(seeds))
    value = a.value(seeds) - b.value(seeds)
    defined = drawn[np.isfinite(drawn)]
    beyond = min((defined <= 0).sum(), (defined >= 0).sum())
    p = min(1.0, 2 * (1 + beyond) / (1 + len(defined)))
    return _metric(value, drawn, a), p if math.isfinite(value) else math.nan


def over_seeds(resampled: FloatArray) -> FloatArray:
    """Draw seeds for each resample of [seeds, resamples], and return their mean [resamples]."""
    seeds, count = resampled.shape
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, seeds, size=(seeds, count))
    return np.asarray(np.take_along_axis(resampled, chosen, axis=0).mean(axis=0))


def _metric(value: float, drawn: FloatArray, of: Drawn) -> Metric:
    spread = percentile_interval(drawn, of.groups) if of.groups > 1 else None
    return Metric.of(value, of.rows, spread) if spread else Metric.of(value, of.rows)


def tables(experiment: Experiment, cells: Sequence[Cell], out: Path) -> str:
    """Return the tables of finished cells, in Markdown; they are compared with all that are."""
    done = [cell for cell in cells if is_finished(cell, out)]
    if not done:
        return "No cell is finished yet."
    named = experiment.sets.items()
    every = experiment.all()
    sets = [OfSet(name, about, every, done, out) for name, about in named if about.primary]
    sets = [one for one in sets if one.shown]
    gated = [line for name, about in named if not about.primary for line in _gated(name, done, out)]
    hours = sum(_told(cell, out).cpu_seconds for cell in done) / 3600
    head = f"{len(done)} of {len(cells)} cells, {hours:.1f} hours of CPU. Intervals of 95 % over "
    shown = [_main_table(sets) if sets else "", _variants_table(sets)]
    shown += [table(GATED, gated)] if gated else []
    return "\n\n".join([head + "sources and seeds.", *filter(None, shown)])


GATED = ["set", "question", "seed", "alone", "joint", "joint - alone, by `judge gate`", "decision"]


def _gated(name: str, done: Sequence[Cell], out: Path) -> list[list[str]]:
    """Compare questions of the joint adapters of a set with the adapters that have each alone.

    The last line of a question has the rows of all seeds: its interval is over sources, and that of
    these seeds.
    """
    cells = [cell for cell in done if cell.set == name]
    joint = {c.seed: out / c.name for c in cells if "questions" not in c.settings}
    alone: dict[str, dict[int, Path]] = {}
    for cell in cells:
        if cell.seed in joint and (asks := cell.settings.get("questions")):
            alone.setdefault(asks, {})[cell.seed] = out / cell.name
    lines = []
    for asks, of_seeds in alone.items():
        both = [(of_seeds[seed] / asks, joint[seed] / asks) for seed in of_seeds]
        judged = [[gate.Judged.read(folder) for folder in folders] for folders in both]
        for seed, folders, (one, other) in zip(of_seeds, both, judged, strict=True):
            judges = [read_results(folder).judge for folder in folders]
            head = headline(one.scale)
            own = [estimate(judge.metrics[head]) if judge else UNDEFINED for judge in judges]
            lines.append([name, asks, str(seed), *own, *_decided(one, other)])
        whole = [_of_all(seeds) for seeds in zip(*judged, strict=True)]
        lines.append([name, asks, "all", "", "", *_decided(*whole)])
    return lines


def _of_all(seeds: Sequence[gate.Judged]) -> gate.Judged:
    """Return the rows of a judge of each seed as those of one; a source keeps its rows together."""
    rows = [
        row.model_copy(update={"id": f"{number}/{row.id}"})
        for number, judged in enumerate(seeds)
        for row in judged.rows
    ]
    return replace(seeds[0], rows=rows)


def _decided(alone: gate.Judged, joint: gate.Judged) -> list[str]:
    check = gate.gate(joint, alone, Limits())[-1]
    return [f"{check.name}: {check.why}", check.decision]


def _main_table(sets: Sequence[OfSet]) -> str:
    header = ["set", "judge", "seeds", "rows", "primary", "", "- base", "- best baseline"]
    header += ["- probe", "- TRL", "beside it", "CPU min"]
    return table(header, [_line(one, entry) for one in sets for entry in one.shown])


def _line(one: OfSet, entry: str) -> list[str]:
    """Describe one entry on one set."""
    primary, best, seeds = one.about.primary, one.best_rule(), one.seeds(entry)
    rivals = ["base", best or "", f"rule {PROBE}", "trl"]
    gaps = [one.gap(entry, name, primary)[0] for name in rivals]
    shown = [estimate(gap) for gap in gaps]
    if best and gaps[1].value is not None:
        shown[1] += f" ({best.removeprefix('rule ')})"
    if entry == "trl":
        shown[3] = UNDEFINED
    told = [_told(cell, one.out) for cell in one.entries[entry]]
    rows = f"{told[0].rows} / {told[0].test_rows}"
    minutes = sum(each.cpu_seconds for each in told) / len(told) / 60
    own = estimate(number(one.drawn(entry, primary), seeds))
    beside = [f"{of} {estimate(number(one.drawn(entry, of), seeds))}" for of in one.about.also]
    about = [one.name, entry, str(len(seeds)), rows, primary, own]
    return [*about, *shown, "; ".join(beside), f"{minutes:.0f}"]


def _variants_table(sets: Sequence[OfSet]) -> str:
    """Compare every other entry with `ce` on the seeds of both.

    Holm's p is over the objectives of a set, and over what else was varied on it.
    """
    lines = []
    for one in sets:
        variants: dict[bool, list[str]] = {False: [], True: []}
        for name in one.shown:
            entry = one.entries[name][0].entry
            if name != USUAL and entry.way == "judge":
                variants[entry.is_usual].append(name)
        for names in variants.values():
            lines += _variants(one, names)
    header = ["set", "variant", "seeds", "primary", "- ce", "p (Holm)", "- ce, beside it"]
    return table(header, lines) if lines else ""


def _variants(one: OfSet, names: Sequence[str]) -> list[list[str]]:
    gaps = {name: one.gap(name, USUAL, one.about.primary) for name in names}
    ps = holm([None if math.isnan(p) else p for _, p in gaps.values()])
    lines = []
    for (name, (gap, _)), p in zip(gaps.items(), ps, strict=True):
        beside = [f"{of} {estimate(one.gap(name, USUAL, of)[0])}" for of in one.about.also]
        seeds = [seed for seed in one.seeds(name) if seed in one.seeds(USUAL)]
        shown = UNDEFINED if p is None else p_value(p).removeprefix("= ")
        line = [one.name, name, str(len(seeds)), one.about.primary, estimate(gap), shown]
        lines.append([*line, "; ".join(beside)])
    return lines


class _Told(BaseModel):
    """What is shown of a cell beside its verdicts."""

    scale: str
    rows: int
    test_rows: int
    cpu_seconds: float
    fail_from: dict[str, float] | None = None


def _told(cell: Cell, out: Path) -> _Told:
    path = out / cell.name / CELL
    remedy = f"remove {path.parent}, and run its cell again"
    return checked(_Told, read_json(path, remedy=remedy), path, remedy)
