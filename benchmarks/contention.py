"""Measure how much slower training and scoring get beside other busy programs.

python benchmarks/contention.py --json contention.json          (some 25 minutes on 2 quiet cores)
python benchmarks/contention.py --base tiny --work train --rounds 1

Each figure is the time of the work alone, without imports and loading, in a process of its own with
torch's default threads. The situations take turns in each round: "unwatched" (pt_app/models/
contention.py switched off, alone: the default until then), "alone", beside one and two endless
loops, and beside a second run of itself. The ratios are to "alone" of the same round.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "datasets" / "judge_eval"
LOOPS = {"unwatched": 0, "alone": 0, "one loop": 1, "two loops": 2, "twin": 0}
# Training rows and scored rows: about 20 seconds each on 2 quiet cores.
SIZES = {"tiny": (1280, 2000), "135m": (64, 150)}
COMMON = "--tracking off --skip_eval --eval_steps 0 --save_steps 0 --epochs 1 --seed 0"


def make_base(name: str, folder: Path) -> str:
    """Return what --model gets: "tiny", or a folder with random weights at SmolLM2-135M's shape."""
    if name == "tiny":
        return name
    from transformers import AutoTokenizer

    from benchmarks.shapes import Shape, build
    from pt_app.models.bases import shipped

    if not folder.exists():
        build(Shape(576, 1536, 30, 9, 3, vocabulary=49152)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(shipped()).save_pretrained(folder)
    return str(folder)


def train(model: str, rows: int, out: Path) -> tuple[float, Path]:
    """Train a judge through the recipe; return the loop's seconds and the adapter's folder."""
    from pt_app.eval_model.judge_train_mps import main

    config = ROOT / "configs" / "tiny.yaml"
    flags = f"--config {config} --data_dir {DATA} --output_dir {out} --model {model} {COMMON}"
    batch = [] if model == "tiny" else ["--batch_size", "16"]
    main([*flags.split(), *batch, "--max_samples", str(rows)])
    (adapter,) = out.glob("*_final")
    history = json.loads((adapter / "training_config.json").read_text())["log_history"]
    return next(entry["train_runtime"] for entry in history if "train_runtime" in entry), adapter


def score(model: str, rows: int, adapter: Path) -> float:
    """Score rows of the dataset with an adapter; return the seconds of that alone."""
    from pt_app.judge import Judge

    judge = Judge.load(adapter, base=None if model == "tiny" else model)
    known = [json.loads(line) for line in (DATA / "judge_train.json").read_text().splitlines()]
    chosen = list(itertools.islice(itertools.cycle(known), rows))
    start = time.perf_counter()
    judge.score(chosen)
    return time.perf_counter() - start


def child(options: argparse.Namespace) -> None:
    """Do the work once in this process and print its seconds."""
    sys.path.insert(0, str(ROOT))
    if options.child == "unwatched":
        from pt_app.models import contention

        contention.why_not_watched = lambda: "for the comparison"
    model = make_base(options.base, options.folder / options.base)
    to_train, to_score = SIZES[options.base]
    if options.work == "prepare":
        train(model, 16, options.folder / f"{options.base}-adapter")
        return
    if options.work == "train":
        with tempfile.TemporaryDirectory(dir=options.folder) as out:
            seconds, _ = train(model, to_train, Path(out))
    else:
        (adapter,) = (options.folder / f"{options.base}-adapter").glob("*_final")
        seconds = score(model, to_score, adapter)
    print(json.dumps({"seconds": seconds}))


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep `count` endless loops running beside what is measured."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start(base: str, work: str, situation: str, folder: Path) -> "subprocess.Popen[str]":
    """Start the work as a process of its own."""
    words = [sys.executable, __file__, "--child", situation, "--base", base, "--work", work]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    return subprocess.Popen(
        [*words, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )


def measure(base: str, work: str, situation: str, folder: Path) -> float:
    """Return the seconds of the work in a situation; of twins those of the slower one."""
    with busy_loops(LOOPS[situation]):
        runs = [start(base, work, situation, folder) for _ in range(1 + (situation == "twin"))]
        outputs = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        raise SystemExit(f"{base}, {work}, {situation}: a run failed")
    return max(float(json.loads(output.splitlines()[-1])["seconds"]) for output in outputs)


def measure_all(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Take the situations in turns, and print each figure as it comes."""
    found = []
    for base in options.base.split(","):
        if start(base, "prepare", "alone", folder).wait():
            raise SystemExit(f"{base}: no adapter could be made")
        for number, work in itertools.product(range(options.rounds), options.work.split(",")):
            for situation in LOOPS:
                seconds = measure(base, work, situation, folder)
                print(f"{base:5} {work:5} round {number + 1} {situation:10} {seconds:7.1f} s")
                found.append({"base": base, "work": work, "round": number} | {situation: seconds})
    return found


def ratios(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the median ratio of each situation to "alone", for each base and kind of work."""
    rounds: dict[tuple[str, str, int], dict[str, float]] = {}
    for entry in found:
        key = entry["base"], entry["work"], entry["round"]
        rounds.setdefault(key, {}).update({k: v for k, v in entry.items() if k in LOOPS})
    kinds = dict.fromkeys((base, work) for base, work, _ in rounds)
    return [
        {"base": base, "work": work}
        | {
            situation: statistics.median(
                one[situation] / one["alone"]
                for (b, w, _), one in rounds.items()
                if (b, w) == (base, work)
            )
            for situation in LOOPS
        }
        for base, work in kinds
    ]


def main() -> None:
    """Measure, print the ratios, and write everything as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny,135m", help="tiny, 135m, or both (default)")
    parser.add_argument("--work", default="train,score", help="train, score, or both (default)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of all situations")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure_all(options, Path(folder))
    table = ratios(found)
    for row in table:
        figures = ", ".join(f"{name} {row[name]:.2f}" for name in LOOPS)
        print(f"{row['base']}, {row['work']}: {figures} times the time alone")
    if options.json:
        options.json.write_text(json.dumps({"ratios": table, "seconds": found}, indent=2))


if __name__ == "__main__":
    main()
