"""Reads the verdicts of a whole test set as one prefix tree, a part of it at a time.

Prompts are taken in sorted order. A part is the tree of some prompts with the verdict trie behind
each; what its first prompt shares with the last one of the part before is not computed again: its
keys and values are still at hand. So a rubric is read once a test set, a source once.
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

    `rows` are their indices, `reading` has a line for each, `places` [rows][states] say where in
    the tree each state stands, `paths` [rows] where the tokens of each prompt stand. `cache` holds
    the keys and values of the whole tree (None where shapes are fixed).
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
    most_rows: int,
    pad_id: int,
    shapes: Shapes | None = None,
) -> Iterator[Part]:
    """Read prompts in parts of at most `budget` newly computed tokens and `most_rows` prompts.

    With `shapes` the tensors of each part have one of a few sizes and nothing is cached.
    """
    from transformers import DynamicCache

    fixed = shapes is not None and bool(shapes.lengths)
    extra = len(trie.tokens)
    cache, before = None, ()  # type: Any, Sequence[int]
    path: list[int] = []
    for rows in under_budget(prompts, budget, extra=extra, most=most_rows, cached=not fixed):
        first = prompts[rows[0]]
        # The last token of the first prompt is asked for its logits, known or not.
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
        # Under no name here, which would hold them until the next part's are there too.
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
    """Logits [K, vocabulary] at the `keep` tokens, counted from `known`."""
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
    """Keep of a cache the tokens of one path, in its order."""
    for layer in cache.layers:
        index = torch.tensor(path, dtype=torch.long, device=layer.keys.device)
        layer.keys, layer.values = (x.index_select(2, index) for x in (layer.keys, layer.values))
    return cache
