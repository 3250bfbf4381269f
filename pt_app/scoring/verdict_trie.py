"""The allowed verdicts as a trie of tokens, read from a model without generation.

The tokens of a verdict are those of its line alone, with the line end ("1" is a prefix of "10":
only the line end tells them apart). The states of the trie are the end of the prompt (0) and every
inner node; at a state the model predicts the next token. The log-probability of a verdict is the
sum of those of its steps, so that one forward pass over the trie gives all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pt_app.core.errors import UserError

CACHED = 1 << 18  # logits per block: 1 MiB in float32, which stays in a core's cache


@dataclass(frozen=True)
class VerdictTrie:
    """The lines of the verdicts as tokens; node n has state n + 1.

    Attributes:
        tokens: the token of each inner node, parents first.
        parents: the state of the parent of each inner node.
        depths: the depth of each inner node.
        paths: the (state, token) steps of each verdict.
        edges: from a step to the next state.
        leaves: from a last step to the index of the verdict.
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

        Raises:
            UserError: if the tokens of a line are a prefix of those of another, or equal to them:
                such a tokenizer cannot tell the two verdicts apart.
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
        """The number of states: the end of the prompt and the inner nodes."""
        return len(self.tokens) + 1

    @cached_property
    def stems(self) -> tuple[tuple[int, ...], ...]:
        """The token sequences from the end of the prompt to each inner node without inner children.

        Without inner nodes it is one empty sequence.
        """
        ends = sorted(set(range(self.states)) - set(self.parents))
        return tuple(self._tokens_to(state) for state in ends)

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """For each state, a stem through it and how many tokens of the stem lead there."""
        paths = [self._tokens_to(state) for state in range(self.states)]
        return tuple(
            next((i, len(path)) for i, stem in enumerate(self.stems) if stem[: len(path)] == path)
            for path in paths
        )

    def _tokens_to(self, state: int) -> tuple[int, ...]:
        tokens: list[int] = []
        while state:
            tokens.append(self.tokens[state - 1])
            state = self.parents[state - 1]
        return tuple(reversed(tokens))

    def walk(self, greedy: Sequence[int]) -> int | None:
        """Follow the most likely tokens; return the index of the verdict, None off the trie."""
        states = self.greedy_states(greedy)
        return self.leaves.get((states[-1], greedy[states[-1]]))

    def greedy_states(self, greedy: Sequence[int]) -> list[int]:
        """Return the states on the path of the most likely tokens, up to the last in the trie."""
        states = [0]
        while (step := (states[-1], greedy[states[-1]])) in self.edges:
            states.append(self.edges[step])
        return states


@dataclass(frozen=True)
class Reading:
    """What a model predicts for some rows.

    Attributes:
        log_probabilities: of each verdict's line, [rows, verdicts] in float64.
        greedy: the most likely token at each state, [rows, states].
    """

    log_probabilities: torch.Tensor
    greedy: torch.Tensor


def read_plain(
    model: Any, prompts: Sequence[Sequence[int]], trie: VerdictTrie, pad: int
) -> Reading:
    """Read the same with one sequence per row and verdict: slower, but right on any attention."""
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
    return reading_of(torch.stack(rows), trie)


def reading_of(logits: torch.Tensor, trie: VerdictTrie) -> Reading:
    """Reduce the logits of the states, [rows, states, vocabulary], to a `Reading`."""
    # Blocks of a few rows stay in the cache of a core, which halves the time.
    flat = torch.split(logits.flatten(0, 1), max(1, CACHED // logits.shape[-1]))
    parts = [torch.logsumexp(rows.float(), dim=-1) for rows in flat]
    normaliser = torch.cat(parts).view(logits.shape[:2]).double().cpu()
    steps = sorted({step for path in trie.paths for step in path})
    where = {step: index for index, step in enumerate(steps)}
    at, token = torch.tensor(steps).T
    of_steps = logits[:, at.to(logits.device), token.to(logits.device)].double().cpu()
    of_steps = of_steps - normaliser[:, at]
    lines = [of_steps[:, [where[step] for step in path]].sum(dim=1) for path in trie.paths]
    return Reading(torch.stack(lines, dim=1), logits.argmax(dim=-1).cpu())
