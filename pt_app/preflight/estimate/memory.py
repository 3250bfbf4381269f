"""Peak memory of a run by part, and what of it fits. docs/ESTIMATE.md has the terms."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil  # type: ignore[import-untyped]

from pt_app.core import console
from pt_app.models.base_files import weight_files
from pt_app.models.bases import ModelSource
from pt_app.models.gemm import packing_holds
from pt_app.models.memory import memory_limit
from pt_app.models.platforms import Platform, device_memory
from pt_app.preflight.estimate.outline import Held, Outline, Pass
from pt_app.preflight.estimate.plan import Pack, Plan, extremes

GIB = 2**30
FREE_ON_GPU = "free on the GPU"
MARGIN = 0.05  # of the limit is left free
FLOAT32 = 4
# NF4 (QLoRA, arXiv 2305.14314, section 3): half a byte a weight; for each block of 64 a scale in
# 8 bits, for each 256 of these one in 32; and a layer's two tables and offset.
NF4_BLOCK, NF4_SCALES, NF4_TABLES = 64, 256, (16 + 256 + 1) * FLOAT32
# bitsandbytes' 8-bit Adam (optim/optimizer.py): two bytes a parameter and two scales for each 256;
# tensors below 4096 parameters stay in 32 bits.
EIGHT_BIT_BLOCK, LEAST_8_BIT = 256, 4096
# What torch and its libraries add to a process that trains on a CPU: measured, docs/ESTIMATE.md.
# Most are oneDNN's kernels, of which `gemm.KERNELS_KEPT` are kept, and holes between tensors.
LIBRARIES = 200 * 2**20
# CUDA's context and cuBLAS' workspace on a GPU that is planned for: a guess, measured on no card.
CUDA_CONTEXT = 600 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a part of a run."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = sorted(asdict(self).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size >= GIB / 200)

    @property
    def largest(self) -> str:
        """The name of the largest part."""
        parts = asdict(self)
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class Limit:
    """The most bytes a run may hold, and who says so; None where that is not known."""

    bytes: int | None
    reason: str

    def fits(self, total: int) -> bool:
        """Whether `total` stays under the limit and its margin."""
        return self.bytes is None or total <= self.bytes * (1 - MARGIN)


def limit_of(platform: Platform, gpu_memory: int | None = None) -> Limit:
    """What bounds the training on `platform`; `gpu_memory` is that of a GPU that is not here."""
    if gpu_memory is not None:
        return Limit(gpu_memory, "--gpu_memory")
    if not platform.on_cpu:
        free = device_memory(platform)
        return Limit(free, "not known: say it with --gpu_memory" if free is None else FREE_ON_GPU)
    return host_limit()


def host_limit() -> Limit:
    """What bounds the process itself; of an address space, what is mapped and not held counts."""
    size, reason = memory_limit()
    if "address space" in reason:
        mine = psutil.Process().memory_info()
        size -= mine.vms - mine.rss
    elif console.local_ranks() > 1:
        size //= console.local_ranks()
        reason += f", shared by {console.local_ranks()} processes"
    return Limit(size, reason)


def runtime_bytes(platform: Platform, limit: Limit) -> int:
    """Bytes on the device with no model there: this process's now, or a GPU's context.

    What is free on a GPU that is here (`limit`) is measured with the context already made.
    """
    if platform.has_own_memory:
        return 0 if limit.reason == FREE_ON_GPU else CUDA_CONTEXT
    return process_bytes()  # Apple's GPU shares the memory of its CPU


def process_bytes() -> int:
    """What this process holds now, and what its libraries will add."""
    return int(psutil.Process().memory_info().rss) + LIBRARIES


def weight_bytes(outline: Outline) -> int:
    """The frozen base as it is held."""
    platform = outline.platform
    if platform.weights != "nf4":
        return outline.frozen * platform.compute_dtype.itemsize
    total: int = outline.frozen * FLOAT32
    for layer in outline.linear:
        count = int(layer.weight.numel())
        scales = -(-count // NF4_BLOCK)
        held = count // 2 + scales + FLOAT32 * -(-scales // NF4_SCALES) + NF4_TABLES
        total += held - count * FLOAT32
    return total


def optimizer_bytes(platform: Platform, adapters: Sequence[int]) -> int:
    """The state of AdamW for tensors of so many parameters: two moments each."""
    if "8bit" not in platform.optimizer:
        return sum(2 * FLOAT32 * count for count in adapters)
    eight = [count for count in adapters if count >= LEAST_8_BIT]
    scales = sum(-(-count // EIGHT_BIT_BLOCK) for count in eight)
    small = sum(adapters) - sum(eight)
    return 2 * sum(eight) + 2 * FLOAT32 * (scales + small)


def mapped_bytes(source: ModelSource, platform: Platform) -> int:
    """Bytes of the weights' files that stay mapped while an NF4 base is trained from float32 ones.

    Tensors that need no conversion lie in the file's mapping, all of which stays: only then
    are the weights of the quantised layers held twice, the second time as the file's pages.
    """
    if not platform.on_cpu or platform.weights != "nf4" or not _stored_in_float32(source):
        return 0
    return sum(file.stat().st_size for file in weight_files(source.path))


def training_memory(outline: Outline, plan: Plan, runtime: int, mapped: int = 0) -> Memory:
    """The peak of the training and its validations; before each freed memory is given back."""
    parts: list[list[tuple[Pass, Pack]]] = [[("training", p) for p in extremes(plan.packs)]]
    if plan.validations:
        reading: list[tuple[Pass, Pack]] = [("reading", p) for p in extremes(plan.validation)]
        parts.append([*reading, *(("loss", p) for p in extremes(plan.validation_loss))])
    held = max(map(outline.held, parts), key=lambda one: _grown(one, outline.platform))
    count = sum(outline.adapters)
    return Memory(
        weights=mapped + _quantised(outline) if mapped else weight_bytes(outline),
        adapters=count * FLOAT32,
        gradients=count * FLOAT32,
        optimizer=optimizer_bytes(outline.platform, outline.adapters),
        activations=_grown(held, outline.platform) - held.logits,
        logits=held.logits,
        runtime=runtime,
    )


def _quantised(outline: Outline) -> int:
    plain: int = FLOAT32 * sum(layer.weight.numel() for layer in outline.linear)
    return weight_bytes(outline) - (outline.frozen * FLOAT32 - plain)


def _grown(held: Held, platform: Platform) -> int:
    return held.top if platform.on_cpu else held.peak


def evaluation_memory(outline: Outline, plan: Plan, source: ModelSource, runtime: int) -> Memory:
    """The peak of the evaluation, which loads float32 weights on the CPU whatever trained them."""
    packs = extremes([*plan.test, *plan.calibration])
    held = outline.held([("reading", pack) for pack in packs])
    weights = outline.frozen * FLOAT32
    if packing_holds():
        # Packed layers are new tensors, the head's too where it shares the embedding's weight.
        # The plain ones are freed, unless they lie in the mapping of a float32 file.
        linear = sum(layer.weight.numel() for layer in outline.linear) * FLOAT32
        weights += outline.shared_head * FLOAT32
        weights += linear if _stored_in_float32(source) else 0
    return Memory(weights, 0, 0, 0, held.top - held.logits, held.logits, runtime)


def _stored_in_float32(source: ModelSource) -> bool:
    from safetensors import safe_open

    with safe_open(weight_files(source.path)[0], framework="pt") as file:
        return bool(file.get_slice(next(iter(file.keys()))).get_dtype() == "F32")
