"""Batches of tokens: which windows of the training text a step holds, on any number of processes.

A batch is a dict of `input_ids` and `labels`, both [b, t]: `labels[i, j]` is the token that follows
`input_ids[i, j]`, so that a loss compares them as they are and shifts nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.models.packing import Batch, Step
from pt_app.pretrain.shards import Tokens


@lru_cache(maxsize=2)  # a step holds windows of at most two passes, unless the text is tiny
def _starts(windows: int, sequence: int, seed: int, turn: int) -> NDArray[np.int64]:
    """Return where the windows of a pass begin, in random order; each pass moves them together."""
    # The old generator: numpy keeps its numbers the same in all versions, and so a resumed run.
    rng = np.random.RandomState([seed, turn])
    offset = int(rng.randint(sequence))
    return offset + sequence * rng.permutation(windows).astype(np.int64)


@dataclass(frozen=True)
class TokenSteps:
    """Steps over random windows of a text: each pass takes every window once.

    A step is a function of the seed and its number: it holds the same windows on any number of
    processes, which share them out, and a resumed run needs no more than the number.

    Attributes:
        tokens: the training text.
        batch_tokens: tokens per step, over all processes: a multiple of `sequence`.
        sequence: tokens of a window.
        total: number of steps.
        seed: seed of the order.
        micro_batch: the most windows that a process computes together.
    """

    tokens: Tokens
    batch_tokens: int
    sequence: int
    total: int
    seed: int
    micro_batch: int

    def __post_init__(self) -> None:
        if self.batch_tokens % self.sequence:
            raise UserError(
                f"{self.batch_tokens} tokens per step are no multiple of the {self.sequence} of a "
                f"sequence: choose {math.ceil(self.batch_tokens / self.sequence) * self.sequence}"
            )
        if self.windows < 1:
            short = f"{len(self.tokens):,} tokens, fewer than two sequences of {self.sequence}"
            raise UserError(f"the training text has {short}: take more text, or shorter sequences")

    @property
    def windows(self) -> int:
        """The windows of a pass; the one that is missing is the room in which they move."""
        return len(self.tokens) // self.sequence - 1

    def __len__(self) -> int:
        return self.total

    def epoch(self, number: int, done: int) -> Iterator[Step]:
        """Yield this process's part of each step from step `done` on; there is one epoch."""
        for step in range(done, self.total):
            yield self.step(step, console.rank(), console.ranks())

    def step(self, number: int, rank: int, ranks: int) -> Step:
        """Return the part of a step that process `rank` of `ranks` computes; it may be empty."""
        size = self.batch_tokens // self.sequence
        first, last = size * rank // ranks, size * (rank + 1) // ranks
        starts = [self._start(number * size + row) for row in range(first, last)]
        parts = [starts[i : i + self.micro_batch] for i in range(0, len(starts), self.micro_batch)]
        packs = [batch_at(self.tokens, part, self.sequence) for part in parts]
        return {"packs": packs, "count": torch.tensor(len(starts) * self.sequence)}

    def _start(self, row: int) -> int:
        turn, place = divmod(row, self.windows)
        return int(_starts(self.windows, self.sequence, self.seed, turn)[place])


def batch_at(tokens: Tokens, starts: Sequence[int], sequence: int) -> Batch:
    """Return the batch [len(starts), sequence] of the windows that begin at these tokens."""
    rows = np.stack([tokens.read(start, start + sequence + 1) for start in starts])
    ids = torch.from_numpy(rows)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def in_order(tokens: Tokens, sequence: int, rows: int) -> Iterator[Batch]:
    """Yield a whole text, for a validation: every token but the first is a label exactly once.

    Args:
        tokens: the text.
        sequence: tokens per window; the last one, a batch of its own, may be shorter.
        rows: windows per batch.
    """
    last = len(tokens) - 1
    full = range(0, last - sequence + 1, sequence)
    for first in range(0, len(full), rows):
        yield batch_at(tokens, full[first : first + rows], sequence)
    if rest := last % sequence:
        yield batch_at(tokens, [last - rest], rest)
