"""How the packs of a step are computed: as prefix trees or row by row, and how large they are."""

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
    """How the packs of a step are computed: as prefix trees, or row by row where trees are wrong.

    Attributes:
        pad_id: the padding token.
        rows: maximum rows of a plain micro-batch.
        shapes: the sizes to which a plain micro-batch is padded.
        trees: whether packs are computed as prefix trees.
        tolerance: maximum relative difference of the two losses in the check of the first step.
        budget: maximum tokens per pack since memory ran out; None: as the collator made them.
    """

    pad_id: int
    rows: int = 1
    shapes: Shapes = field(default_factory=Shapes)
    trees: bool = True
    tolerance: float = 1e-4
    budget: int | None = None

    def plain(self, packed: Batch) -> list[Batch]:
        """Return the rows of a pack as padded micro-batches."""
        return unpacked(packed, self.pad_id, self.rows, self.shapes)

    def idle(self) -> Batch:
        """Return a batch without a supervised token, whose loss and gradients are 0."""
        packed = pack([{"input_ids": [self.pad_id] * 2, "prompt_length": 1}], self.pad_id)
        batch = packed if self.trees else self.plain(packed)[0]
        return batch | {"targets": torch.full_like(batch["targets"], IGNORED)}

    def fitting(self, packs: Sequence[Batch]) -> list[Batch]:
        """Return the same examples in packs of at most `budget` tokens."""
        if self.budget is None or not self.trees:
            return list(packs)
        collate = StepCollator(self.pad_id, self.budget, self.shapes)
        return collate.packs([example for packed in packs for example in examples_of(packed)])

    def smaller(self, packs: Sequence[Batch]) -> "Layout | None":
        """Return the layout to try if these packs need too much memory; None: none is smaller.

        The budget is half of the largest pack that can be divided. If rows are computed one by one,
        a micro-batch has half as many rows.
        """
        if not self.trees:
            return replace(self, rows=self.rows // 2) if self.rows > 1 else None
        many = [p["input_ids"].numel() for p in packs if len(p["starts"]) > 1]
        if not many:
            return None
        return replace(self, budget=min(self.budget or max(many), max(many)) // 2)
