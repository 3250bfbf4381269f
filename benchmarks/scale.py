"""What Ray's workers bring: python -m benchmarks.scale ADAPTER --rows 10000 --workers 2.

The same rows are judged by one process, by one worker and by several, on a thread each, with the
command line. Printed are rows per second after the start of the workers, what they and the process
that reads and writes took of the CPUs, the largest difference of a probability from the one
process, verdicts that differ although rounding does not decide between two, and the peak memory of
the process that reads and writes.

A killed run resumes with the parts that `judge score` has in the folder; what it had spent is kept,
up to the last second.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.processes import cpu_seconds
from benchmarks.workloads import Lengths, make_workload
from pt_app.core.choosing import is_tied
from pt_app.core.files import write_json_atomic, write_text_atomic
from pt_app.models.adapters import verify_adapter

RATE = re.compile(r"after the start of \d+ workers: ([\d.]+) rows/s")
POLL = 1.0  # seconds between two looks at a process


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", help="the adapter's base, if it was a folder or file")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--body_tokens", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"), help="folder to resume in")
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
    folder = asked.out / f"{asked.adapter.name}-{asked.rows}-{asked.body_tokens}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        write_text_atomic(rows, _rows(asked.rows, asked.body_tokens))
    common = ["--adapter", str(asked.adapter), "--input", str(rows)]
    common += ["--base", asked.base] if asked.base else []
    print("| way | seconds | rows/s | CPU s | largest difference | other verdicts | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    first: Path | None = None
    for way, flags in ways.items():
        output = folder / f"{way.replace(' ', '-')}.jsonl"
        spent = _run([*common, "--output", str(output), *flags], output)
        rate = spent["rate"] or asked.rows / spent["seconds"]
        first = first or output
        difference, verdicts = _compare(first, output, asked.adapter)
        cells = f"{spent['seconds']:.0f} | {rate:.1f} | {spent['cpu']:.0f} | {difference:.1e}"
        print(f"| {way} | {cells} | {verdicts} | {spent['peak']:.2f} |", flush=True)


def _rows(count: int, body_tokens: int) -> str:
    """Return rows of which four share a source, shuffled as far as 4,000 rows apart."""
    examples = make_workload("variants", count, "0-10", Lengths(body=body_tokens)).examples
    step, lines = min(1000, -(-count // 4)), []
    for first in range(0, count, 4 * step):
        some = examples[first : first + 4 * step]
        for example in (each for i in range(4) for each in some[i::4]):
            names = ("source", "reference", "candidate")
            lines.append(json.dumps({name: getattr(example, name) for name in names}) + "\n")
    return "".join(lines)


def _run(flags: list[str], output: Path) -> dict[str, float]:
    """Run `judge score` on a thread, if its output is not there; return what it took in all runs.

    That is its seconds and CPU seconds, the peak GiB of the process that reads and writes, and the
    rows per second that it says (0 where it says none), of its last run.
    """
    record = output.with_suffix(".spent.json")
    spent = {"seconds": 0.0, "cpu": 0.0, "peak": 0.0, "rate": 0.0}
    if record.exists():
        spent |= json.loads(record.read_text())
    if output.exists():
        return spent
    said = output.with_suffix(".log")
    command = [sys.executable, "-m", "pt_app.cli", "score", *flags]
    with open(said, "w+") as log:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        _watch(process, spent, record)
    if process.wait():
        sys.exit(said.read_text())
    spent["rate"] = float(found[1]) if (found := RATE.search(said.read_text())) else 0.0
    write_json_atomic(record, spent)
    return spent


def _watch(process: "subprocess.Popen[Any]", spent: dict[str, float], record: Path) -> None:
    """Add what a process and its children take to `spent` until it ends, and write it down."""
    before, start, cpu = dict(spent), time.perf_counter(), 0.0
    while process.poll() is None:
        try:
            # Children that have ended took theirs along: the largest sum that was seen counts.
            cpu = max(cpu, cpu_seconds(psutil.Process(process.pid)))
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (OSError, psutil.Error):
            break
        peaks = [int(kib) / 2**20 for kib in re.findall(r"VmHWM:\s+(\d+)", status)]
        spent["seconds"] = before["seconds"] + time.perf_counter() - start
        spent["cpu"], spent["peak"] = before["cpu"] + cpu, max(before["peak"], *peaks, 0.0)
        write_json_atomic(record, spent)
        time.sleep(POLL)


def _compare(first: Path, other: Path, adapter: Path) -> tuple[float, int]:
    """Return the largest difference of a probability, and how many verdicts differ outside ties."""
    info, largest, verdicts = verify_adapter(adapter), 0.0, 0
    with open(first) as one, open(other) as two:
        for row, same in zip(map(json.loads, one), map(json.loads, two), strict=True):
            chances, others = row["probabilities"], same["probabilities"]
            if chances is None or others is None:
                unread = f"{first}: row {row['id']} has no probabilities (status {row['status']})"
                sys.exit(f"{unread}: give fewer --body_tokens, or a judge that reads longer rows")
            largest = max(largest, *(abs(chances[value] - others[value]) for value in chances))
            tied = is_tied(list(chances.values()), info.scale, info.rule)
            verdicts += row["verdict"] != same["verdict"] and not tied
    return largest, verdicts


if __name__ == "__main__":
    main()
