"""Matmul and memory on this CPU: the fastest exact kernels, and whether bfloat16 is native."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rounding to bfloat16 is 1e4 times coarser; another order of summation stays within a factor of 2.
MAX_ERROR_RATIO = 4.0
FASTER = 1.3  # with less the choice could change from run to run, and with it the last digits
TRIES = 25
PACKED_ROWS = 512  # rows that the packed layout is made for; it works for any number of rows
Matmul = Callable[[], torch.Tensor]

_earlier_choice: bool | None = None  # of the run that is resumed


def should_use_fast_matmul() -> bool:
    """Return whether torch's "medium" float32 matmul is as exact here as "highest", and faster.

    On AMD CPUs it uses oneDNN instead of MKL, twice as fast with the rounding of float32
    (docs/PERFORMANCE.md). On CPUs with AMX the same switch rounds to bfloat16; hence a comparison
    on random data, which takes about 100 ms.
    """
    exact, faster = _compare_matmuls()
    return exact and (faster if _earlier_choice is None else _earlier_choice)


def restore_matmul_choice(fast: bool) -> None:
    """Use the kernels of the run that is resumed, whatever is faster now: the same last digits."""
    global _earlier_choice
    _earlier_choice = fast
    torch.set_float32_matmul_precision("medium" if should_use_fast_matmul() else "highest")


@cache
def _compare_matmuls() -> tuple[bool, bool]:
    """Return whether "medium" is as exact as "highest", and whether it is faster."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 512, generator=generator)
    weight = torch.randn(1024, 512, generator=generator)
    exact = x.double() @ weight.double().T
    before = torch.get_float32_matmul_precision()

    def matmul(precision: str) -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        return F.linear(x, weight)

    try:
        as_exact, speedup = _compare(partial(matmul, "highest"), partial(matmul, "medium"), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    return as_exact, speedup >= FASTER


def _compare(plain: Matmul, fast: Matmul, exact: torch.Tensor) -> tuple[bool, float]:
    """Return whether `fast` is about as close to `exact` as `plain`, and its speedup."""
    error, limit = ((way() - exact).norm() for way in (fast, plain))
    return bool(error <= MAX_ERROR_RATIO * limit + 1e-30), _speedup(plain, fast)


def _speedup(plain: Matmul, fast: Matmul) -> float:
    """Return the shortest time of `plain` over that of `fast`, measured in turns.

    Between the time slices of other programs at least one try of each way is undisturbed, so that
    a busy machine chooses as a quiet one does.
    """
    shortest = [math.inf, math.inf]
    for _ in range(TRIES):
        for i, way in enumerate((plain, fast)):
            start = time.perf_counter()
            way()
            shortest[i] = min(shortest[i], time.perf_counter() - start)
    return shortest[0] / shortest[1]


@contextmanager
def fast_matmul(device: torch.device) -> Iterator[None]:
    """Use the fastest exact float32 matmul within, on a CPU; on GPUs the switch means TF32.

    Freed memory is kept for reuse there too, within and after.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        if _max_kept is None:  # a training has already chosen
            keep_freed_memory()
        if should_use_fast_matmul():
            torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PackedLinear(torch.nn.Module):
    """A linear layer whose weight has the layout that oneDNN multiplies with, for CPU inference.

    A plain weight is reordered in every matmul: a tenth of the time of a long prompt, half of that
    of a generated token (docs/PERFORMANCE.md). The operators are those of torch's freezing.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.bias = linear.out_features, linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x weight' + bias, [..., out]."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.reshape(-1, x.shape[-1]), self.weight, self.bias, "none", [], ""
        )
        return out.view(*x.shape[:-1], self.out_features)


@cache
def should_pack_weights() -> bool:
    """Return whether packed layers are as exact here as plain ones, and faster for 16 rows."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(1024, 2048)
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), fast_matmul(x.device):
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
        try:
            packed = partial(PackedLinear(linear), x)
            as_exact, speedup = _compare(partial(linear, x), packed, exact)
        except RuntimeError:  # this build or CPU lacks an operator
            return False
    return as_exact and speedup >= 1


def pack_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """Pack all linear layers of a float model on a CPU, in place, if that is exact and faster.

    The plain weights are freed: afterwards the model can only be used for inference.
    """
    if model.device.type != "cpu" or not should_pack_weights():
        return model
    with weights_in_own_pages():
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) is torch.nn.Linear and child.weight.is_floating_point():
                    setattr(module, name, PackedLinear(child))
    return model


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
_max_kept: int | None = None
MAX_KEPT = 2**25  # bytes of a freed tensor that is kept: the maximum of glibc on 64 bits
# Shapes whose kernels oneDNN caches; a pack has about 30, which its layers share. The default,
# 1024, held 1.3 GB more for packs of ever new lengths and was no faster (docs/ESTIMATE.md; see
# pytorch issue 98688).
MAX_CACHED_KERNELS = 128


def keep_freed_memory(max_bytes: int = MAX_KEPT) -> None:
    """Let glibc keep freed memory for reuse instead of returning it to the system.

    The system clears new pages one by one when they are first touched: a twentieth of a training
    step at the shape of a 0.5B model (docs/PERFORMANCE.md). Tensors of more than `max_bytes` are
    returned all the same: tensors that live longer would fragment their holes. The allocators of
    other systems are not changed. The cached kernels of oneDNN lie between the tensors, so their
    number is limited here too; oneDNN reads its limit at its first matmul.
    """
    global _max_kept
    _max_kept = max_bytes
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, torch's
        os.environ.setdefault(name, str(MAX_CACHED_KERNELS))
    if glibc := _glibc():
        glibc.mallopt(MMAP_THRESHOLD, max_bytes)
        glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def weights_in_own_pages() -> Iterator[None]:
    """Allocate the weights that are made within in their own pages, which are freed as a whole.

    Among kept tensors they would leave holes when they are packed or freed.
    """
    glibc = _glibc()
    if glibc is None or _max_kept is None:
        yield
        return
    glibc.mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        glibc.mallopt(MMAP_THRESHOLD, _max_kept)


def give_back_freed_memory() -> None:
    """Return the memory that glibc kept to the system, between two parts of a run."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library; None if it is not glibc."""
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively; others convert, slower than float32."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(own)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
