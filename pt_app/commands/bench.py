"""`judge bench`: speed as ratios, measured side by side on this machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import pt_app
from pt_app.commands.flags import Commands, flag
from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import write_json_atomic

bench = Commands(help="Speed against other tools, and coverage of the intervals.")


@bench.callback()
def find_benchmarks() -> None:
    """Make the folder `benchmarks` importable: it is in a clone, not in the installed package."""
    clone = Path(pt_app.__file__).parents[1]
    if not (clone / "benchmarks").is_dir():
        raise UserError(f"{clone} has no folder benchmarks: run judge bench from a clone")
    sys.path.insert(0, str(clone))


OBJECTIVES = Path("runs/objectives")
ROUNDS = flag("interleaved rounds; the median is reported", 3, low=1)
JSON_FILE = flag("write all numbers to this file", None, name="json")


@dataclass(frozen=True)
class Measured:
    """What is measured: a model's shape, the texts of its rows, and the ways to compare."""

    shape: str = flag(
        "smollm2-135m, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b or tiny", "qwen2.5-0.5b"
    )
    layers: int = flag("number of layers; 0: all of the shape", 0)
    workload: Literal["rubric", "variants", "both"] = flag(
        "rubric (shared by all rows), variants (four per source) or both", "both"
    )
    rubric_tokens: int = flag("length of what all prompts share", 200, low=50, unit="tokens")
    body_tokens: int = flag(
        "median length of source, reference and candidate", 180, low=60, unit="tokens"
    )
    only: str = flag("ways to measure, separated by semicolons; default: all", "")

    def compare(self, benchmark: ModuleType, file: Path | None, **more: object) -> None:
        """Measure the ways of a benchmark on each workload, and print the numbers.

        Raises:
            UserError: for an unknown shape or way.
        """
        from benchmarks.shapes import SHAPES
        from benchmarks.table import lines_of
        from benchmarks.workloads import Lengths

        if self.shape not in SHAPES:
            raise UserError(f"--shape {self.shape}: must be one of {', '.join(SHAPES)}")
        names = [name.strip() for name in self.only.split(";") if name.strip()]
        if unknown := [name for name in names if name not in benchmark.WAYS]:
            raise UserError(f'--only "{unknown[0]}": must be of: {"; ".join(benchmark.WAYS)}')
        console.start()
        more |= {"layers": self.layers, "only": names}
        more["lengths"] = Lengths(self.rubric_tokens, self.body_tokens)
        workloads = ["rubric", "variants"] if self.workload == "both" else [self.workload]
        reports = [benchmark.measure(self.shape, workload, **more) for workload in workloads]
        for report in reports:
            print("\n" + "\n".join(lines_of(report)))
        if file:
            write_json_atomic(file, json.loads(json.dumps(reports)))


@bench.command()
def train(*, measured: Measured, rounds: int = ROUNDS, json_file: Path | None = JSON_FILE) -> None:
    """Training: examples per second against TRL and a plain Trainer, on one CPU core."""
    from benchmarks import train as benchmark

    measured.compare(benchmark, json_file, rounds=rounds)


@bench.command()
def score(
    *,
    measured: Measured,
    rounds: int = ROUNDS,
    rows: int = flag("number of rows per round", 12, low=1),
    scale: str = flag("scale of the verdicts: 0-10, 1-5, pass_fail ...", "0-10"),
    against: Literal["transformers", "llama.cpp"] = flag(
        "what it is compared with where --only names nothing", "transformers"
    ),
    llama_server: Path | None = flag(
        "a llama-server of your own build; default: that of xllamacpp, built for AVX2", None
    ),
    json_file: Path | None = JSON_FILE,
) -> None:
    """Scoring: verdicts and answers per second against another engine, on one CPU core."""
    from benchmarks import score as benchmark

    more: dict[str, object] = {"rounds": rounds, "rows": rows, "scale": scale}
    more |= {"against": against, "llama_server": llama_server}
    measured.compare(benchmark, json_file, **more)


@bench.command()
def serve(
    *,
    adapter: Path = flag("adapter folder of a judge of single candidates", positional=True),
    base: str | None = flag("the adapter's base, if it was a folder or file", None),
    rows: int = flag("number of rows that 1, 16 and 64 clients ask for", 1000, low=1),
    requests: int = flag("number of requests while the memory is watched", 10_000, low=10),
    body_tokens: int = flag(
        "median length of source, reference and candidate", 120, unit="tokens", low=30
    ),
    json_file: Path | None = JSON_FILE,
) -> None:
    """A served judge: throughput, overhead, latency and memory beside `Judge.score`."""
    from benchmarks.serve import measure

    console.start()
    found = measure(adapter, base, rows, requests, body_tokens)
    for name, value in found.items():
        print(f"{name:44}{value:>12.4g}" if isinstance(value, float) else f"{name:44}{value!s:>12}")
    if json_file:
        write_json_atomic(json_file, found)


@bench.command()
def questions(
    *,
    model: str = flag("base: folder, name of judge base list, or tiny", "tiny"),
    tokens: int = flag("length of a state", 510, low=1, unit="tokens"),
    states: int = flag("number of states per round", 2, low=1),
    rounds: int = ROUNDS,
    json_file: Path | None = JSON_FILE,
) -> None:
    """Several questions about a text, answered and trained, against transformers' pipeline."""
    from benchmarks.questions import measure

    console.start()
    found = measure(model, tokens, states, rounds)
    for name, seconds in found["seconds_per_state"].items():
        print(f"{name:14}{seconds:8.3f} s per state")
    ratios = {
        "time of 8 questions against 1": found["eight_against_one"],
        "time of training 4 questions against 1": found["four_trained_against_one"],
    }
    for count, ratio in found["faster_than_pipeline"].items():
        ratios[f"speed against the pipeline, questions: {count}"] = ratio
    for name, ratio in ratios.items():
        print(f"{name:42}{'failed' if ratio is None else format(ratio, '.2f')}")
    if json_file:
        write_json_atomic(json_file, found)


@bench.command()
def intervals(
    *,
    groups: int = flag("number of sources of a test set, with 3 rows each", 60, low=2),
    sets: int = flag("number of simulated test sets", 2000, low=1),
    resamples: int = flag("bootstrap resamples per interval", 2000, low=1),
) -> None:
    """Evidence: coverage of the 95 % intervals on simulated test sets."""
    from benchmarks.intervals import coverage

    for name, share in coverage(groups, sets, resamples).items():
        print(f"{name:20}{share:7.1%}")


@bench.command()
def objectives(
    *,
    cells: Path | None = flag("file of cells instead of the experiment's own", None),
    only: Sequence[str] = flag("names of cells to run or show, as ro-en.ce.0 or ro-en.*", ()),
    quick: bool = flag("the short version, about 20 minutes", False),
    table: bool = flag("run nothing; print the tables of what is finished", False),
    out: Path = flag("folder of the results; a finished cell in it is not run again", OBJECTIVES),
) -> None:
    """Objectives: train and evaluate on labels of people, cell by cell; resumes where it ended."""
    from benchmarks.objectives.cells import CELLS, read_experiment
    from benchmarks.objectives.run import run_cells
    from benchmarks.objectives.table import tables

    experiment = read_experiment(cells or CELLS, quick)
    chosen, out = experiment.named(only), out / "quick" if quick else out
    console.start()
    failed = [] if table else run_cells(experiment, chosen, out)
    print(tables(experiment, chosen, out))
    if failed:
        raise UserError("; ".join(failed))
