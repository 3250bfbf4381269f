"""Products and memory on this processor: the fastest that are exact, and which 16 bits are real."""

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

# Rounding to bfloat16 is 1e4 times coarser; a sum in another order stays within a factor of 2.
AS_EXACT = 4.0
FASTER = 1.3  # below it the choice would change from run to run, and with it the last digits
TRIES = 25
PACKED_ROWS = 512  # that a packed layout is made for; it serves any number of rows as well


_earlier_choice: bool | None = None


def fast_products_hold() -> bool:
    """Whether torch's "medium" float32 products are as exact here as "highest", and faster.

    On AMD's processors they go through oneDNN instead of MKL, twice as fast at float32 rounding
    (docs/PERFORMANCE.md). On processors with AMX the same switch rounds to bfloat16; hence a
    comparison on random data, of some 100 ms.
    """
    exact, faster = _compare_products()
    return exact and (faster if _earlier_choice is None else _earlier_choice)


def take_over_products(fast: bool) -> None:
    """Multiply as a run did that goes on here, whatever a clock says now: the same last digits."""
    global _earlier_choice
    _earlier_choice = fast
    torch.set_float32_matmul_precision("medium" if fast_products_hold() else "highest")


@cache
def _compare_products() -> tuple[bool, bool]:
    """Whether the fast products are as exact, and whether they are faster."""
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
    """Return the shortest time of each way, in seconds; the ways take turns.

    Between two slices of other programs at least one try of each way gets through undisturbed, so
    that a busy machine chooses as a quiet one does.
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
    """The fastest exact float32 products within, on a CPU; GPUs read the same switch otherwise.

    Freed memory is kept there too, within and after.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        if _most_kept is None:  # a training has chosen already
            keep_freed_memory()
        if fast_products_hold():
            torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PackedLinear(torch.nn.Module):
    """A linear layer whose weight lies as oneDNN multiplies it, for inference on a CPU.

    A plain weight is laid out anew in every product: a tenth of a long prompt's time, half of a
    generated token's (docs/PERFORMANCE.md). The operators are those of torch's own freezing.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.out_features, self.bias = linear.out_features, linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x weight' + bias, [..., out]."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x.reshape(-1, x.shape[-1]), self.weight, self.bias, "none", [], ""
        )
        return out.view(*x.shape[:-1], self.out_features)


@cache
def packing_holds() -> bool:
    """Whether packed layers are as exact here as plain ones, and faster at 16 rows."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(1024, 2048)
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), fast_products(torch.device("cpu")):
        try:
            packed = PackedLinear(linear)
            plain, other = linear(x), packed(x)
        except RuntimeError:  # an operator that this build or processor has not
            return False
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
        right = (other - exact).norm() <= AS_EXACT * (plain - exact).norm() + 1e-30
        seconds = _fastest({"plain": partial(linear, x), "packed": partial(packed, x)})
    return bool(right) and seconds["plain"] >= seconds["packed"]


def pack(model: Any) -> Any:
    """Pack all linear layers of a float model on a CPU, in place, where that holds and pays.

    The plain weights are freed, so that the model can only infer from then on.
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
_most_kept: int | None = None
MOST_KEPT = 2**25  # bytes of a freed tensor that is kept: the most that glibc takes on 64 bits
# Shapes whose kernels oneDNN keeps; a pack has some 30, which its layers share. The default, 1024,
# held 1.3 GB more on packs of ever new lengths and was no faster (docs/ESTIMATE.md; see pytorch
# issue 98688).
KERNELS_KEPT = 128


def keep_freed_memory(most: int = MOST_KEPT) -> None:
    """Let glibc keep freed memory instead of giving it back to the system after each tensor.

    New pages are cleared one by one as they are first touched: a twentieth of a training step at
    the shape of a 0.5B model (docs/PERFORMANCE.md). Tensors above `most` bytes are given back all
    the same: kept, their holes are cut up by what lives longer. Other systems' allocators are left
    alone. oneDNN's kernels lie between the tensors: they are bounded here too, since it reads its
    bound at its first product.
    """
    global _most_kept
    _most_kept = most
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # its own, torch's
        os.environ.setdefault(name, str(KERNELS_KEPT))
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, most)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def weights_apart() -> Iterator[None]:
    """Weights made within lie in pages of their own, which their end gives back whole.

    Among kept tensors they would leave holes as they are packed or freed.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None or _most_kept is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, _most_kept)


def give_back_freed_memory() -> None:
    """Give what glibc kept back to the system, between two parts of a run."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """A function of the C library; None where that is not glibc."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name) if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; others convert, and are slower than float32."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        own = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return bool(own)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
