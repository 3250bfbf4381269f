"""Compute the peak memory of a run by part, and its limit; docs/ESTIMATE.md explains the parts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil  # type: ignore[import-untyped]

from pt_app.core import console
from pt_app.models.bases import ModelSource, weight_files
from pt_app.models.gemm import should_pack_weights
from pt_app.models.memory import memory_limit
from pt_app.models.platforms import Platform, device_memory
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Plan

GIB = 2**30
FREE_ON_GPU = "free on the GPU"
MARGIN = 0.05  # fraction of the limit that is left free
FLOAT32 = 4  # bytes
# NF4 (QLoRA, arXiv 2305.14314, section 3): half a byte per weight, an 8-bit scale per block of 64,
# a 32-bit scale per 256 of those; and two tables and an offset per layer.
NF4_BLOCK, NF4_SCALES, NF4_TABLES = 64, 256, (16 + 256 + 1) * FLOAT32
# The 8-bit Adam of bitsandbytes (optim/optimizer.py): two bytes per parameter and two scales per
# 256 parameters; tensors with fewer than 4096 parameters stay in 32 bits.
EIGHT_BIT_BLOCK, MIN_8_BIT = 256, 4096
# What torch and its libraries add to a process that trains on a CPU, as measured in
# docs/ESTIMATE.md: mostly the kernels of oneDNN, of which `gemm.MAX_CACHED_KERNELS` are cached, and
# holes between tensors.
LIBRARIES = 200 * 2**20
# The context of CUDA and the workspace of cuBLAS on a GPU that is not present: a guess.
CUDA_CONTEXT = 600 * 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training or evaluation; keys of `judge estimate --json`."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(asdict(self).values())

    @property
    def by_size(self) -> list[tuple[str, int]]:
        """The names of the parts with their bytes, the largest first."""
        return sorted(asdict(self).items(), key=lambda part: -part[1])

    def __str__(self) -> str:
        shown = [(name, size) for name, size in self.by_size if size >= GIB / 200]
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in shown)


@dataclass(frozen=True)
class Limit:
    """The maximum bytes that a run may hold (None: unknown), and where the limit comes from."""

    bytes: int | None
    reason: str

    def fits(self, total: int) -> bool:
        """Return whether `total` bytes leave the margin of the limit free."""
        return self.bytes is None or total <= self.bytes * (1 - MARGIN)


def limit_of(platform: Platform, gpu_memory: int | None = None) -> Limit:
    """Return the limit of the training; `gpu_memory` is that of a GPU that is not present."""
    if gpu_memory is not None:
        return Limit(gpu_memory, "--gpu_memory")
    if platform.on_cpu:
        return host_limit()
    free = device_memory(platform)
    return Limit(free, "unknown: give it with --gpu_memory" if free is None else FREE_ON_GPU)


def host_limit() -> Limit:
    """Return the limit of this process in the memory of the machine."""
    size, reason = memory_limit()
    if "address space" in reason:  # it also counts what is mapped but not resident
        info = psutil.Process().memory_info()
        size -= info.vms - info.rss
    elif console.local_ranks() > 1:
        size //= console.local_ranks()
        reason += f", shared by {console.local_ranks()} processes"
    return Limit(size, reason)


def runtime_bytes(platform: Platform, limit: Limit) -> int:
    """Return what the device holds without a model: this process, or the context of a GPU."""
    if platform.has_own_memory:
        # The free memory of a present GPU is measured with the context already created.
        return 0 if limit.reason == FREE_ON_GPU else CUDA_CONTEXT
    return process_bytes()  # an Apple GPU shares the memory of its CPU


def process_bytes() -> int:
    """Return what this process holds now, and what its libraries will add."""
    return int(psutil.Process().memory_info().rss) + LIBRARIES


def weight_bytes(outline: Outline) -> int:
    """Return the bytes of the frozen base."""
    if outline.platform.weights != "nf4":
        return outline.frozen * outline.platform.compute_dtype.itemsize
    others = FLOAT32 * (outline.frozen - sum(outline.linear))
    return others + sum(map(_nf4_bytes, outline.linear))


def _nf4_bytes(count: int) -> int:
    scales = -(-count // NF4_BLOCK)
    return count // 2 + scales + FLOAT32 * -(-scales // NF4_SCALES) + NF4_TABLES


def _stored_in_float32(source: ModelSource) -> bool:
    from safetensors import safe_open

    with safe_open(weight_files(source.path)[0], framework="pt") as file:
        return bool(file.get_slice(next(iter(file.keys()))).get_dtype() == "F32")


def optimizer_bytes(platform: Platform, adapters: Sequence[int]) -> int:
    """Return the bytes of AdamW's two moments; `adapters` are the parameters of each tensor."""
    if "8bit" not in platform.optimizer:
        return 2 * FLOAT32 * sum(adapters)
    eight = [count for count in adapters if count >= MIN_8_BIT]
    scales = sum(-(-count // EIGHT_BIT_BLOCK) for count in eight)
    small = sum(adapters) - sum(eight)
    return 2 * sum(eight) + 2 * FLOAT32 * (scales + small)


def training_memory(outline: Outline, plan: Plan, source: ModelSource, runtime: int) -> Memory:
    """Return the peak of the training and its validations.

    Args:
        outline: the model with its adapter.
        plan: the packs of the run.
        source: the base.
        runtime: bytes that the device holds without a model.
    """
    held = outline.largest(
        {"training": plan.packs, "reading": plan.validation, "loss": plan.validation_loss}
    )
    platform, adapters = outline.platform, FLOAT32 * sum(outline.adapters)
    weights = weight_bytes(outline)
    if platform.on_cpu and platform.weights == "nf4" and _stored_in_float32(source):
        # Tensors that need no conversion lie in the mapping of their file, and all of it stays:
        # quantized layers are held twice, in NF4 and as pages of the file.
        weights += FLOAT32 * sum(outline.linear)
    optimizer = optimizer_bytes(platform, outline.adapters)
    return Memory(weights, adapters, adapters, optimizer, held.activations, held.logits, runtime)


def evaluation_memory(outline: Outline, plan: Plan, source: ModelSource, runtime: int) -> Memory:
    """Return the peak of the evaluation, which always computes in float32 on the CPU."""
    held = outline.largest({"reading": plan.evaluation})
    weights = outline.frozen
    if should_pack_weights():
        # Packed layers are new tensors, and so is a head that shares the weight of the embedding.
        # The plain ones are freed, unless they lie in the mapping of a float32 file.
        weights += outline.shared_head
        if _stored_in_float32(source):
            weights += sum(outline.linear)
    return Memory(FLOAT32 * weights, 0, 0, 0, held.activations, held.logits, runtime)
