"""The steps of a training: the order of the rows, and which rank takes which rows of a step."""

import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from pt_app.core import console
from pt_app.models.packing import Example, Step

# These end a training after its step and a checkpoint.
STOPPING = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # SLURM sends it before a job's limit (sbatch --signal)
    STOPPING.append(signal.SIGUSR1)
LOOKAHEAD = 64  # groups tried for the room left in a step; more take time and gain little


class Order(Protocol):
    """The rows of an epoch; `set_epoch`, if there is one, selects the epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


class GroupedOrder(Sampler[int]):
    """A seeded shuffle of rows that keeps the rows of a group in one step, where they fit.

    Groups are drawn in random order. A group is divided only if it is larger than a step, or if
    none of the next groups fits into the room that is left. Each epoch has its own order.

    Args:
        groups: the group of each row.
        size: examples per step, over all ranks.
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


def shares(order: Iterable[int], size: int, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Return the rows that a rank takes of each step, which is the next `size` rows of `order`.

    The ranks take contiguous rows, and their counts differ by at most one. The last step of an
    epoch may have fewer rows, so that a rank may have none. accelerate would fill that step with
    rows from the beginning of the epoch, so that several processes would not compute the steps of
    one.
    """
    rows = list(order)
    steps = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [step[len(step) * rank // ranks : len(step) * (rank + 1) // ranks] for step in steps]


def _leave_process_group(_: int) -> None:
    """Move a loader's worker to its own process group, out of reach of signals to the run.

    torchrun and GNU timeout send SIGTERM to the whole group. torch's workers die of it at once, and
    the training would end in the error of a lost worker, before its checkpoint.
    """
    os.setpgrp()
    while signal.sigpending() & {*STOPPING}:  # sent to the group before this worker left it
        signal.sigwait(STOPPING)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back within, and until they leave its process group in processes made within."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class RowSteps:
    """The steps of an epoch over the rows of a dataset.

    Attributes:
        rows: the encoded rows.
        order: the order of the rows.
        size: examples per step, over all ranks.
        collate: makes a step of the rows of a rank.
        workers: processes that collate.
        pin_memory: whether the tensors are copied into page-locked memory.
        members: the examples of each row, of which `order` and `size` then speak; None: one each.
    """

    rows: Dataset[Example]
    order: Order
    size: int
    collate: Callable[[Sequence[Example]], Step]
    workers: int = 0
    pin_memory: bool = False
    members: Sequence[Sequence[int]] | None = None

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def rows_of(self, number: int, rank: int | None = None) -> list[list[int]]:
        """Return the examples that a rank, by default this one, takes of each step of an epoch."""
        if hasattr(self.order, "set_epoch"):  # a sequential sampler has none
            self.order.set_epoch(number)
        rank = console.rank() if rank is None else rank
        taken = shares(self.order, self.size, rank, console.ranks())
        if self.members is None:
            return taken
        return [[i for row in step for i in self.members[row]] for step in taken]

    def epoch(self, number: int, done: int) -> Iterator[Step]:
        """Load the steps of epoch `number` without the first `done`."""
        loader = DataLoader(
            self.rows,
            batch_sampler=self.rows_of(number)[done:],
            collate_fn=self.collate,
            worker_init_fn=_leave_process_group,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
        )
        if not self.workers:
            return iter(loader)
        with _signals_held():
            return iter(loader)
