"""What Ray's workers bring: python -m benchmarks.scale ADAPTER --rows 10000 --workers 2.

The same rows are judged by one process, by one worker and by several, on a thread each, with the
command line. Printed are rows per second after the start of the workers, the largest difference of
a probability from the one process, verdicts that differ although rounding does not decide between
two, and the peak memory of the process that reads and writes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.workloads import Lengths, make_workload
from pt_app.core.choosing import is_tied
from pt_app.models.adapters import verify_adapter

RATE = re.compile(r"after the start of \d+ workers: ([\d.]+) rows/s")
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", help="the adapter's base, if it was a folder or file")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--body_tokens", type=int, default=60)
    parser.add_argument(
        "--only", choices=["workers"], help="for memory: the last of the ways alone"
    )
    asked = parser.parse_args()
    ways: dict[str, list[str]] = {
        "one process": [],
        "1 worker": ["--ray=auto", "--workers=1"],
        f"{asked.workers} workers": ["--ray=auto", f"--workers={asked.workers}"],
    }
    if asked.only:
        ways = dict([ways.popitem()])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_rows(folder / "rows.jsonl", asked.rows, asked.body_tokens)
        common = ["--adapter", str(asked.adapter), "--input", str(folder / "rows.jsonl")]
        common += ["--base", asked.base] if asked.base else []
        print("| way | seconds | rows/s | largest difference | other verdicts | peak GiB |")
        print("|---|---|---|---|---|---|")
        first: Path | None = None
        for number, (way, flags) in enumerate(ways.items()):
            output = folder / f"{number}.jsonl"
            seconds, said, peak = _run([*common, "--output", str(output), *flags])
            rate = found[1] if (found := RATE.search(said)) else f"{asked.rows / seconds:.1f}"
            first = first or output
            difference, verdicts = _compare(first, output, asked.adapter)
            cells = f"{seconds:.0f} | {rate} | {difference:.1e} | {verdicts} | {peak:.2f}"
            print(f"| {way} | {cells} |", flush=True)


def _write_rows(path: Path, count: int, body_tokens: int) -> None:
    """Write rows of which four share a source, shuffled as far as 4,000 rows apart."""
    examples = make_workload("variants", count, "0-10", Lengths(body=body_tokens)).examples
    step = min(1000, -(-count // 4))
    with open(path, "w", encoding="utf-8") as file:
        for first in range(0, count, 4 * step):
            some = examples[first : first + 4 * step]
            for example in (each for i in range(4) for each in some[i::4]):
                row = {
                    name: getattr(example, name) for name in ("source", "reference", "candidate")
                }
                file.write(json.dumps(row) + "\n")


def _run(flags: list[str]) -> tuple[float, str, float]:
    """Run `judge score` on a thread; return seconds, what it says, and its peak GiB."""
    started, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "pt_app.cli", "score", *flags]
    with tempfile.TemporaryFile("w+") as said:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            peak = max(peak, *(int(kib) for kib in re.findall(r"VmHWM:\s+(\d+)", status)), 0)
            time.sleep(0.5)
        said.seek(0)
        text = said.read()
    if process.wait():
        sys.exit(text)
    return time.perf_counter() - started, text, peak / 2**20


def _compare(first: Path, other: Path, adapter: Path) -> tuple[float, int]:
    """Return the largest difference of a probability, and how many verdicts differ outside ties."""
    info, largest, verdicts = verify_adapter(adapter), 0.0, 0
    with open(first) as one, open(other) as two:
        for row, same in zip(map(json.loads, one), map(json.loads, two), strict=True):
            chances, others = row["probabilities"], same["probabilities"]
            largest = max(largest, *(abs(chances[value] - others[value]) for value in chances))
            tied = is_tied(list(chances.values()), info.scale, info.rule)
            verdicts += row["verdict"] != same["verdict"] and not tied
    return largest, verdicts


if __name__ == "__main__":
    main()
