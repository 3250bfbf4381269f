"""Lays examples out as the tensors of one micro-batch, and names the answers' positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # torch's cross-entropy leaves out targets of this value


@dataclass(frozen=True)
class PadCollator:
    """Encoded examples -> `input_ids`, `attention_mask`, `labels` [B, T] and `keep` [K].

    `keep` holds the columns whose next token is supervised in some row of the batch: only there
    are vocabulary logits computed. `lengths` are the widths that a batch may be padded to, sorted;
    none given: to its longest row.

    Padding stands on the right: on the left its queries would see no key at all, and MPS answers
    a fully masked row with NaN (pytorch issue 156707).
    """

    pad_id: int
    lengths: tuple[int, ...] = ()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)
        width = next((length for length in self.lengths if length >= longest), longest)
        ids = torch.full((len(examples), width), self.pad_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            n, start = len(example["input_ids"]), example["prompt_length"]
            ids[row, :n] = torch.tensor(example["input_ids"])
            mask[row, :n] = 1
            labels[row, start:n] = ids[row, start:n]
        keep = self._columns_to_keep(labels)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "keep": keep}

    def _columns_to_keep(self, labels: torch.Tensor) -> torch.Tensor:
        supervised = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
        if not self.lengths:
            return supervised
        # A fixed number of columns too: every distinct shape costs memory on MPS. The first is
        # moved back to fill it; answers of other rows may leave gaps between the columns.
        first, end = int(supervised[0]), int(supervised[-1]) + 1
        count = min(-(-(end - first) // 32) * 32, labels.shape[1] - 1)
        first = max(0, end - count)
        return torch.arange(first, first + count)


def fixed_lengths(max_seq_length: int, count: int = 8) -> tuple[int, ...]:
    """`count` evenly spaced widths up to `max_seq_length`."""
    return tuple(-(-max_seq_length * i // count) for i in range(1, count + 1))
