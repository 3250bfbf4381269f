"""Train a judge on an NVIDIA or AMD GPU: 4-bit QLoRA, paged optimizer. Without one, on the CPU.

python pt_app/eval_model/judge_train_cuda.py --epochs 3
python pt_app/eval_model/judge_train_cuda.py --model tiny --epochs 1     (no network needed)

The twin for Apple is judge_train_mps.py; the flags are the same, but for --no_4bit.
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
    """Load the base in NF4, or in 16 bits with --no_4bit, on the platform's device; no LoRA yet."""
    if settings.no_4bit:
        return load_model(source, dtype=platform.compute_dtype, device=platform.load_device)

    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=platform.compute_dtype,
    )
    model = load_model(source, torch.float32, platform.device, quantization)
    for module in model.modules():
        # On a CPU bitsandbytes 0.50 repacks the weights in the first evaluation, for speed, and
        # the next training step then fails: "a view of a leaf Variable that requires grad".
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # This casts norms and embeddings to float32. The training loop switches checkpointing on.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def training_arguments(common: LoopArguments, platform: Platform) -> LoopArguments:
    """Add what this platform needs to the arguments that both recipes share."""
    from pt_app.models.platforms import cores

    return replace(
        common,
        max_grad_norm=0.3,
        dataloader_num_workers=min(4, cores()),
        dataloader_pin_memory=True,
        mixed_precision=platform.mixed_precision,
    )


def train(settings: Settings) -> Path:
    """Train a judge, save its adapter, evaluate it on the CPU; return the adapter's folder."""
    from pt_app.eval_model import entry

    return entry.run("cuda", settings, load_base, training_arguments)


def main(argv: Sequence[str] | None = None) -> None:
    """Train once, or once for each seed or fold."""
    settings = resolve("cuda", argv, "judge_train_cuda.py", __doc__ or "")
    repeats.run(settings, train)


if __name__ == "__main__":
    exit_with(main)
