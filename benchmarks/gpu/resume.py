"""Kills a training with SIGKILL behind a checkpoint, resumes it, compares the final adapters.

On a GPU two uninterrupted runs may differ too: their distance is reported as well.
"""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.gpu.part import Part, ended, recipe_flags, start

KILLED_AFTER = 8  # steps of 24


def launch(part: Part, name: str, *more: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """Start the recipe on the small base; give its process, its folder and its log."""
    folder = part.folder(name)
    log = folder / f"log{'-resumed' if '--resume' in more else ''}.txt"
    argv = ["--epochs=2", "--max_samples=24", "--batch_size=1", "--gradient_accumulation=2"]
    argv += ["--save_steps=4", "--lora_dropout=0.1", *more]
    flags = recipe_flags(part.small, part.rows, folder, *argv)
    watched = ["-m", "benchmarks.gpu.watched_recipe", str(folder / "numbers.json")]
    return start([*watched, *flags], log), folder, log


def kill_behind_checkpoint(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Wait for a checkpoint of enough steps, then kill; give the newest checkpoint's step.

    Raises RuntimeError where the run ended before.
    """
    while True:
        done = [
            int(f.parent.name.split("-")[-1]) for f in folder.glob("*/checkpoint-*/complete.json")
        ]
        if max(done, default=0) >= KILLED_AFTER:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return max(done)
        if process.poll() is not None:
            raise RuntimeError(f"exit code {process.returncode} before it could be killed")
        time.sleep(0.01)


def adapter_file(folder: Path) -> Path:
    """Return the weights of the one final adapter in a run's output folder."""
    (file,) = folder.glob("*_final/adapter_model.safetensors")
    return file


def distance(one: Path, other: Path) -> dict[str, Any]:
    """Return whether two adapters are equal byte by byte, and the largest difference."""
    a, b = load_file(one), load_file(other)
    largest = max(float((a[name] - b[name]).abs().max()) for name in a)
    return {"equal_bytes": one.read_bytes() == other.read_bytes(), "largest_difference": largest}


def main() -> None:
    """Run whole, again and cut side by side; resume the cut one."""
    part = Part.started("resume")
    # Held, or a machine that is busy could see the checkpoint after the end of the run.
    whole, cut = launch(part, "whole"), launch(part, "cut", f"--hold_after={KILLED_AFTER}")
    again = None if part.smoke else launch(part, "again")
    step = kill_behind_checkpoint(cut[0], cut[1])
    numbers: dict[str, Any] = {"killed_behind_checkpoint": step}
    part.save(numbers)
    resumed = launch(part, "cut", "--resume")
    for process, _, log in filter(None, (whole, again, resumed)):
        ended(process, log)
    said = resumed[2].read_text(encoding="utf-8", errors="replace")
    numbers["resumed_from_checkpoint"] = "checkpoint-" in said
    numbers["resumed"] = distance(adapter_file(cut[1]), adapter_file(whole[1]))
    if again:
        numbers["uninterrupted_again"] = distance(adapter_file(again[1]), adapter_file(whole[1]))
    part.save(numbers)


if __name__ == "__main__":
    main()
