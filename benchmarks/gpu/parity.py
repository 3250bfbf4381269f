"""Loss and gradients of the recipe on the GPU against the same run on the CPU, at a small shape."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Part, ended, recipe_flags, start
from benchmarks.train import gradient_distance

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
# name: flags, environment, against which run it is compared, and how far its gradients may be off
RUNS: dict[str, tuple[list[str], dict[str, str], str, float]] = {
    "cpu, float32": (["--no_4bit"], ON_CPU, "", 0.0),
    "cpu, nf4": ([], ON_CPU, "", 0.0),
    "gpu, float32": (["--no_4bit", "--train_precision=float32"], {}, "cpu, float32", 1e-3),
    "gpu, bf16": (["--no_4bit"], {}, "cpu, float32", 0.1),
    "gpu, nf4": ([], {}, "cpu, nf4", 0.1),
}
SMOKE_RUNS = ("cpu, float32", "gpu, float32")


def launch(part: Part, name: str) -> tuple[Any, Path]:
    """Start a run of two logged stretches of ten steps; give its process and its folder."""
    flags, env, _, _ = RUNS[name]
    folder = part.folder(name.replace(", ", "-"))
    steps = ["--epochs=1", "--batch_size=1", "--gradient_accumulation=2", "--max_samples=40"]
    argv = recipe_flags(part.small, part.rows, folder, *steps, "--save_steps=0", *flags)
    watched = ["-m", "benchmarks.gpu.watched_recipe", str(folder / "numbers.json")]
    script = [*watched, f"--gradients={folder / 'gradients.pt'}", *argv]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 4))}
    return start(script, folder / "log.txt", {**threads, **env}), folder


def compared(folder: Path, reference: Path, tolerance: float) -> dict[str, Any]:
    """Return how far losses and gradients of two runs lie apart, and whether that is allowed."""
    one, other = (json.loads((f / "numbers.json").read_text()) for f in (folder, reference))
    grads, right = (torch.load(f / "gradients.pt", weights_only=True) for f in (folder, reference))
    distance = gradient_distance(grads, right)
    losses = zip(one["losses"], other["losses"], strict=True)
    return {
        "device": one["device"],
        "losses": one["losses"],
        "loss_difference": max(abs(a - b) for a, b in losses),
        "gradient_relative_difference": distance,
        "tolerance": tolerance,
        "within": distance <= tolerance,
    }


def main() -> None:
    """Run all at once, then compare; fails where gradients are further off than allowed."""
    part = Part.started("parity")
    names = SMOKE_RUNS if part.smoke else tuple(RUNS)
    started = {name: launch(part, name) for name in names}
    for process, folder in started.values():
        ended(process, folder / "log.txt")
    numbers = {}
    for name, (_, folder) in started.items():
        _, _, reference, tolerance = RUNS[name]
        if reference:
            numbers[name] = compared(folder, started[reference][1], tolerance)
            part.save(numbers)
    if wrong := [name for name, found in numbers.items() if not found["within"]]:
        raise SystemExit(f"gradients are off: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
