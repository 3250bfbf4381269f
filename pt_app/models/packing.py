"""Pack the examples of one optimizer step so that each common prefix is computed once.

A pack is a prefix tree of token ids in depth-first order. Two numbers per token describe it: the
depth, which is the position, and the last token of the subtree. Token i attends to token j exactly
if j <= i <= last[j]: to its own path from the root, and to nothing of its siblings. So each token
sees what it would see in a sequence of its own, and the loss is that of separate sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

IGNORED = -100  # torch's cross-entropy ignores targets of this value
Batch = dict[str, torch.Tensor]


class Example(TypedDict):
    """A tokenized row: its token ids, of which the first `prompt_length` are the prompt.

    Its loss counts `weight` times, and once without one. `count` is what it adds to the number that
    the loss of its step is divided by; without one, its supervised tokens. Either all examples have
    these, or none.
    """

    input_ids: list[int]
    prompt_length: int
    weight: NotRequired[float]
    count: NotRequired[float]


class Step(TypedDict):
    """One optimizer step of a rank.

    `count` [] divides the summed losses of the packs: their supervised tokens, or their weights.
    """

    packs: list[Batch]
    count: torch.Tensor


@dataclass(frozen=True)
class Tree:
    """Token sequences as a prefix tree of t tokens in depth-first order.

    Attributes:
        ids: [t], the token ids.
        depths: [t], the position of each token in its sequence.
        last: [t], the index of the last token of each subtree.
        paths: for each sequence, the indices of its tokens.
    """

    ids: list[int]
    depths: list[int]
    last: list[int]
    paths: list[list[int]]

    @staticmethod
    def of(sequences: Sequence[Sequence[int]]) -> "Tree":
        """Build the tree; sequences of equal ids share their whole path."""
        ids: list[int] = []
        depths: list[int] = []
        last: list[int] = []
        paths: list[list[int]] = [[] for _ in sequences]
        before: Sequence[int] = ()
        path: list[int] = []
        # In sorted order the longest prefix that a sequence shares with any earlier one is the
        # prefix that it shares with the previous one: a new branch leaves the newest path.
        for index in _sorted(sequences):
            sequence = sequences[index]
            shared = common_prefix(before, sequence)
            end = len(ids) + len(sequence) - shared
            for token in path[:shared]:
                last[token] = end - 1
            path = path[:shared] + list(range(len(ids), end))
            ids += sequence[shared:]
            depths += range(shared, len(sequence))
            last += [end - 1] * (len(sequence) - shared)
            paths[index], before = path, sequence
        return Tree(ids, depths, last, paths)


def _sorted(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the indices in the order of the token ids: common prefixes become neighbours."""
    return sorted(range(len(sequences)), key=lambda i: list(sequences[i]))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix (by bisection: comparing slices is fast)."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def chunk_by_tokens(
    sequences: Sequence[Sequence[int]],
    budget: int,
    *,
    extra: int | Sequence[int] = 0,
    max_rows: int | None = None,
    cached: bool = False,
) -> Iterator[list[int]]:
    """Divide sequences into trees of at most `budget` tokens, and yield the indices of each tree.

    Sequences are taken in sorted order, in which those with the longest common prefixes are
    neighbours. A sequence that is longer than the budget gets its own tree.

    Args:
        sequences: token ids.
        budget: maximum tokens per tree.
        extra: tokens that are appended to each sequence, or to each one its own.
        max_rows: maximum sequences per tree.
        cached: the prefix that a tree shares with the previous one costs nothing.
    """
    appended = [extra] * len(sequences) if isinstance(extra, int) else extra
    chosen: list[int] = []
    size = 0
    before: Sequence[int] = ()
    for index in _sorted(sequences):
        sequence = sequences[index]
        whole = len(sequence) + appended[index]
        more = whole - common_prefix(before, sequence)
        if chosen and (size + more > budget or len(chosen) == max_rows):
            yield chosen
            chosen, size, more = [], 0, more if cached else whole
        chosen.append(index)
        size, before = size + more, sequence
    if chosen:
        yield chosen


@dataclass(frozen=True)
class Shapes:
    """The few sizes that the tensors of a pack may have: tokens, and positions with logits.

    On MPS memory grows with the number of distinct shapes (docs/PERFORMANCE.md). Without lengths,
    packs are not padded.
    """

    lengths: tuple[int, ...] = ()

    @staticmethod
    def up_to(longest: int, count: int = 4) -> "Shapes":
        """Return `count` evenly spaced lengths up to `longest`, each with two sizes of logits."""
        return Shapes(tuple(-(-longest * i // count) for i in range(1, count + 1)))

    def tokens(self, count: int) -> int:
        """Return the length to which `count` tokens are padded."""
        return next((length for length in self.lengths if length >= count), count)

    def logits(self, count: int, tokens: int) -> int:
        """Return how many of `tokens` positions get logits: a quarter, or all."""
        if not self.lengths:
            return count
        return tokens // 4 if count <= tokens // 4 else tokens


UNPADDED = Shapes()


def pack(examples: Sequence[Example], pad_id: int, shapes: Shapes = UNPADDED) -> Batch:
    """Pack examples with `input_ids` and `prompt_length` into one prefix tree.

    A padding token attends to itself: a row of a mask without any key would give NaN (pytorch issue
    156707).

    Returns:
        `input_ids`, `position_ids` [1, t] and `last` [t]: the tree. `keep` and `targets` [k]: the
        position before each supervised token, and that token. `paths` [n, w], padded with -1, and
        `starts` [n]: from these `unpacked` restores the plain layout. Of examples with weights also
        `weight` [n] and `weights` [k]: those of the examples, and of the targets.
    """
    tree = Tree.of([example["input_ids"] for example in examples])
    starts = [example["prompt_length"] for example in examples]
    keep = [t for p, n in zip(tree.paths, starts, strict=True) for t in p[n - 1 : -1]]
    targets = [t for e, n in zip(examples, starts, strict=True) for t in e["input_ids"][n:]]
    size = shapes.tokens(len(tree.ids))
    pads, more = size - len(tree.ids), shapes.logits(len(keep), size) - len(keep)
    width = max(map(len, tree.paths))
    weighted: Batch = {}
    if "weight" in examples[0]:
        own = [example["weight"] for example in examples]
        counts = [len(e["input_ids"]) - n for e, n in zip(examples, starts, strict=True)]
        each = [w for w, count in zip(own, counts, strict=True) for _ in range(count)]
        weighted = {"weight": torch.tensor(own), "weights": torch.tensor(each + [0.0] * more)}
    return weighted | {
        "input_ids": torch.tensor([tree.ids + [pad_id] * pads]),
        "position_ids": torch.tensor([tree.depths + [0] * pads]),
        "last": torch.tensor(tree.last + list(range(size - pads, size))),
        "keep": torch.tensor(keep + [0] * more),
        "targets": torch.tensor(targets + [IGNORED] * more),
        "paths": torch.tensor([path + [-1] * (width - len(path)) for path in tree.paths]),
        "starts": torch.tensor(starts),
    }


def unpacked(packed: Batch, pad_id: int, rows: int = 1, shapes: Shapes = UNPADDED) -> list[Batch]:
    """Return the examples of a pack as plain right-padded micro-batches of at most `rows` rows.

    Padding is on the right: on the left its queries would see no key, for which MPS returns NaN.

    Returns:
        Batches with `input_ids` and `attention_mask` [b, w], and `keep` [k] with `targets` [b, k]:
        the columns whose next token is supervised in some row; `weights` [b, k] if rows have some.
    """
    order = packed["paths"].ge(0).sum(dim=1).argsort(stable=True).tolist()
    batches = []
    for chosen in (order[i : i + rows] for i in range(0, len(order), rows)):
        paths, starts = packed["paths"][chosen], packed["starts"][chosen]
        longest = int(paths.ge(0).sum(dim=1).max())
        width = shapes.tokens(longest)
        paths = torch.nn.functional.pad(paths[:, :longest], (0, width - longest), value=-1)
        real = paths >= 0
        ids = packed["input_ids"][0][paths.clamp(min=0)].masked_fill(~real, pad_id)
        answer = real & (torch.arange(width, device=ids.device) >= starts[:, None])
        labels = ids.masked_fill(~answer, IGNORED)
        columns = answer[:, 1:].any(dim=0).nonzero().flatten()
        more = shapes.logits(len(columns), width) - len(columns)
        keep = torch.nn.functional.pad(columns, (0, more))
        targets = torch.nn.functional.pad(labels[:, columns + 1], (0, more), value=IGNORED)
        batch = {"input_ids": ids, "attention_mask": real.long(), "keep": keep, "targets": targets}
        if "weight" in packed:
            batch["weights"] = packed["weight"][chosen][:, None].expand(targets.shape)
        batches.append(batch)
    return batches


def examples_of(packed: Batch) -> list[Example]:
    """Return the examples of a pack, with `input_ids`, `prompt_length` and weights if any."""
    ids = packed["input_ids"][0]
    examples: list[Example] = [
        {"input_ids": ids[path[path >= 0]].tolist(), "prompt_length": int(start)}
        for path, start in zip(packed["paths"], packed["starts"], strict=True)
    ]
    if "weight" in packed:
        for example, weight in zip(examples, packed["weight"].tolist(), strict=True):
            example["weight"] = weight
    return examples


@dataclass(frozen=True)
class StepCollator:
    """Collate the examples of one optimizer step into packs of at most `budget` tokens each.

    The loss of a step is divided by its `count`: of supervised tokens, or of what each example says
    that it counts.
    """

    pad_id: int
    budget: int
    shapes: Shapes = UNPADDED

    def __call__(self, examples: Sequence[Example]) -> Step:
        packs = self.packs(examples)
        own = [example["count"] for example in examples if "count" in example]
        tokens = (float(packed["targets"].ne(IGNORED).sum()) for packed in packs)
        return {"packs": packs, "count": torch.tensor(float(sum(own or tokens)))}

    def packs(self, examples: Sequence[Example]) -> list[Batch]:
        """Return the packs of these examples; an empty list for none."""
        sequences = [example["input_ids"] for example in examples]
        return [
            pack([examples[i] for i in chosen], self.pad_id, self.shapes)
            for chosen in chunk_by_tokens(sequences, self.budget)
        ]
