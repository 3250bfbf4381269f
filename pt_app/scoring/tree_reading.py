"""Read the verdicts of a whole test set as one prefix tree, one part of it per forward pass.

Prompts are sorted. A part is the tree of some prompts, with the verdict trie appended to each. What
its first prompt shares with the last prompt of the previous part is not computed again: the KV
cache still holds it. A rubric is therefore computed once per test set, and a source once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pt_app.models.packing import Shapes, Tree, common_prefix, under_budget
from pt_app.models.tree_attention import last_mlp_only_at, tree_inputs
from pt_app.scoring.verdict_trie import Reading, VerdictTrie, reading_of


@dataclass(frozen=True)
class Part:
    """Some prompts that were read together.

    Attributes:
        rows: the indices of the prompts.
        reading: the verdicts, one row per prompt.
        places: [rows][states], the position in the tree of each state of the trie.
        paths: [rows], the positions in the tree of the tokens of each prompt.
        cache: keys and values of the whole tree; None if shapes are fixed.
    """

    rows: list[int]
    reading: Reading
    places: list[list[int]]
    paths: list[list[int]]
    cache: Any


def read_parts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: VerdictTrie,
    budget: int,
    max_rows: int,
    pad_id: int,
    shapes: Shapes | None = None,
) -> Iterator[Part]:
    """Read prompts in parts.

    Args:
        model: the model, in evaluation mode.
        prompts: token ids of each prompt.
        trie: the allowed verdicts.
        budget: maximum newly computed tokens per part.
        max_rows: maximum prompts per part.
        pad_id: the padding token.
        shapes: pad the tensors of a part to one of these sizes; nothing is cached then.
    """
    from transformers import DynamicCache

    fixed = shapes is not None and bool(shapes.lengths)
    extra = len(trie.tokens)
    cache, before = None, ()  # type: Any, Sequence[int]
    path: list[int] = []
    for rows in under_budget(prompts, budget, extra=extra, most=max_rows, cached=not fixed):
        first = prompts[rows[0]]
        # The logits of the last token of the first prompt are needed, cached or not.
        known = 0 if fixed else min(common_prefix(before, first), len(first) - 1)
        tree = Tree.of([[*prompts[row], *stem] for row in rows for stem in trie.stems])
        cache = None if fixed else _kept(cache or DynamicCache(), path[:known])
        per = len(trie.stems)
        of_rows = [tree.paths[i * per : (i + 1) * per] for i in range(len(rows))]
        places = [
            [paths[stem][len(prompts[row]) - 1 + depth] for stem, depth in trie.places]
            for row, paths in zip(rows, of_rows, strict=True)
        ]
        keep = [place - known for of_row in places for place in of_row]
        # The logits get no name: it would keep them alive until those of the next part exist too.
        reading = reading_of(
            _logits(model, tree, keep, known, cache, pad_id, shapes or Shapes()).view(
                len(rows), trie.states, -1
            ),
            trie,
        )
        paths = [p[0][: len(prompts[row])] for row, p in zip(rows, of_rows, strict=True)]
        yield Part(rows, reading, places, paths, cache)
        before, path = prompts[rows[-1]], paths[-1]


def _logits(
    model: Any,
    tree: Tree,
    keep: list[int],
    known: int,
    cache: Any,
    pad_id: int,
    shapes: Shapes,
) -> torch.Tensor:
    """Return the logits [k, vocabulary] at the `keep` tokens, counted from `known`."""
    device = model.device
    size = shapes.tokens(len(tree.ids))
    pads, more = size - len(tree.ids), shapes.kept(len(keep), size) - len(keep)
    layout = tree_inputs(
        model,
        torch.tensor([tree.ids[known:] + [pad_id] * pads], device=device),
        torch.tensor([tree.depths[known:] + [0] * pads], device=device),
        torch.tensor(tree.last + list(range(size - pads, size)), device=device),
        known,
    )
    asked = torch.tensor(keep + [0] * more, device=device)
    with last_mlp_only_at(model, torch.unique(asked)):
        logits: torch.Tensor = model(
            **layout,
            logits_to_keep=asked,
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits[0]
    return logits[: len(keep)]


def _kept(cache: Any, path: list[int]) -> Any:
    """Keep in a cache only the tokens of one path, in the order of the path."""
    for layer in cache.layers:
        index = torch.tensor(path, dtype=torch.long, device=layer.keys.device)
        layer.keys, layer.values = (x.index_select(2, index) for x in (layer.keys, layer.values))
    return cache
