"""Train a judge on an Apple GPU: float32 LoRA, cache clearing. Without one, on the CPU.

python pt_app/eval_model/judge_train_mps.py --epochs 3
python pt_app/eval_model/judge_train_mps.py --config configs/tiny.yaml     (no network needed)

The twin for NVIDIA and AMD is judge_train_cuda.py; the flags are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run by path: this folder must not be on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import pt_app.eval_model  # noqa: F401  (as `-m` does, before any other package)

from pt_app.core.errors import exit_with
from pt_app.core.settings import Settings, resolve
from pt_app.eval_model import repeats
from pt_app.models.bases import ModelSource, load_model

if TYPE_CHECKING:  # these import torch, which takes seconds: --help and a typo do without
    from transformers import PreTrainedModel

    from pt_app.models.platforms import Platform
    from pt_app.training.loop import LoopArguments


def load_base(source: ModelSource, settings: Settings, platform: Platform) -> PreTrainedModel:
    """Load the base in float32 on the platform's device, without LoRA yet."""
    # The dtype is given: the default is the checkpoint's own, mostly bfloat16, which Apple's M1 and
    # M2 only emulate. It is float32 unless --train_precision says otherwise.
    return load_model(source, dtype=platform.compute_dtype, device=platform.load_device)


def training_arguments(common: LoopArguments, platform: Platform) -> LoopArguments:
    """Add what this platform needs to the arguments that both recipes share."""
    return replace(
        common,
        max_grad_norm=1.0,
        # Workers deadlock on macOS with Python 3.12 (jingyaogong/minimind PR 852).
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        # The allocator keeps a buffer for every size it has seen (pytorch PR 188045).
        torch_empty_cache_steps=platform.empty_cache_steps,
    )


def train(settings: Settings) -> Path:
    """Train a judge, save its adapter, evaluate it on the CPU; return the adapter's folder."""
    from pt_app.eval_model import entry

    return entry.run("mps", settings, load_base, training_arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """Train once, or once for each seed or fold."""
    settings = resolve("mps", argv, "judge_train_mps.py", __doc__ or "")
    repeats.run(settings, train)


if __name__ == "__main__":
    exit_with(main)
