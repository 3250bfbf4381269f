"""`judge estimate` against the trainings that were measured (benchmarks.gpu.training)."""

import json
from typing import Any

from benchmarks.gpu.part import Part, ended, start
from benchmarks.gpu.training import WAYS, WEIGHTS, training_flags


def said(part: Part, weights: str) -> dict[str, Any]:
    """Return what `judge estimate` says of the run with the recipe's defaults."""
    folder = part.folder(weights)
    log = folder / "log.txt"
    argv = ["-m", "pt_app.cli", "estimate", "--recipe", "cuda", "--json"]
    ended(start([*argv, *training_flags(part, weights, folder)], log), log)
    text = "\n" + log.read_text(encoding="utf-8")  # the JSON begins at a brace alone on its line
    found, _ = json.JSONDecoder().raw_decode(text, text.index("\n{\n") + 1)
    return dict(found)


def main() -> None:
    """Compare memory and seconds for each kind of weights."""
    part = Part.started("estimate")
    trained = json.loads((part.work / "training.json").read_text())
    numbers: dict[str, Any] = {}
    for weights in ["nf4"] if part.smoke else WEIGHTS:
        seen = trained.get(weights, {}).get("ways", {}).get(next(iter(WAYS)), {})
        found = said(part, weights)
        numbers[weights] = {
            "said_bytes": found["memory"]["total"],
            "said_parts": found["memory"],
            "said_seconds": found["seconds"] and found["seconds"]["training"],
            "measured_seconds": sum(seen.get("step_seconds", ())),
            **{f"measured_{key}": value for key, value in seen.items() if key.endswith("bytes")},
        }
        part.save(numbers)


if __name__ == "__main__":
    main()
