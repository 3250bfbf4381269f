"""A recipe that is killed again and again, without warning, in the middle of a step.

python -m tests.killed_recipe RECIPE POINTS FLAGS...

POINTS is a JSON list of [step, where]. `where` is the pack of the step before whose loss the
process ends, or "saving": while the next checkpoint is written. Each run but the first resumes the
one before. The runs are forked from a process that has imported everything: a fresh interpreter for
each takes ten times as long, most of it for imports.
"""

import gc
import json
import os
import signal
import sys
import traceback
from typing import Any

from pt_app.eval_model import (
    entry,  # noqa: F401  (what the recipes import when they run)
    judge_train_cuda,
    judge_train_mps,
)
from pt_app.training import checkpoints
from pt_app.training.loop import TrainingLoop


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_until(recipe: str, step: int, where: str, argv: list[str]) -> None:
    """Run the recipe in this process, which does not survive it."""
    compute, seen = TrainingLoop.compute_loss, {"packs": 0}

    def dying(self: TrainingLoop, batch: Any, count: Any) -> Any:
        if self.state.global_step >= step:
            if where == "saving":
                checkpoints.publish = die
            elif seen["packs"] >= int(where):
                die()
            seen["packs"] += 1
        return compute(self, batch, count)

    TrainingLoop.compute_loss = dying  # type: ignore[method-assign]
    {"mps": judge_train_mps, "cuda": judge_train_cuda}[recipe].main(argv)


def main() -> None:
    recipe, points, *argv = sys.argv[1:]
    gc.freeze()  # a run collects garbage when it frees memory: a second, beside all these modules
    for number, (step, where) in enumerate(json.loads(points)):
        child = os.fork()
        if not child:
            try:
                run_until(recipe, step, where, [*argv, "--resume"] if number else argv)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(3)  # it came to its end, or to an error
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"the run of step {step} ({where}) was not killed: {status}")


main()
