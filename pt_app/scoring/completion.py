"""Complete answers greedily from the KV cache of their prompts.

Rows are decoded in batches, so that the weights are read once for all rows of a batch. Answers that
have ended leave their batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pt_app.models.tree_attention import as_attention_mask
from pt_app.scoring.tree_reading import Part


@dataclass(frozen=True)
class Opening:
    """The first tokens of an answer, and the KV cache of everything before the last of them.

    Attributes:
        row: the index of the prompt.
        ids: the first tokens of the answer.
        states: keys and values of each layer, [kv_heads, n, head_dim] each.
    """

    row: int
    ids: list[int]
    states: list[tuple[torch.Tensor, torch.Tensor]]

    @property
    def length(self) -> int:
        """The number n of cached tokens: the prompt and all but the last of `ids`."""
        return self.states[0][0].shape[1]


def openings(part: Part) -> list[Opening]:
    """Return the start of the greedy answer of each row of a part, as far as it is in the trie.

    The line of the verdict was read with the tree: only what follows it is left to decode.
    """
    assert part.cache is not None, "parts of fixed shapes keep no cache"
    opened = []
    for i, row in enumerate(part.rows):
        greedy = part.reading.greedy[i].tolist()
        states = part.trie.greedy_states(greedy)
        index = torch.tensor(part.paths[i] + [part.places[i][state] for state in states[1:]])
        copies = [
            tuple(x[0].index_select(1, index.to(x.device)) for x in (layer.keys, layer.values))
            for layer in part.cache.layers
        ]
        opened.append(Opening(row, [greedy[state] for state in states], copies))
    return opened


def complete(
    model: PreTrainedModel, opened: Sequence[Opening], end_id: int, max_tokens: int
) -> dict[int, list[int]]:
    """Decode each answer greedily to its end token, or to `max_tokens` tokens.

    Answers that have ended leave the batch when they are a quarter of it: each removal copies the
    cache.

    Returns:
        The token ids of each answer by row, the end token included.
    """
    answers = {opening.row: list(opening.ids) for opening in opened}
    alive = [opening for opening in opened if not _ended(opening.ids, end_id, max_tokens)]
    rows = [opening.row for opening in alive]
    if not alive:
        return answers
    batch = _Batch(alive, max_tokens, model.device)
    while rows:
        nexts = batch.step(model, [answers[row][-1] for row in rows])
        for row, token in zip(rows, nexts, strict=True):
            if not _ended(answers[row], end_id, max_tokens):
                answers[row].append(token)
        left = [i for i, r in enumerate(rows) if not _ended(answers[r], end_id, max_tokens)]
        if len(left) <= 0.75 * len(rows):
            batch.keep(left)
            rows = [rows[i] for i in left]
    return answers


def _ended(ids: Sequence[int], end_id: int, max_tokens: int) -> bool:
    return ids[-1] == end_id or len(ids) >= max_tokens


class _Room(DynamicLayer):  # type: ignore[misc]
    """A cache layer with preallocated room; the layer of transformers copies itself per token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.keys, self.values, self.used = keys, values, used
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of the newest tokens, and return all of them so far."""
        start, self.used = self.used, self.used + key_states.shape[2]
        for room, new in ((self.keys, key_states), (self.values, value_states)):
            room[:, :, start : self.used] = new
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.used


class _Batch:
    """The caches of several answers, right-aligned: a new token is one column for all of them."""

    def __init__(self, opened: Sequence[Opening], max_tokens: int, device: torch.device) -> None:
        self.lengths = torch.tensor([opening.length for opening in opened], device=device)
        self.width = int(self.lengths.max())
        self.done = 0

        def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            """Stack [heads, n, dim] tensors, aligned at `width`, with room for the answer."""
            pads = [(0, 0, self.width - tensor.shape[1], max_tokens) for tensor in tensors]
            return torch.stack([F.pad(t, pad) for t, pad in zip(tensors, pads, strict=True)])

        layers = []
        for states in zip(*(opening.states for opening in opened), strict=True):
            keys, values = map(stacked, zip(*states, strict=True))
            layers.append(_Room(keys, values, self.width))
        self.cache = Cache(layers=layers)

    def step(self, model: PreTrainedModel, tokens: list[int]) -> list[int]:
        """Return the most likely next token of each answer, given its newest token."""
        column = torch.arange(self.width + self.done + 1, device=model.device)
        seen = column >= self.width - self.lengths[:, None]
        logits = model(
            input_ids=torch.tensor(tokens, device=model.device)[:, None],
            attention_mask=as_attention_mask(seen[:, None, None], model),
            position_ids=(self.lengths + self.done)[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.done += 1
        nexts: list[int] = logits[:, -1].argmax(dim=-1).tolist()
        return nexts

    def keep(self, left: list[int]) -> None:
        """Keep only these answers."""
        rows = torch.tensor(left, dtype=torch.long, device=self.lengths.device)
        self.lengths = self.lengths[rows]
        self.cache.batch_select_indices(rows)
