"""Keeps results.json, whole after each part: what a cut run has found stays readable.

results.py FILE begin PART...          all parts "not run"
results.py FILE end PART CODE SECONDS WORK     the part's numbers, and how it ended

Needs the standard library only.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

CUT = (124, 137)  # exit codes of `timeout`: asked to end, and killed
LOG_LINES = 15


def status_of(code: int) -> str:
    """Return what an exit code says of a part."""
    return "ok" if code == 0 else "out of time" if code in CUT else "failed"


def begin(file: Path, parts: list[str]) -> None:
    """Write results in which no part has run yet."""
    python = f"{platform.python_version()}, {sys.executable}"
    write(file, {"python": python, "parts": {name: {"status": "not run"} for name in parts}})


def end(file: Path, part: str, code: int, seconds: int, work: Path) -> None:
    """Add how a part ended: its numbers, also where it was cut, and else the end of its log.

    Prints the same in short.
    """
    results = json.loads(file.read_text())
    found: dict[str, Any] = {"status": status_of(code), "seconds": seconds}
    if (numbers := work / f"{part}.json").is_file():
        found["numbers"] = json.loads(numbers.read_text())
    if code and (log := work / f"{part}.log").is_file():
        found["log"] = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
    results["parts"][part] = found
    write(file, results)
    print(f"{part}: {found['status']}, {seconds} s", *found.get("log", [])[-2:], sep="\n    ")


def write(file: Path, results: dict[str, Any]) -> None:
    """Write the results beside the file, then put them in its place."""
    beside = file.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, file)


def main() -> None:
    """Run the command that the arguments name."""
    match sys.argv[1:]:
        case [file, "begin", *parts]:
            begin(Path(file), parts)
        case [file, "end", part, code, seconds, work]:
            end(Path(file), part, int(code), int(seconds), Path(work))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
