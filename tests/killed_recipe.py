"""A recipe that is killed, without warning, in the middle of a step.

python -m tests.killed_recipe <recipe> <step> <where> <the recipe's flags>

`where` is the pack of the step before whose loss the process ends, or "saving": while the next
checkpoint is written.
"""

import os
import signal
import sys
from typing import Any

from pt_app.eval_model import judge_train_cuda, judge_train_mps
from pt_app.training import checkpoints
from pt_app.training.trainer import JudgeTrainer


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    recipe, step, where, *argv = sys.argv[1:]
    compute, seen = JudgeTrainer.compute_loss, {"packs": 0}

    def dying(self: JudgeTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= int(step):
            if where == "saving":
                checkpoints.publish = die
            elif seen["packs"] >= int(where):
                die()
            seen["packs"] += 1
        return compute(self, *args, **kwargs)

    JudgeTrainer.compute_loss = dying  # type: ignore[method-assign]
    {"mps": judge_train_mps, "cuda": judge_train_cuda}[recipe].main(argv)


main()
