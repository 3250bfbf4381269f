"""Holds a training at a step until it is signalled: a test then has all the time to do so.

Python imports this module at its start where this folder is on PYTHONPATH, in the children of a
command and the ranks of a launcher as well. JUDGE_TEST_HOLD_AT is the step. JUDGE_TEST_HOLD_RANK
names the rank that waits; without it each one does.
"""

import importlib.util
import os
import sys
import time
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

LOOP = "pt_app.training.loop"


def hold(module: ModuleType) -> None:
    """Let the training loop wait, after so many steps, for the signal that interrupts it.

    A run that resumes from there does not wait again: a signal that came in the validation of that
    step left its checkpoint.
    """
    loop, step = module.TrainingLoop, int(os.environ["JUDGE_TEST_HOLD_AT"])
    compute = loop.compute_loss

    def compute_once_signalled(self: Any, *arguments: Any) -> Any:
        begun = vars(self).setdefault("begun", self.state.global_step)
        while begun < step == self.state.global_step and not self.interrupted:
            time.sleep(0.01)
        return compute(self, *arguments)

    loop.compute_loss = compute_once_signalled


class Finder(MetaPathFinder):
    """Finds the module of the training loop, once, as one that `hold` changes."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != LOOP:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_hold(module: ModuleType) -> None:
            load(module)
            hold(module)

        spec.loader.exec_module = load_and_hold  # type: ignore[method-assign]
        return spec


rank = os.environ.get("RANK", "0")
if "JUDGE_TEST_HOLD_AT" in os.environ and os.environ.get("JUDGE_TEST_HOLD_RANK", rank) == rank:
    sys.meta_path.insert(0, Finder())
