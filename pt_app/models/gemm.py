"""Matmul and memory on this CPU: the fastest exact kernels, and whether bfloat16 is native."""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

# Rounding to bfloat16 is 1e4 times coarser; another order of summation stays within a factor of 2.
AS_EXACT = 4.0
FASTER = 1.3  # with less the choice could change from run to run, and with it the last digits
TRIES = 25
PACKED_ROWS = 512  # rows that the packed layout is made for; it works for any number of rows


_earlier_choice: bool | None = None


def fast_products_hold() -> bool:
    """Return whether torch's "medium" float32 matmul is as exact here as "highest", and faster.

    On AMD CPUs it uses oneDNN instead of MKL, twice as fast with the rounding of float32
    (docs/PERFORMANCE.md). On CPUs with AMX the same switch rounds to bfloat16; hence a comparison
    on random data, which takes about 100 ms.
    """
    exact, faster = _compare_products()
    return exact and (faster if _earlier_choice is None else _earlier_choice)


def take_over_products(fast: bool) -> None:
    """Use the kernels of the run that is resumed, whatever is faster now: the same last digits."""
    global _earlier_choice
    _earlier_choice = fast
    torch.set_float32_matmul_precision("medium" if fast_products_hold() else "highest")


@cache
def _compare_products() -> tuple[bool, bool]:
    """Return whether "medium" is as exact as "highest", and whether it is faster."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 512, generator=generator)
    weight = torch.randn(1024, 512, generator=generator)
    exact = x.double() @ weight.double().T
    before = torch.get_float32_matmul_precision()

    def product(precision: str) -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        return F.linear(x, weight)

    ways = {name: partial(product, name) for name in ("highest", "medium")}
    try:
        errors = {name: float((way() - exact).norm() / exact.norm()) for name, way in ways.items()}
        seconds = _fastest(ways)
    finally:
        torch.set_float32_matmul_precision(before)
    right = errors["medium"] <= AS_EXACT * errors["highest"]
    return right, seconds["highest"] >= FASTER * seconds["medium"]


def _fastest(ways: Mapping[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Return the shortest time in seconds of each way, measured in turns.

    Between the time slices of other programs at least one try of each way is undisturbed, so that
    a busy machine chooses as a quiet one does.
    """
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(TRIES):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Use the fastest exact float32 matmul within, on a CPU; on GPUs the switch means TF32.

    Freed memory is kept for reuse there too, within and after.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        if _max_kept is None:  # a training has already chosen
            keep_freed_memory()
        if fast_products_hold():
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
def packing_holds() -> bool:
    """Return whether packed layers are as exact here as plain ones, and faster for 16 rows."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(1024, 2048)
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), fast_products(torch.device("cpu")):
        try:
            packed = PackedLinear(linear)
            plain, other = linear(x), packed(x)
        except RuntimeError:  # this build or CPU lacks an operator
            return False
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
        right = (other - exact).norm() <= AS_EXACT * (plain - exact).norm() + 1e-30
        seconds = _fastest({"plain": partial(linear, x), "packed": partial(packed, x)})
    return bool(right) and seconds["plain"] >= seconds["packed"]


def pack(model: Any) -> Any:
    """Pack all linear layers of a float model on a CPU, in place, if that is exact and faster.

    The plain weights are freed: afterwards the model can only be used for inference.
    """
    if model.device.type != "cpu" or not packing_holds():
        return model
    with weights_apart():
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
KERNELS_KEPT = 128


def keep_freed_memory(most: int = MAX_KEPT) -> None:
    """Let glibc keep freed memory for reuse instead of returning it to the system.

    The system clears new pages one by one when they are first touched: a twentieth of a training
    step at the shape of a 0.5B model (docs/PERFORMANCE.md). Tensors of more than `most` bytes are
    returned all the same: tensors that live longer would fragment their holes. The allocators of
    other systems are not changed. The cached kernels of oneDNN lie between the tensors, so their
    number is limited here too; oneDNN reads its limit at its first matmul.
    """
    global _max_kept
    _max_kept = most
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, torch's
        os.environ.setdefault(name, str(KERNELS_KEPT))
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, most)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def weights_apart() -> Iterator[None]:
    """Return the weights that are made within their own pages, which are returned as a whole.

    Among kept tensors they would leave holes when they are packed or freed.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None or _max_kept is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, _max_kept)


def give_back_freed_memory() -> None:
    """Return the memory that glibc kept to the system, between two parts of a run."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library; None if it is not glibc."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name) if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively; others convert, slower than float32."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(own)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
