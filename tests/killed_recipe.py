"""A recipe, or a stage from scratch, that is killed again and again in the middle of a step.

python -m tests.killed_recipe NAME POINTS FLAGS...

NAME is a recipe, or the script of a stage. Nothing warns it.

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

from pt_app.core.flags import parsed
from pt_app.eval_model import (
    entry,  # noqa: F401  (what the recipes import when they run)
    judge_train_cuda,
    judge_train_mps,
)
from pt_app.pretrain import plans
from pt_app.pretrain.settings import BaseSettings, MidSettings, SftSettings
from pt_app.training import checkpoints
from pt_app.training.loop import TrainingLoop

RECIPES = {"mps": judge_train_mps.main, "cuda": judge_train_cuda.main}
STAGES = {
    "base_train": lambda argv: plans.base_train(parsed(BaseSettings, argv)),
    "mid_train": lambda argv: plans.chat_train(parsed(MidSettings, argv)),
    "chat_sft": lambda argv: plans.chat_train(parsed(SftSettings, argv)),
}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_until(name: str, step: int, where: str, argv: list[str]) -> None:
    """Run the recipe or stage in this process, which does not survive it."""
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
    (RECIPES | STAGES)[name](argv)


def main() -> None:
    name, points, *argv = sys.argv[1:]
    again = ["--resume"] if name in RECIPES else []
    gc.freeze()  # a run collects garbage when it frees memory: a second, beside all these modules
    for number, (step, where) in enumerate(json.loads(points)):
        child = os.fork()
        if not child:
            try:
                run_until(name, step, where, [*argv, *again] if number else argv)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(3)  # it came to its end, or to an error
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"the run of step {step} ({where}) was not killed: {status}")


if __name__ == "__main__":
    main()
