"""Seconds until a command line answers: help, a typo, a file that is not there.

python benchmarks/startup.py [--rounds 9]

Every round runs each command once, so that what else the machine does meets all of them alike; the
medians are shown, beside that of an interpreter that does nothing.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "pt_app/eval_model/judge_train_mps.py"
JUDGE = ("-m", "pt_app.cli")
COMMANDS: dict[str, tuple[str, ...]] = {
    "an interpreter that does nothing": ("-c", "pass"),
    "import torch, for comparison": ("-c", "import torch"),
    "judge_train_mps.py --help": (RECIPE, "--help"),
    "judge_train_cuda.py --help": (RECIPE.replace("mps", "cuda"), "--help"),
    "judge_train_mps.py, an unknown flag": (RECIPE, "--epoch", "3"),
    "judge_train_mps.py, a wrong value": (RECIPE, "--epochs", "-1"),
    "judge_train_mps.py, a missing config": (RECIPE, "--config", "nowhere.yaml"),
    "judge_train_mps.py, a missing dataset": (RECIPE, "--data_dir", "nowhere"),
    "judge --help": (*JUDGE, "--help"),
    "judge score --help": (*JUDGE, "score", "--help"),
    "judge data import --help": (*JUDGE, "data", "import", "--help"),
    "judge train --help": (*JUDGE, "train", "--help"),
    "judge train, an unknown flag": (*JUDGE, "train", "--epoch", "3"),
    "judge doctor, an unknown flag": (*JUDGE, "doctor", "--epoch", "3"),
    "judge score, a missing adapter": (
        *(*JUDGE, "score", "--adapter", "nowhere", "--input", "README.md"),
        *("--output", "nowhere.jsonl"),
    ),
    "judge data import, a missing file": (*JUDGE, "data", "import", "nowhere.csv", "--out", "no"),
}


def seconds(words: tuple[str, ...]) -> float:
    """Run python with `words` in the checkout; give the seconds until it ended."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the median of each command over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, words in COMMANDS.items():
            taken[name].append(seconds(words))
    for name, found in taken.items():
        print(f"{name:40} {statistics.median(found):6.2f} s")


if __name__ == "__main__":
    main()
