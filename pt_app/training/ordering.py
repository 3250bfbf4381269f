"""The order in which training sees rows, and which rank takes which rows of a step."""

import os
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

LOOKAHEAD = 64  # groups tried for the room left in a step; more take time and gain little


class GroupedOrder(Sampler[int]):
    """A seeded shuffle of rows that keeps the rows of a group in one step, where they fit.

    Groups are drawn in random order. A group is divided only if it is larger than a step, or if
    none of the next groups fits into the room that is left. Trainer calls `set_epoch`: each epoch
    has its own order.

    Args:
        groups: the group of each row.
        size: examples per step of a rank.
    """

    def __init__(self, groups: Sequence[Hashable], size: int, seed: int) -> None:
        self.groups, self.size, self.seed, self.epoch = list(groups), size, seed, 0

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        members: dict[Hashable, list[int]] = defaultdict(list)
        for row in rng.sample(range(len(self.groups)), len(self.groups)):
            members[self.groups[row]].append(row)
        waiting = list(members.values())
        while waiting:
            room = self.size
            for group in waiting[:LOOKAHEAD]:
                if len(group) <= room:
                    yield from group
                    room -= len(group)
                    waiting.remove(group)
            if room and waiting:
                yield from waiting[0][:room]
                waiting[0] = waiting[0][room:]


def share(step: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Return the contiguous rows of a step that a rank takes; counts differ by at most one."""
    first, last = (len(step) * r // ranks for r in (rank, rank + 1))
    return list(step[first:last])


class StepSampler(Sampler[list[int]]):
    """Yield the rows of each optimizer step that this rank takes.

    A step is the next `size` rows of `order`, divided evenly over `ranks`. The last step of an
    epoch may have fewer, so that a rank may have none. accelerate would fill that step with rows
    from the beginning of the epoch, so that several processes would not compute the steps of one.
    """

    def __init__(self, order: Any, size: int, rank: int = 0, ranks: int = 1) -> None:
        self.order, self.size, self.rank, self.ranks = order, size, rank, ranks

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch."""
        if hasattr(self.order, "set_epoch"):  # a sequential sampler has none
            self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for start in range(0, len(rows), self.size):
            step = rows[start : start + self.size]
            yield share(step, self.rank, self.ranks)


def own_process_group(_: int) -> None:
    """Move a loader's worker to its own process group, out of reach of signals to the run.

    torchrun and GNU timeout send SIGTERM to the whole group. torch's workers die of it at once, and
    the training would end in the error of a lost worker, before its checkpoint.
    """
    os.setpgrp()


class StepLoader(DataLoader[Any]):
    """A loader whose batches are optimizer steps; Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
