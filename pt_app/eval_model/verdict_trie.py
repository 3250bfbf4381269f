"""The allowed verdicts as a trie of tokens, read from a model without generating anything.

A verdict's tokens are those of its line alone, line end included ("1" begins "10", and only the
line end tells them apart). The states of the trie are the prompt's end (0) and every inner node;
at a state the model says which token comes next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pt_app.errors import UserError


@dataclass(frozen=True)
class VerdictTrie:
    """Lines of verdicts as tokens; node n has state n + 1.

    `tokens`, `parents` (states) and `depths` have an entry for each inner node, parents first.
    `paths` has for each verdict its (state, token) steps. `edges` leads from a step to the next
    state, `leaves` from a last step to the verdict's index.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[tuple[int, int], ...], ...]
    edges: dict[tuple[int, int], int]
    leaves: dict[tuple[int, int], int]

    @staticmethod
    def build(lines: Sequence[Sequence[int]]) -> "VerdictTrie":
        """Build the trie of the token ids of each verdict's line, in the order of the scale.

        Raises UserError where one line's tokens begin or equal another's: a tokenizer that does
        that cannot tell the two verdicts apart.
        """
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        edges: dict[tuple[int, int], int] = {}
        leaves: dict[tuple[int, int], int] = {}
        paths = []
        for verdict, line in enumerate(lines):
            state, path = 0, []
            for depth, token in enumerate(line[:-1]):
                path.append((state, token))
                if (state, token) not in edges:
                    tokens.append(token)
                    parents.append(state)
                    depths.append(depth)
                    edges[state, token] = len(tokens)
                state = edges[state, token]
            path.append((state, line[-1]))
            if path[-1] in leaves:
                raise UserError("this tokenizer writes two verdicts alike: use another model")
            leaves[path[-1]] = verdict
            paths.append(tuple(path))
        if leaves.keys() & edges.keys():
            raise UserError("this tokenizer begins one verdict with another: use another model")
        return VerdictTrie(
            tuple(tokens), tuple(parents), tuple(depths), tuple(paths), edges, leaves
        )

    @property
    def states(self) -> int:
        """The number of states: the prompt's end and the inner nodes."""
        return len(self.tokens) + 1

    def ancestry(self) -> torch.Tensor:
        """Which inner node (row) sees which (column): its ancestors and itself. [nodes, nodes]"""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen

    def walk(self, greedy: Sequence[int]) -> int | None:
        """Follow the likeliest token of each state; the verdict's index, or None off the trie."""
        state = 0
        while True:
            step = (state, greedy[state])
            if step in self.leaves:
                return self.leaves[step]
            if step not in self.edges:
                return None
            state = self.edges[step]


@dataclass(frozen=True)
class Reading:
    """What a model says of a batch: log-probability of each line, likeliest token of each state.

    `log_probabilities` is [rows, verdicts] in float64, `greedy` is [rows, states].
    """

    log_probabilities: torch.Tensor
    greedy: torch.Tensor


def read_tree(model: Any, prompts: Sequence[Sequence[int]], trie: VerdictTrie, pad: int) -> Reading:
    """Read all verdicts of a batch in one forward pass: prompts, then the trie's inner nodes.

    Prompts are padded on the left, so that in every row the states are the last columns. A node
    stands at the position that it would have behind its prompt and sees that prompt, its
    ancestors and itself.
    """
    width, nodes = max(map(len, prompts)), len(trie.tokens)
    device = model.device
    ids = torch.full((len(prompts), width + nodes), pad)
    start = torch.tensor([width - len(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) : width] = torch.tensor(prompt)
    ids[:, width:] = torch.tensor(trie.tokens, dtype=torch.long)
    column = torch.cat([torch.arange(width), width + torch.tensor(trie.depths, dtype=torch.long)])
    positions = (column - start[:, None]).clamp(min=0)
    seen = torch.eye(width + nodes, dtype=torch.bool)
    seen[:width, :width] |= torch.ones(width, width, dtype=torch.bool).tril()
    seen[width:, :width] = True
    seen[width:, width:] = trie.ancestry()
    real = torch.arange(width + nodes) >= start[:, None]
    # A pad sees itself: a row of the mask without any key would give NaN.
    allowed = (seen & real[:, None, :]) | torch.eye(width + nodes, dtype=torch.bool)
    # The attention interface passes a 4-D mask on as it is; eager attention adds it to the scores.
    mask = torch.zeros(allowed.shape, dtype=model.dtype)
    mask.masked_fill_(~allowed, torch.finfo(model.dtype).min)
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask[:, None].to(device),
        position_ids=positions.to(device),
        logits_to_keep=trie.states,
        use_cache=False,
    ).logits
    return _read(logits, trie)


def read_plain(
    model: Any, prompts: Sequence[Sequence[int]], trie: VerdictTrie, pad: int
) -> Reading:
    """Read the same with one sequence for each row and verdict, on any attention: slower."""
    lines = [[token for _, token in path] for path in trie.paths]
    states = [[state for state, _ in path] for path in trie.paths]
    kept = max(map(len, lines))
    rows = []
    for prompt in prompts:
        sequences = [[*prompt, *line[:-1]] for line in lines]
        width = max(map(len, sequences))
        ids = torch.tensor([[pad] * (width - len(s)) + s for s in sequences], device=model.device)
        start = torch.tensor([[width - len(s)] for s in sequences], device=model.device)
        column = torch.arange(width, device=model.device)
        logits = model(
            input_ids=ids,
            attention_mask=(column >= start).long(),
            position_ids=(column - start).clamp(min=0),
            logits_to_keep=kept,
            use_cache=False,
        ).logits
        of_states = logits.new_zeros(trie.states, logits.shape[-1])
        for index, path in enumerate(states):
            of_states[path] = logits[index, -len(path) :]
        rows.append(of_states)
    return _read(torch.stack(rows), trie)


def _read(logits: torch.Tensor, trie: VerdictTrie) -> Reading:
    """Reduce the logits of the states, [rows, states, vocabulary], to what is asked of them."""
    normaliser = torch.logsumexp(logits.float(), dim=-1).double().cpu()
    steps = sorted({step for path in trie.paths for step in path})
    where = {step: index for index, step in enumerate(steps)}
    at, token = torch.tensor(steps).T
    of_steps = logits[:, at.to(logits.device), token.to(logits.device)].double().cpu()
    of_steps = of_steps - normaliser[:, at]
    lines = [of_steps[:, [where[step] for step in path]].sum(dim=1) for path in trie.paths]
    return Reading(torch.stack(lines, dim=1), logits.argmax(dim=-1).cpu())


def sees_trees(model: Any, longest: int) -> bool:
    """Say whether `read_tree` holds for this model and paths of up to `longest` tokens.

    It needs full attention (or a window that is no shorter), through the interface that takes a
    4-D mask, and positions that come from position_ids.
    """
    import inspect

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and window >= longest
        and config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(base.forward).parameters
    )
