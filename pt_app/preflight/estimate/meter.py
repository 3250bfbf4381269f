"""Count what the tensors of a pass hold: the bytes in use, and the heap that they need.

On a CPU freed memory stays with the process (`gemm.keep_freed_memory`), and a hole is reused only
for what fits into it. A base in NF4 is the worst case: each matmul dequantizes a weight and frees
it, and what the layer keeps for the backward pass is placed in that hole, so that the next weight
no longer fits. A count of the bytes in use would miss these holes (docs/ESTIMATE.md).
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pt_app.models.gemm import MAX_KEPT

HEADER = 16  # bytes before each chunk; the size of a chunk is a multiple of them
# posix_memalign takes a hole only if this much room is left for the alignment; torch aligns to 64.
# So the hole of a tensor does not fit another one of its size, unless its neighbours are free too.
ALIGNMENT = 64 + 32


class Heap:
    """A heap that places tensors best fit and joins freed neighbours; `top` is its size in bytes.

    So does glibc's malloc with large chunks that it does not mmap (malloc/malloc.c, "Design").
    """

    def __init__(self) -> None:
        self.top = 0
        self._holes: list[tuple[int, int]] = []  # (start, end), by address; no two are adjacent
        self._ends: dict[int, int] = {}  # start -> end, of what is in use

    def take(self, size: int) -> int:
        """Place `size` bytes and return where they start."""
        size = -(-(max(size, 1) + HEADER) // HEADER) * HEADER
        fitting = [hole for hole in self._holes if hole[1] - hole[0] >= size + ALIGNMENT]
        if fitting:
            start, end = min(fitting, key=lambda hole: hole[1] - hole[0])
            self._holes.remove((start, end))
            insort(self._holes, (start + size, end))
        else:
            start = self.top
            if self._holes and self._holes[-1][1] == self.top:  # the last hole grows with the heap
                start, _ = self._holes.pop()
            self.top = start + size
        self._ends[start] = start + size
        return start

    def give(self, start: int) -> None:
        """Free what was placed at `start`."""
        end = self._ends.pop(start)
        place = bisect_left(self._holes, (start, end))
        if place < len(self._holes) and self._holes[place][0] == end:
            _, end = self._holes.pop(place)
        if place and self._holes[place - 1][1] == start:
            start, _ = self._holes.pop(place - 1)
        insort(self._holes, (start, end))


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that are made within it, until their storage ends.

    Args:
        uncounted: tensors that exist already, such as weights.
        vocabulary: last dimension of logits.
        max_kept: largest freed tensor, in bytes, that the process keeps in its heap.

    Attributes:
        peak: most bytes in use.
        top: most bytes that the process holds, with the holes of its heap.
        logits: bytes of the tensors over the vocabulary at the peak.
    """

    def __init__(
        self, uncounted: Sequence[torch.Tensor], vocabulary: int, max_kept: int = MAX_KEPT
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.max_kept, self.heap = vocabulary, max_kept, Heap()
        self.peak = self.top = self.logits = 0
        self._now = self._logits_now = self._outside_heap = 0
        # A storage is one object for all views of it, as long as it is referenced here.
        self._uncounted = [tensor.untyped_storage() for tensor in uncounted]
        self._alive: dict[int, Any] = {storage._cdata: None for storage in self._uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        logits = size if tensor.shape[-1:] == (self.vocabulary,) else 0
        start = self.heap.take(size) if size <= self.max_kept else None
        outside = size if start is None else 0

        def freed(_: Any) -> None:
            del self._alive[key]
            if start is not None:
                self.heap.give(start)
            self._count(-size, -logits, -outside)

        self._alive[key] = weakref.ref(storage, freed)
        self._count(size, logits, outside)

    def _count(self, size: int, logits: int, outside: int) -> None:
        self._now += size
        self._logits_now += logits
        self._outside_heap += outside
        self.top = max(self.top, self.heap.top + self._outside_heap)
        if self._now > self.peak:
            self.peak, self.logits = self._now, self._logits_now
