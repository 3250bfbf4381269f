"""The order in which training sees rows when the variants of a source share an optimizer step."""

import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from torch.utils.data import Sampler

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
