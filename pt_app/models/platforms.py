"""The platform of a run, decided once: device, weights, optimizer, loader, cache, and the reason.

Nothing else in the project asks which device it runs on: it reads these values.
"""

import os
import platform as host
from dataclasses import dataclass, replace
from typing import Literal

import torch

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.settings import Recipe
from pt_app.models import gemm

Weights = Literal["float32", "bfloat16", "float16", "nf4"]
PLANNED = "planned, not this machine's"
PAGED = "paged_adamw_8bit"  # its states move to the CPU when the GPU's memory is full


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the machine changes in a run.

    Attributes:
        device: where the model is trained: "mps", "cuda" or "cpu".
        reason: why there.
        hardware: name and memory, for the log.
        weights: format of the frozen base; nf4 means NF4 with double quantization.
        compute_dtype: of the matmuls of the base.
        optimizer: its name, as in `training.run.optimizer_class`.
        empty_cache_steps: steps between clearings of the device's cache; None: never.
        fixed_lengths: pad to a few lengths: on MPS memory grows with the number of distinct shapes.
        load_device: where the base is loaded: the device, or the CPU if it is then sharded over
            several.
        attention: name in the registry of transformers; "judge_blocks" is this project's, for CPUs.
    """

    device: str
    reason: str
    hardware: str
    weights: Weights = "float32"
    compute_dtype: torch.dtype = torch.float32
    optimizer: str = "adamw_torch"
    empty_cache_steps: int | None = None
    fixed_lengths: bool = False
    load_device: str
    attention: str = "sdpa"

    @property
    def mixed_precision(self) -> str:
        """The mixed precision of accelerate, which follows the compute dtype on a GPU.

        On a CPU it would convert the weights of the adapter again in every matmul.
        """
        if self.compute_dtype == torch.bfloat16 and not self.on_cpu:
            return "bf16"
        return "fp16" if self.compute_dtype == torch.float16 else "no"

    @property
    def loss_tolerance(self) -> float:
        """Maximum relative difference of the losses of two layouts of one batch."""
        return 1e-4 if self.compute_dtype == torch.float32 else 3e-2

    @property
    def has_own_memory(self) -> bool:
        """Whether the device has its own memory; an Apple GPU shares that of the machine."""
        return self.device.startswith("cuda")

    @property
    def max_kept(self) -> int:
        """Bytes of the largest freed tensor that a process on a CPU keeps for reuse.

        Each matmul of an NF4 base dequantizes a weight, and the hole it leaves fits nothing else.
        If it is returned to the system, a base of 250 M weights peaks at 3.0 GiB instead of 5.1,
        for a fifth more time.
        """
        return 2**20 if self.weights == "nf4" else gemm.MAX_KEPT

    @property
    def on_cpu(self) -> bool:
        """Whether no accelerator is used."""
        return self.device == "cpu"


def cores() -> int:
    """Return the number of cores that this process may use: a cluster job has few of a node's."""
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has no affinity
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def recipe_for_this_machine() -> Recipe:
    """Return the recipe that uses the hardware: "cuda" on NVIDIA and AMD, else "mps"."""
    return "cuda" if torch.cuda.is_available() else "mps"


def decide(
    recipe: Recipe,
    *,
    no_4bit: bool = False,
    precision: str = "auto",
    sharded: bool = False,
    on_cpu: bool = False,
    by: str = "",
) -> Platform:
    """Decide the platform of a run of `recipe` on this machine.

    Args:
        recipe: "mps" or "cuda".
        no_4bit: hold the base in 16 bits instead of NF4.
        precision: "auto", "float32" or "bf16" (--train_precision).
        sharded: shard the base over the processes (--shard_base).
        on_cpu: do not use a GPU of this machine.
        by: what trains, for the reason; "": the recipe.

    Raises:
        UserError: if this machine cannot compute in this precision, or has nothing to shard over.
    """
    # Numbers below 1e-38 (denormals) become zero: they take a CPU many times longer, and the
    # softmax of a confident judge makes plenty of them. It costs nothing elsewhere.
    torch.set_flush_denormal(True)
    platform = _mps(on_cpu) if recipe == "mps" else _cuda(no_4bit, on_cpu)
    if on_cpu:
        requested = f"the CPU, as requested: {by or f'judge_train_{recipe}.py'} trains there"
        platform = replace(platform, reason=requested)
    if precision != "auto":
        platform = _in_precision(platform, precision)
    if sharded:
        platform = _sharded(platform)
    if platform.on_cpu:
        gemm.keep_freed_memory(platform.max_kept)
        if gemm.should_use_fast_matmul():
            torch.set_float32_matmul_precision("medium")
            more = "float32 matmuls through oneDNN, as exact and faster here"
            platform = replace(platform, reason=f"{platform.reason}; {more}")
    return platform


def get_device(wish: str = "auto", precision: str = "auto") -> Platform:
    """Return the platform of a model without a frozen base: CUDA, else MPS, else the CPU.

    Args:
        wish: "auto", or the one device that will do: "cuda", "mps" or "cpu".
        precision: as for `decide`.

    Raises:
        UserError: if the machine has no such device, or cannot compute in this precision.
    """
    recipes: dict[str, Recipe] = {"cuda": "cuda", "mps": "mps"}
    recipe = recipes.get(wish, recipe_for_this_machine())
    platform = decide(
        recipe, no_4bit=True, precision=precision, on_cpu=wish == "cpu", by="the model"
    )
    if wish not in ("auto", platform.device.partition(":")[0]):
        raise UserError(f"--device {wish}: there is none here: take cpu, or leave it out")
    return platform


def _sharded(platform: Platform) -> Platform:
    """Return the platform with its base sharded over the processes."""
    if console.ranks() == 1:
        raise UserError(
            "--shard_base shards the base over several processes, and this is one: start them with "
            "accelerate launch --config_file scripts/accelerate/sharded.yaml"
        )
    if platform.weights == "nf4":
        raise UserError("--shard_base: a base in 4 bits cannot be sharded: add --no_4bit")
    return replace(platform, load_device="cpu", reason=f"{platform.reason}; base sharded (FSDP2)")


def planned(recipe: Recipe, *, no_4bit: bool, precision: str, gib: float | None) -> Platform:
    """Return the platform of a run on a GPU of `gib` GiB that need not be present; for estimates.

    "mps" is an Apple GPU, "cuda" an NVIDIA or AMD GPU with bfloat16.
    """
    hardware = f"a GPU of {'a size not given' if gib is None else f'{gib:g} GiB'}"
    if recipe == "mps":
        platform = _apple_gpu(hardware, PLANNED)
    else:
        platform = _gpu("cuda", hardware, PLANNED, torch.bfloat16, no_4bit)
    if precision == "auto":
        return platform
    return replace(_in_precision(platform, precision), reason=PLANNED)


def device_memory(platform: Platform) -> int | None:
    """Return the bytes that the accelerator can give to a run now; None on a CPU."""
    if platform.has_own_memory and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    if platform.device == "mps" and torch.backends.mps.is_available():
        return int(torch.mps.recommended_max_memory())
    return None


def _in_precision(platform: Platform, precision: str) -> Platform:
    """Return the platform with its base in this precision; NF4 weights only compute in it."""
    nf4, bf16 = platform.weights == "nf4", precision == "bf16"
    if bf16 and platform.on_cpu and (nf4 or not gemm.has_bfloat16()):
        why = "does not compute in bfloat16 with NF4 weights: add --no_4bit, or"
        why = why if nf4 else "has no bfloat16 instructions:"
        raise UserError(f"--train_precision bf16: this CPU {why} leave it out")
    present = platform.has_own_memory and platform.reason != PLANNED
    if bf16 and present and not _has_bfloat16():
        raise UserError("--train_precision bf16: this GPU has no bfloat16: leave it out")
    dtype = torch.bfloat16 if bf16 else torch.float32
    weights: Weights = "nf4" if nf4 else "bfloat16" if bf16 else "float32"
    reason = f"{platform.reason}; in {dtype} as requested"
    return replace(platform, compute_dtype=dtype, weights=weights, reason=reason)


def _mps(on_cpu: bool) -> Platform:
    if on_cpu or not torch.backends.mps.is_available():
        reason = "no Apple GPU here: training on the CPU"
        if torch.cuda.is_available():
            reason += "; judge_train_cuda.py would use the GPU of this machine"
        return _cpu(reason)
    if console.ranks() > 1:
        raise UserError("an Apple GPU trains in one process: start the recipe without a launcher")
    memory = torch.mps.recommended_max_memory() / 2**30
    return _apple_gpu(f"Apple GPU, {memory:.1f} GiB usable", "Apple GPU found")


def _cuda(no_4bit: bool, on_cpu: bool) -> Platform:
    if on_cpu or not torch.cuda.is_available():
        reason = "no NVIDIA or AMD GPU here: training on the CPU, in float32, without paging"
        return _cpu(reason) if no_4bit else replace(_cpu(reason), weights="nf4", optimizer=PAGED)
    number = console.number("LOCAL_RANK", 0)  # under a launcher each process has its own GPU
    if number >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs: start one process for each of them"
        )
    device = f"cuda:{number}" if console.ranks() > 1 else "cuda"
    dtype, why = torch.bfloat16, "it has bfloat16"
    if not _has_bfloat16():
        dtype, why = torch.float16, "it has no native bfloat16, so float16"
    kind = "AMD GPU (ROCm)" if torch.version.hip else "NVIDIA GPU"
    properties = torch.cuda.get_device_properties(device)
    hardware = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    return _gpu(device, hardware, f"{kind} found; {why}", dtype, no_4bit)


def _plain(device: str, hardware: str, reason: str) -> Platform:
    """Return the platform of a device on which the base is held and computed in float32."""
    return Platform(device=device, load_device=device, hardware=hardware, reason=reason)


def _apple_gpu(hardware: str, reason: str) -> Platform:
    return replace(_plain("mps", hardware, reason), empty_cache_steps=4, fixed_lengths=True)


def _gpu(device: str, hardware: str, reason: str, dtype: torch.dtype, no_4bit: bool) -> Platform:
    weights: Weights = "bfloat16" if dtype == torch.bfloat16 else "float16"
    platform = replace(_plain(device, hardware, reason), weights=weights, compute_dtype=dtype)
    return platform if no_4bit else replace(platform, weights="nf4", optimizer=PAGED)


def _cpu(reason: str) -> Platform:
    name = host.processor() or host.machine()
    hardware = f"{name} CPU, {torch.get_num_threads()} threads"
    return replace(_plain("cpu", hardware, reason), attention="judge_blocks")


def _has_bfloat16() -> bool:
    # A T4 reports bfloat16 but emulates it, several times slower: ask for the native one.
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
