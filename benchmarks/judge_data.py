"""How long import, split and check take on many rows, and how much memory.

python -m benchmarks.judge_data [--rows 100000] [--words 200]

Each command is a process of its own; the import splits and checks too, as it always does.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCABULARY = 30_000
VARIANTS = 4  # candidates of a source


def write_rows(path: Path, rows: int, words: int) -> None:
    """Write JSON Lines of random words, half of them source and half candidate.

    Four candidates share a source, and one source in a hundred is another's near duplicate.
    """
    rng = random.Random(0)
    known = [f"w{i:x}" + "aeiou"[i % 5] * (i % 4) for i in range(VOCABULARY)]
    source: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            if row % VARIANTS == 0:
                near = source if row and rng.random() < 0.01 else rng.choices(known, k=words // 2)
                source = [*near[:-1], rng.choice(known)]
            candidate = " ".join(rng.choices(known, k=words - words // 2))
            one = {"src": " ".join(source), "mt": candidate, "score": rng.randrange(11)}
            file.write(json.dumps(one) + "\n")


def timed(*argv: str) -> tuple[float, float]:
    """Run a `judge` command; give its seconds and its peak memory in GiB."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "pt_app.cli", *argv], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return time.monotonic() - start, peak


def main() -> None:
    """Print a line for each command and one for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file, out = Path(name) / "rows.jsonl", Path(name) / "out"
        write_rows(file, given.rows, given.words)
        print(f"{given.rows:,} rows of {given.words} words, {file.stat().st_size / 2**20:.0f} MiB")
        map = "source=src,candidate=mt,label=score"
        commands = {
            "import": ("data", "import", str(file), "--out", str(out), "--map", map),
            "split": ("data", "split", str(out), "--anew", "--seed", "1"),
            "check": ("data", "check", str(out)),
        }
        whole = 0.0
        for what, argv in commands.items():
            seconds, peak = timed(*argv)
            whole += seconds
            print(f"{what}: {seconds:.1f} s, peak so far {peak:.2f} GiB", flush=True)
        print(f"together: {whole:.1f} s")


if __name__ == "__main__":
    main()
