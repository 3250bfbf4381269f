"""The CUDA recipe at the large shape: tokens per second, memory, and TRL on the same base and rows.

Both sides take steps of the same examples, one process after the other, on the same GPU.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu.bases import workload
from benchmarks.gpu.part import Part, ended, recipe_flags, start

WEIGHTS: dict[str, list[str]] = {"nf4": [], "bf16": ["--no_4bit"]}
WAYS: dict[str, list[str]] = {
    "defaults": [],  # full activation checkpointing, packs of 2,048 tokens
    "large packs, nothing checkpointed": ["--activation_checkpointing=none", "--pack_tokens=8192"],
}


def training_flags(part: Part, weights: str, out: Path) -> list[str]:
    """Return the recipe's flags of a timed training, but for its way."""
    sizes = part.sizes
    count = sizes.steps * sizes.examples
    more = [f"--batch_size={sizes.examples}", "--gradient_accumulation=1", f"--max_samples={count}"]
    more += ["--epochs=1", "--save_steps=0", *WEIGHTS[weights]]
    return recipe_flags(part.big, part.rows, out, *more)


def measured(file: Path, examples: int, tokens: float) -> dict[str, Any]:
    """Return what `Watch` wrote, with its rates: the first quarter of the steps warms up.

    `tokens` are those of a row on average, prompt and answer, each counted for each row.
    """
    seen: dict[str, Any] = json.loads(file.read_text())
    if "error" in seen:
        return seen
    timed = seen["step_seconds"][len(seen["step_seconds"]) // 4 :]
    rate = examples / statistics.median(timed)
    return {"examples_per_second": rate, "tokens_per_second": rate * tokens, **seen}


def run_recipe(part: Part, weights: str, way: str, tokens: float) -> dict[str, Any]:
    """Train with the recipe; a run that fails gives its error."""
    folder = part.folder(f"{weights}-{way.split(',')[0].replace(' ', '-')}")
    numbers, log = folder / "numbers.json", folder / "log.txt"
    script = ["-m", "benchmarks.gpu.watched_recipe", str(numbers)]
    try:
        ended(start([*script, *training_flags(part, weights, folder), *WAYS[way]], log), log)
    except RuntimeError as error:
        return {"error": str(error)}
    return measured(numbers, part.sizes.examples, tokens)


def run_trl(part: Part, weights: str, tokens: float) -> dict[str, Any]:
    """Train all of TRL's settings, in a process of their own."""
    folder = part.folder(f"{weights}-trl")
    log = folder / "log.txt"
    script = ["-m", "benchmarks.gpu.watched_trl", str(folder), str(part.big), weights]
    try:
        ended(start([*script, *(["--smoke"] if part.smoke else [])], log), log)
    except RuntimeError as error:
        return {"TRL": {"error": str(error)}}
    files = sorted(folder.glob("*.json"))
    return {f"TRL, {f.stem}": measured(f, part.sizes.examples, tokens) for f in files}


def ratios(ways: dict[str, Any]) -> dict[str, float]:
    """Return the recipe's best over TRL's best, in examples per second and in peak bytes."""
    found = {}
    for name, best in (("examples_per_second", max), ("peak_bytes", min)):
        own = [way[name] for key, way in ways.items() if name in way and key in WAYS]
        theirs = [way[name] for key, way in ways.items() if name in way and key not in WAYS]
        if own and theirs:
            found[f"{name}_over_trl"] = best(own) / best(theirs)
    return found


def main() -> None:
    """Measure NF4 and 16 bits; fails where neither side could be measured."""
    part = Part.started("training")
    lengths = [len(row["input_ids"]) for row in workload(part.sizes).encoded]
    tokens = statistics.mean(lengths)
    numbers: dict[str, Any] = {"tokens_of_a_row": tokens, "examples_a_step": part.sizes.examples}
    for weights in WEIGHTS:
        ways: dict[str, Any] = {}
        numbers[weights] = {"ways": ways}
        for way in list(WAYS)[: 1 if part.smoke and weights != "nf4" else None]:
            ways[way] = run_recipe(part, weights, way, tokens)
            part.save(numbers)
        ways.update(run_trl(part, weights, tokens))
        numbers[weights] |= ratios(ways)
        part.save(numbers)
    runs = [(key, way) for weights in WEIGHTS for key, way in numbers[weights]["ways"].items()]
    if wrong := [f"{key}: {way['error']}" for key, way in runs if "error" in way]:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
