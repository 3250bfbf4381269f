"""The order in which training sees rows, and which rank takes which rows of a step."""

import os
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

LOOKAHEAD = 64  # groups tried for the room left in a step; more cost time and gain little


class GroupedOrder(Sampler[int]):
    """A seeded shuffle of rows in which those of one group stand in one step, where they fit.

    `groups` has the group of each row, `size` is the examples of a rank's step. Groups are drawn
    in random order; a group is parted only where it is larger than a step, or where no other of
    the next ones fits into the room that is left. `set_epoch` is called by Trainer; each epoch has
    an order of its own.
    """

    def __init__(self, groups: Sequence[Hashable], size: int, seed: int) -> None:
        self.groups, self.size, self.seed, self.epoch = list(groups), size, seed, 0

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
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
    """The rows of a step that a rank takes: neighbours, as many as the others, to one."""
    first, last = (len(step) * r // ranks for r in (rank, rank + 1))
    return list(step[first:last])


class StepSampler(Sampler[list[int]]):
    """The rows of each optimizer step that this rank takes.

    A step is the next `size` rows of `order`, parted evenly over `ranks`; the last of an epoch may
    have fewer, and then a rank may have none. accelerate's own sharding fills that step with rows
    from the epoch's beginning, so that several processes would not take the steps of one.
    """

    def __init__(self, order: Any, size: int, rank: int = 0, ranks: int = 1) -> None:
        self.order, self.size, self.rank, self.ranks = order, size, rank, ranks

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        if hasattr(self.order, "set_epoch"):  # rows in their own order have none
            self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for start in range(0, len(rows), self.size):
            step = rows[start : start + self.size]
            yield share(step, self.rank, self.ranks)


def own_process_group(_: int) -> None:
    """Keep a signal that is sent to all processes of a run from a loader's worker.

    torchrun and GNU timeout send SIGTERM to the whole group, of which torch's workers die at once;
    the training then ends in the error of a lost worker, before its checkpoint.
    """
    os.setpgrp()


class StepLoader(DataLoader[Any]):
    """A loader whose batches are steps, told by Trainer which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
