"""How large a process's heap grows while tensors come and go, as glibc places them.

On a CPU freed memory stays with the process (`gemm.keep_freed_memory`), and a hole serves again
only what fits into it. A base in NF4 is the worst case: each product unpacks a weight and frees it,
and what the layer keeps for the backward pass lands in that hole, so that the next weight does not
fit any more. Counting bytes in use would miss these holes (docs/ESTIMATE.md).
"""

from bisect import bisect_left, insort

HEADER = 16  # bytes before each chunk, and the step of its sizes
# posix_memalign takes a hole only where this much room is left to align in; torch aligns to 64. So
# the hole of a tensor does not serve another of its size, unless its neighbours are free too.
SPARE = 64 + 32


class Heap:
    """Addresses for tensors, best fit first, freed neighbours joined; `top` never sinks.

    glibc's malloc for large chunks without mmap (malloc/malloc.c, "Design": best-fit, coalescing).
    """

    def __init__(self) -> None:
        self.top = 0
        self._by_size: list[tuple[int, int]] = []  # (bytes, start) of each hole
        self._ends: dict[int, int] = {}  # end -> start
        self._starts: dict[int, int] = {}  # start -> end
        self._used: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Place `size` bytes; gives their start."""
        size = -(-(max(size, 1) + HEADER) // HEADER) * HEADER
        place = bisect_left(self._by_size, (size + SPARE, -1))
        if place < len(self._by_size):
            hole, start = self._by_size[place]
            self._close(start)
            if hole > size:
                self._open(start + size, start + hole)
        else:
            start = self._ends.get(self.top, self.top)
            if start < self.top:  # the last hole grows with the heap
                self._close(start)
            self.top = start + size
        self._used[start] = size
        return start

    def give(self, start: int) -> None:
        """Free what was placed at `start`."""
        end = start + self._used.pop(start)
        if start in self._ends:
            start, before = self._ends[start], start
            self._close(start)
            assert before > start
        if end in self._starts:
            after, end = end, self._starts[end]
            self._close(after)
        self._open(start, end)

    def _open(self, start: int, end: int) -> None:
        insort(self._by_size, (end - start, start))
        self._starts[start], self._ends[end] = end, start

    def _close(self, start: int) -> None:
        end = self._starts.pop(start)
        del self._ends[end]
        del self._by_size[bisect_left(self._by_size, (end - start, start))]
