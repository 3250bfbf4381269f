"""`judge bench`: speed as ratios, measured side by side on this machine."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import pt_app
from pt_app.core.errors import UserError

bench = typer.Typer(help="Speed against other tools, and coverage of the intervals.")


@bench.callback()
def find_benchmarks() -> None:
    """Make the folder `benchmarks` importable: it is in a clone, not in the installed package."""
    clone = Path(pt_app.__file__).parents[1]
    if not (clone / "benchmarks").is_dir():
        raise UserError(f"{clone} has no folder benchmarks: run judge bench from a clone")
    sys.path.insert(0, str(clone))


Which = Literal["rubric", "variants", "both"]
ShapeName = Annotated[str, typer.Option(help="qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b or tiny")]
Layers = Annotated[int, typer.Option(help="number of layers; 0: all of the shape")]
Workloads = Annotated[
    Which, typer.Option(help="rubric (shared by all rows), variants (four per source) or both")
]
Rounds = Annotated[int, typer.Option(min=1, help="interleaved rounds; the median is reported")]
Rubric = Annotated[
    int, typer.Option("--rubric_tokens", min=50, help="number of tokens that all prompts share")
]
Body = Annotated[
    int,
    typer.Option("--body_tokens", min=60, help="median tokens of source, reference and candidate"),
]
Only = Annotated[str, typer.Option(help="ways to measure, separated by semicolons; default: all")]
Json = Annotated[Path | None, typer.Option("--json", help="write all numbers to this file")]


@bench.command()
def train(
    shape: ShapeName = "qwen2.5-0.5b",
    layers: Layers = 0,
    workload: Workloads = "both",
    rounds: Rounds = 3,
    rubric_tokens: Rubric = 200,
    body_tokens: Body = 180,
    only: Only = "",
    json_file: Json = None,
) -> None:
    """Training: examples per second against TRL and a plain Trainer, on one CPU core."""
    from benchmarks.train import WAYS, measure
    from benchmarks.workloads import Lengths

    _check(shape, only, list(WAYS))
    lengths = Lengths(rubric_tokens, body_tokens)
    _run(
        lambda name: measure(shape, name, rounds, layers, lengths, _names(only), print),
        workload,
        json_file,
    )


@bench.command()
def score(
    shape: ShapeName = "qwen2.5-0.5b",
    layers: Layers = 0,
    workload: Workloads = "both",
    rounds: Rounds = 3,
    rows: Annotated[int, typer.Option(min=1, help="number of rows per round")] = 12,
    scale: Annotated[
        str, typer.Option(help="scale of the verdicts: 0-10, 1-5, pass_fail ...")
    ] = "0-10",
    rubric_tokens: Rubric = 200,
    body_tokens: Body = 180,
    only: Only = "",
    json_file: Json = None,
) -> None:
    """Scoring: verdicts and answers per second against transformers, on one CPU core."""
    from benchmarks.score import WAYS, measure
    from benchmarks.workloads import Lengths

    _check(shape, only, list(WAYS))
    lengths = Lengths(rubric_tokens, body_tokens)
    _run(
        lambda name: measure(
            shape, name, rounds, rows, scale, layers, lengths, _names(only), print
        ),
        workload,
        json_file,
    )


@bench.command()
def intervals(
    groups: Annotated[
        int, typer.Option(min=2, help="number of sources of a test set, with 3 rows each")
    ] = 60,
    sets: Annotated[int, typer.Option(min=1, help="number of simulated test sets")] = 2000,
    resamples: Annotated[int, typer.Option(min=1, help="bootstrap resamples per interval")] = 2000,
) -> None:
    """Evidence: coverage of the 95 % intervals on simulated test sets."""
    from benchmarks.intervals import coverage

    for name, share in coverage(groups, sets, resamples).items():
        print(f"{name:20}{share:7.1%}")


def _names(only: str) -> list[str]:
    return [name.strip() for name in only.split(";") if name.strip()]


def _check(shape: str, only: str, ways: list[str]) -> None:
    from benchmarks.shapes import SHAPES

    if shape not in SHAPES:
        raise UserError(f"--shape {shape}: must be one of {', '.join(SHAPES)}")
    for name in _names(only):
        if name not in ways:
            raise UserError(f'--only "{name}": must be of: {"; ".join(ways)}')


def _run(measure: Any, workload: Which, file: Path | None) -> None:
    from benchmarks.table import lines_of
    from pt_app.core import console
    from pt_app.core.files import write_json_atomic

    console.start()
    names = ["rubric", "variants"] if workload == "both" else [workload]
    reports = [measure(name) for name in names]
    for report in reports:
        print("\n" + "\n".join(lines_of(report)))
    if file:
        write_json_atomic(file, json.loads(json.dumps(reports)))
