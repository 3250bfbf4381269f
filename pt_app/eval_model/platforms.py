"""The platform, decided once: device, weights, optimizer, loader, cache. And why.

Nothing else in the project asks which device it runs on; it reads these values.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from pt_app.eval_model.settings import Recipe

Weights = Literal["float32", "bfloat16", "float16", "nf4"]


@dataclass(frozen=True)
class Platform:
    """What the machine changes about a run."""

    device: str
    """Where the model is trained: "mps", "cuda" or "cpu"."""
    reason: str
    hardware: str
    """Name and memory, for people."""
    weights: Weights
    """How the frozen base is held; nf4 means double-quantised NF4."""
    compute_dtype: torch.dtype
    """Of the base's matrix products."""
    optimizer: str
    empty_cache_steps: int | None
    fixed_lengths: bool
    """Pad to a few fixed lengths: on MPS memory grows with the number of distinct shapes."""

    @property
    def autocast(self) -> dict[str, bool]:
        """TrainingArguments' mixed precision, which follows the compute dtype."""
        return {
            "bf16": self.compute_dtype == torch.bfloat16,
            "fp16": self.compute_dtype == torch.float16,
        }

    def free_memory(self) -> None:
        """Give back what a deleted model held: the allocators of GPUs keep it otherwise."""
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)

    @property
    def on_cpu(self) -> bool:
        """No accelerator is used."""
        return self.device == "cpu"


def recipe_for_this_machine() -> Recipe:
    """The recipe that uses what this machine has: "cuda" on NVIDIA and AMD, else "mps"."""
    return "cuda" if torch.cuda.is_available() else "mps"


def decide(recipe: Recipe, *, no_4bit: bool = False) -> Platform:
    """The platform of a run of `recipe` on this machine."""
    # Numbers below 1e-38 are set to zero: processors take many times longer over them, and a
    # judge that is sure of its answer makes plenty in its softmax. Costs nothing elsewhere.
    torch.set_flush_denormal(True)
    return _mps() if recipe == "mps" else _cuda(no_4bit)


def _mps() -> Platform:
    on_apple = torch.backends.mps.is_available()
    if on_apple:
        device, reason = "mps", "Apple GPU found"
        memory = torch.mps.recommended_max_memory() / 2**30
        hardware = f"Apple GPU, {memory:.1f} GiB usable"
    else:
        device, hardware = "cpu", _cpu_name()
        reason = "no Apple GPU here: training on the CPU"
        if torch.cuda.is_available():
            reason += "; judge_train_cuda.py would use the GPU of this machine"
    return Platform(
        device=device,
        reason=reason,
        hardware=hardware,
        weights="float32",
        compute_dtype=torch.float32,
        optimizer="adamw_torch",
        empty_cache_steps=4 if on_apple else None,
        fixed_lengths=on_apple,
    )


def _cuda(no_4bit: bool) -> Platform:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        device, dtype, why = "cuda", *_gpu_compute_dtype()
        kind = "AMD GPU (ROCm)" if torch.version.hip else "NVIDIA GPU"
        properties: Any = torch.cuda.get_device_properties(0)
        hardware = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        reason = f"{kind} found; {why}"
    else:
        device, dtype, hardware = "cpu", torch.float32, _cpu_name()
        reason = "no NVIDIA or AMD GPU here: training on the CPU, computing in float32"
    plain: Weights = "float32"
    if on_gpu:
        plain = "bfloat16" if dtype == torch.bfloat16 else "float16"
    return Platform(
        device=device,
        reason=reason,
        hardware=hardware,
        weights=plain if no_4bit else "nf4",
        compute_dtype=dtype,
        optimizer="adamw_torch" if no_4bit else "paged_adamw_8bit",
        empty_cache_steps=None,
        fixed_lengths=False,
    )


def _gpu_compute_dtype() -> tuple[torch.dtype, str]:
    # A T4 answers that it has bfloat16 and emulates it, several times slower: ask for the real one.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "it has bfloat16"
    return torch.float16, "it has no bfloat16 of its own, so float16"


def _cpu_name() -> str:
    import platform

    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
