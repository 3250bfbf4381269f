"""Read the verdicts of a whole test set as one prefix tree, one part of it per forward pass.

Prompts are sorted. A part is the tree of some prompts, with a verdict trie appended to each. What
its first prompt shares with the last prompt of the previous part is not computed again: the KV
cache still holds it. A rubric is therefore computed once per test set, and a source once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from transformers import DynamicCache, PreTrainedModel

from pt_app.models.packing import Shapes, Tree, chunk_by_tokens, common_prefix
from pt_app.models.tree_attention import last_mlp_only_at, tree_inputs
from pt_app.scoring.verdict_trie import Reading, VerdictTrie, readings_of


@dataclass(frozen=True)
class Part:
    """Some prompts that were read together, with one trie.

    Attributes:
        trie: the allowed verdicts.
        rows: the indices of the prompts.
        reading: the verdicts, one row per prompt.
        places: [rows][states], the position in the tree of each state of the trie.
        paths: [rows], the positions in the tree of the tokens of each prompt.
        cache: keys and values of the whole tree; None if shapes are fixed.
    """

    trie: VerdictTrie
    rows: list[int]
    reading: Reading
    places: list[list[int]]
    paths: list[list[int]]
    cache: DynamicCache | None


@dataclass(frozen=True)
class TreeReader:
    """Reads the verdicts on prompts, part by part.

    Attributes:
        model: the model, in evaluation mode.
        budget: maximum newly computed tokens per part.
        max_rows: maximum prompts per part.
        pad_id: the padding token.
        shapes: the sizes to which the tensors of a part are padded; if there are any, nothing is
            cached, since a cache has ever new sizes.
    """

    model: PreTrainedModel
    budget: int
    max_rows: int
    pad_id: int
    shapes: Shapes

    def parts(
        self, prompts: Sequence[Sequence[int]], tries: Sequence[VerdictTrie]
    ) -> Iterator[Part]:
        """Read prompts, given as token ids, each with its own trie.

        What was read in one forward pass is a part for each of its tries.
        """
        fixed = bool(self.shapes.lengths)
        extra = [len(trie.tokens) for trie in tries]
        cache: DynamicCache | None = None
        before: Sequence[int] = ()
        path: list[int] = []
        for rows in chunk_by_tokens(
            prompts, self.budget, extra=extra, max_rows=self.max_rows, cached=not fixed
        ):
            first, of_rows = prompts[rows[0]], [tries[row] for row in rows]
            # The logits of the last token of the first prompt are needed, cached or not.
            cached = 0 if fixed else min(common_prefix(before, first), len(first) - 1)
            tree = Tree.of([[*prompts[row], *stem] for row in rows for stem in tries[row].stems])
            cache = None if fixed else _pruned(cache or DynamicCache(), path[:cached])
            stems = iter(tree.paths)
            own = [list(islice(stems, len(trie.stems))) for trie in of_rows]
            places = [
                [paths[stem][len(prompts[row]) - 1 + depth] for stem, depth in tries[row].places]
                for row, paths in zip(rows, own, strict=True)
            ]
            positions = [place - cached for of_row in places for place in of_row]
            # The logits get no name: it would keep them alive until those of the next part exist.
            readings = list(readings_of(self._logits(tree, positions, cached, cache), of_rows))
            paths = [p[0][: len(prompts[row])] for row, p in zip(rows, own, strict=True)]
            for trie, chosen, reading in readings:
                at, ways = [places[i] for i in chosen], [paths[i] for i in chosen]
                yield Part(trie, [rows[i] for i in chosen], reading, at, ways, cache)
            before, path = prompts[rows[-1]], paths[-1]

    def _logits(
        self, tree: Tree, positions: list[int], cached: int, cache: DynamicCache | None
    ) -> torch.Tensor:
        """Return the logits [positions, vocabulary] at `positions`, counted from `cached`."""
        size = self.shapes.tokens(len(tree.ids))
        pads = size - len(tree.ids)
        more = self.shapes.logits(len(positions), size) - len(positions)
        tensor = partial(torch.tensor, device=self.model.device)
        ids = tensor([tree.ids[cached:] + [self.pad_id] * pads])
        depths = tensor([tree.depths[cached:] + [0] * pads])
        last = tensor(tree.last + list(range(size - pads, size)))
        asked = tensor(positions + [0] * more)
        with last_mlp_only_at(self.model, torch.unique(asked)):
            logits: torch.Tensor = self.model(
                **tree_inputs(self.model, ids, depths, last, cached),
                logits_to_keep=asked,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits[0]
        return logits[: len(positions)]


def _pruned(cache: DynamicCache, path: list[int]) -> DynamicCache:
    """Keep in a cache only the tokens of one path, in the order of the path.

    The tree of the next part begins with this path, and the siblings of its tokens are not seen
    from there. Keys hold their rotary position already, which is the depth, so that they may move.
    """
    for layer in cache.layers:
        index = torch.tensor(path, dtype=torch.long, device=layer.keys.device)
        layer.keys, layer.values = (x.index_select(2, index) for x in (layer.keys, layer.values))
    return cache
