"""What happens between the steps of a training: stopping on a signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from pt_app.training.distributed import any_rank

STOPPING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # SLURM sends it before a job's limit (sbatch --signal)
    STOPPING.append(signal.SIGUSR1)


class StopAfterStep(transformers.TrainerCallback):  # type: ignore[misc]
    """On SIGINT, SIGTERM or SIGUSR1 lets the step end, saves a checkpoint, stops the training."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within; only the main thread may, another leaves them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._ask) for s in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by Trainer after each optimizer step; all ranks stop after the same one."""
        self.asked = any_rank(self.asked, args.device)
        if self.asked:
            control.should_save = control.should_training_stop = True
