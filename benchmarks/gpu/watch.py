"""Looks at a training from within: seconds of each step, memory of the device, first gradients."""

import resource
import time
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from transformers import TrainerCallback

from benchmarks.train import draw_lora_b
from pt_app.core.files import write_json_atomic
from pt_app.training.loop import TrainingLoop


class Watch(TrainerCallback):  # type: ignore[misc]
    """Writes what it saw of a training into `numbers` when the run ends.

    With `gradients` the gradients of the first step go into that file, as clipped; a fresh
    adapter's B matrices, which are zero, are then drawn first, equally on every device: else half
    of the gradients would be zero too.
    """

    def __init__(self, numbers: Path, gradients: Path | None = None) -> None:
        self.numbers, self.gradients = numbers, gradients
        self.model: Any = None
        self.began = 0.0
        self.seconds: list[float] = []

    def install(self) -> None:
        """Let every Trainer and every training loop that is made from here on be watched."""
        transformers.trainer.DEFAULT_CALLBACKS.append(self)
        train = TrainingLoop.train

        def watched(loop: TrainingLoop, checkpoint: Path | None = None) -> None:
            loop.callbacks.append(self)
            train(loop, checkpoint)

        TrainingLoop.train = watched  # type: ignore[method-assign, assignment]

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Called by Trainer before the first step."""
        self.model, self.seconds = model, []
        if self.gradients is not None:
            draw_lora_b(model)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.began = _now()

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Called by Trainer when the gradients of a step are whole."""
        if self.gradients is not None and state.global_step == 0:
            named = self.model.named_parameters()
            kept = {n: p.grad.float().cpu() for n, p in named if p.grad is not None}
            torch.save(kept, self.gradients)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by Trainer behind the optimizer's step."""
        now = _now()
        self.seconds.append(now - self.began)
        self.began = now

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Called by Trainer at the end."""
        logs = [log for log in state.log_history if "loss" in log]
        write_json_atomic(
            self.numbers,
            {
                "step_seconds": self.seconds,
                "losses": [log["loss"] for log in logs],
                "gradient_norms": [log.get("grad_norm") for log in logs],
                **memory(),
            },
        )


def memory() -> dict[str, int | str]:
    """Return the peak bytes of the device since it was last asked to count, else the process's."""
    if not torch.cuda.is_available():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"device": "cpu", "peak_bytes": peak}
    free, whole = torch.cuda.mem_get_info()
    return {
        "device": torch.cuda.get_device_name(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "used_on_device_bytes": whole - free,
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
