"""How the packs of a step are computed: as trees or row by row, and how large they may be."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from pt_app.models.packing import (
    IGNORED,
    Batch,
    Shapes,
    StepCollator,
    examples_of,
    pack,
    unpacked,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the packs of a step are computed: as trees, or row by row where trees do not hold.

    `rows` bounds a plain micro-batch, `shapes` its sizes; `tolerance` is how far, relatively, the
    losses of the two may lie apart in the check of the first step. `budget` is the tokens of a pack
    since memory ran out; None: packs are computed as the collator made them.
    """

    pad_id: int
    rows: int = 1
    shapes: Shapes = field(default_factory=Shapes)
    trees: bool = True
    tolerance: float = 1e-4
    budget: int | None = None

    def plain(self, packed: Batch) -> list[Batch]:
        """The rows of a pack in padded micro-batches."""
        return unpacked(packed, self.pad_id, self.rows, self.shapes)

    def idle(self) -> Batch:
        """A batch without a supervised token: its loss is 0, and so are its gradients."""
        packed = pack([{"input_ids": [self.pad_id] * 2, "prompt_length": 1}], self.pad_id)
        batch = packed if self.trees else self.plain(packed)[0]
        return batch | {"targets": torch.full_like(batch["targets"], IGNORED)}

    def fitting(self, packs: Sequence[Batch]) -> list[Batch]:
        """The same examples in packs of at most `budget` tokens."""
        if self.budget is None or not self.trees:
            return list(packs)
        collate = StepCollator(self.pad_id, self.budget, self.shapes)
        return collate.packs([example for packed in packs for example in examples_of(packed)])

    def smaller(self, packs: Sequence[Batch]) -> "Layout | None":
        """The layout to try when these packs need too much memory; None: none is smaller.

        The budget is halved, counted from the largest pack that can be parted; of rows computed one
        by one half as many go together.
        """
        if not self.trees:
            return replace(self, rows=self.rows // 2) if self.rows > 1 else None
        many = [p["input_ids"].numel() for p in packs if len(p["starts"]) > 1]
        if not many:
            return None
        return replace(self, budget=min(self.budget or max(many), max(many)) // 2)
