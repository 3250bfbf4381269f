"""An adapter trained on the GPU, scored on the CPU and on the GPU: the same verdicts?"""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Part, ended, start
from benchmarks.gpu.resume import adapter_file

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def launch(part: Part, device: str) -> tuple[Any, Path, Path]:
    """Start `judge score` on a device; give its process, its output and its log."""
    folder = part.folder(device)
    out, log = folder / "scored.jsonl", folder / "log.txt"
    argv = ["score", f"--adapter={adapter_file(part.work / 'resume' / 'whole').parent}"]
    argv += [f"--base={part.small}", f"--input={part.rows / 'judge_val.json'}", f"--output={out}"]
    return start(["-m", "pt_app.cli", *argv, f"--device={device}"], log), out, log


def main() -> None:
    """Score on all devices at once; fails where a row is not scored or a verdict differs."""
    part = Part.started("back")
    started = [launch(part, device) for device in DEVICES]
    scored = []
    for process, out, log in started:
        ended(process, log)
        scored.append([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    pairs = list(zip(scored[0], scored[-1], strict=True))
    apart = [
        abs(chance - other["probabilities"][name])
        for one, other in pairs
        for name, chance in one["probabilities"].items()
    ]
    changed = sum(one["verdict"] != other["verdict"] for one, other in pairs)
    part.save(
        {
            "devices": DEVICES,
            "rows": len(pairs),
            "verdicts_changed": changed,
            "probability_difference": max(apart),
        }
    )
    if changed or not pairs:
        raise SystemExit(f"{changed} of {len(pairs)} verdicts differ between {DEVICES}")


if __name__ == "__main__":
    main()
