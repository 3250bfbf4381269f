"""Counts what the tensors hold that are made within: bytes in use, and the heap they need."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pt_app.models.gemm import MOST_KEPT
from pt_app.preflight.estimate.heap import Heap


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made within it, until their storage ends.

    `peak` is the most in use, `top` what a process holds that keeps freed tensors of up to
    `most_kept` bytes in its heap; `logits` are those of tensors over the vocabulary at the peak.
    `known` tensors are not counted.
    """

    def __init__(
        self, known: Sequence[torch.Tensor], vocabulary: int, most_kept: int = MOST_KEPT
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.most_kept, self.heap = vocabulary, most_kept, Heap()
        self.peak = self.logits = self._now = self._logits_now = 0
        self.top = self._apart = 0
        # A storage is one object for all views of it, as long as it lives.
        self._known = [tensor.untyped_storage() for tensor in known]
        self._alive: dict[int, Any] = {storage._cdata: None for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        of_logits = size if tensor.shape[-1:] == (self.vocabulary,) else 0
        start = self.heap.take(size) if size <= self.most_kept else None
        self._count(size, of_logits, size if start is None else 0)

        def ended(_: Any) -> None:
            del self._alive[key]
            if start is not None:
                self.heap.give(start)
            self._count(-size, -of_logits, -size if start is None else 0)

        self._alive[key] = weakref.ref(storage, ended)

    def _count(self, size: int, of_logits: int, apart: int) -> None:
        self._now, self._logits_now = self._now + size, self._logits_now + of_logits
        self._apart += apart
        self.top = max(self.top, self.heap.top + self._apart)
        if self._now > self.peak:
            self.peak, self.logits = self._now, self._logits_now
