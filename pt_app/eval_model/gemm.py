"""Products and memory on this processor: the fastest that are exact, and which 16 bits are real."""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812

# Rounding to bfloat16 is 1e4 times coarser; a sum in another order stays within a factor of 2.
AS_EXACT = 4.0
FASTER = 1.3  # below it the choice would change from run to run, and with it the last digits


@cache
def fast_products_hold() -> bool:
    """Whether torch's "medium" float32 products are as exact here as "highest", and faster.

    On AMD's processors they go through oneDNN instead of MKL, twice as fast at float32 rounding
    (docs/PERFORMANCE.md). On processors with AMX the same switch rounds to bfloat16; hence a
    comparison on random data, of some 30 ms.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 512, generator=generator)
    weight = torch.randn(1024, 512, generator=generator)
    exact = x.double() @ weight.double().T
    before = torch.get_float32_matmul_precision()
    errors, seconds = {}, {}
    try:
        for name in ("highest", "medium"):
            torch.set_float32_matmul_precision(name)
            errors[name] = float((F.linear(x, weight) - exact).norm() / exact.norm())
            seconds[name] = min(_timed(x, weight) for _ in range(5))
    finally:
        torch.set_float32_matmul_precision(before)
    right = errors["medium"] <= AS_EXACT * errors["highest"]
    return right and seconds["highest"] >= FASTER * seconds["medium"]


def _timed(x: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    F.linear(x, weight)
    return time.perf_counter() - start


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """The fastest exact float32 products within, on a CPU; GPUs read the same switch otherwise."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and fast_products_hold():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after each tensor.

    New pages are cleared one by one as they are first touched: a twentieth of a training step at
    the shape of a 0.5B model (docs/PERFORMANCE.md). Costs nothing at the peak; the process stays
    as large as it was there. Other systems' allocators are left alone.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:  # another C library
        return
    most_mmaps, trim_threshold = -4, -1  # malloc.h
    mallopt(most_mmaps, 0)
    mallopt(trim_threshold, 2**31 - 1)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; others convert, and are slower than float32."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(own)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
