"""Runs the CUDA recipe as a person would, and looks on.

watched_recipe.py NUMBERS [--gradients=FILE] [--hold_after=STEPS] flags of the recipe...
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.gpu.watch import Watch
from pt_app.eval_model.judge_train_cuda import main
from pt_app.models.gemm import restore_matmul_choice
from pt_app.models.packing import Batch
from pt_app.training.loop import TrainingLoop

HELD = 300  # seconds


def hold_after(steps: int) -> None:
    """Let the training wait once it has taken so many steps: it will be killed there."""
    compute = TrainingLoop.compute_loss

    def compute_late(self: TrainingLoop, batch: Batch, count: Tensor) -> Tensor:
        if self.state.global_step >= steps:
            time.sleep(HELD)
        return compute(self, batch, count)

    TrainingLoop.compute_loss = compute_late  # type: ignore[method-assign]


def values_of(name: str, flags: Sequence[str]) -> list[str]:
    """Return the values of a flag of this script's own."""
    return [flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}=")]


if __name__ == "__main__":
    numbers, *flags = sys.argv[1:]
    named = values_of("gradients", flags)
    for steps in values_of("hold_after", flags):
        hold_after(int(steps))
    Watch(Path(numbers), Path(named[0]) if named else None).install()
    # On a CPU the recipe chooses its float32 matmul by a clock: runs that are compared with each
    # other all take the plain one.
    restore_matmul_choice(False)
    main([flag for flag in flags if not flag.startswith(("--gradients=", "--hold_after="))])
