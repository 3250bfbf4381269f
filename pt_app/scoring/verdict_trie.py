"""The allowed verdicts as a trie of tokens, read from a model without generation.

The tokens of a verdict are those of its line alone, with the line end ("1" is a prefix of "10":
only the line end tells them apart). The states of the trie are the end of the prompt (0) and every
inner node; at a state the model predicts the next token. The log-probability of a verdict is the
sum of those of its steps, so that one forward pass over the trie gives all of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from pt_app.core.errors import UserError

CACHED = 1 << 18  # logits per block: 1 MiB in float32, which stays in a core's cache
Step = tuple[int, int]
"""A state, and the token that leads on from it."""


@dataclass(frozen=True)
class VerdictTrie:
    """The lines of the verdicts as tokens.

    Attributes:
        paths: the steps of each verdict.
        edges: from a step to the next state, parents first; states count from 1 in this order.
        leaves: from a last step to the index of the verdict. The last token of a line has no
            state: nothing is predicted after it.
        tails: of each verdict, the log-probability that stands for what `cut` took off its line.
    """

    paths: tuple[tuple[Step, ...], ...]
    edges: dict[Step, int]
    leaves: dict[Step, int]
    tails: tuple[float, ...] = ()

    @staticmethod
    def build(lines: Sequence[Sequence[int]]) -> "VerdictTrie":
        """Build the trie of the token ids of each verdict's line, in the order of the scale.

        Raises:
            UserError: if the tokens of a line are a prefix of those of another, or equal to them:
                such a tokenizer cannot tell the two verdicts apart.
        """
        edges: dict[Step, int] = {}
        leaves: dict[Step, int] = {}
        paths = []
        for verdict, line in enumerate(lines):
            state, path = 0, []
            for token in line[:-1]:
                path.append((state, token))
                state = edges.setdefault((state, token), len(edges) + 1)
            path.append((state, line[-1]))
            if path[-1] in leaves:
                raise UserError("this tokenizer writes two verdicts alike: use another model")
            leaves[path[-1]] = verdict
            paths.append(tuple(path))
        if leaves.keys() & edges.keys():
            raise UserError("this tokenizer begins one verdict with another: use another model")
        return VerdictTrie(tuple(paths), edges, leaves)

    def cut(self, kept: Sequence[int], tails: Sequence[float]) -> "VerdictTrie":
        """Return the trie of the first `kept` tokens of each line, at least as many as `forks`."""
        lines = [line[:count] for line, count in zip(self.lines, kept, strict=True)]
        return replace(VerdictTrie.build(lines), tails=tuple(tails))

    @cached_property
    def lines(self) -> list[list[int]]:
        """The tokens of each line."""
        return [[token for _, token in path] for path in self.paths]

    @cached_property
    def forks(self) -> list[int]:
        """For each line, how many of its tokens tell it from all other lines."""
        ways = Counter(state for state, _ in self.steps)
        return [
            max((place for place, (state, _) in enumerate(path, 1) if ways[state] > 1), default=1)
            for path in self.paths
        ]

    @cached_property
    def steps(self) -> list[Step]:
        """All steps, each once: verdicts share them."""
        return sorted({*self.edges, *self.leaves})

    @cached_property
    def columns(self) -> list[list[int]]:
        """For each line, where its steps are in `steps`."""
        where = {step: column for column, step in enumerate(self.steps)}
        return [[where[step] for step in path] for path in self.paths]

    @property
    def states(self) -> int:
        """The number of states: the end of the prompt and the inner nodes."""
        return len(self.edges) + 1

    @property
    def tokens(self) -> list[int]:
        """The token of each inner node, parents first."""
        return [token for _, token in self.edges]

    @property
    def depth(self) -> int:
        """The number of inner nodes on the longest path."""
        return max(map(len, self.paths)) - 1

    @cached_property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The tokens from the end of the prompt to each state."""
        prefixes: list[tuple[int, ...]] = [()]
        for state, token in self.edges:
            prefixes.append((*prefixes[state], token))
        return prefixes

    @cached_property
    def stems(self) -> tuple[tuple[int, ...], ...]:
        """The token sequences from the end of the prompt to each inner node without inner children.

        Without inner nodes it is one empty sequence.
        """
        ends = sorted(set(range(self.states)) - {state for state, _ in self.edges})
        return tuple(self.prefixes[state] for state in ends)

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """For each state, a stem through it and how many tokens of the stem lead there."""
        return tuple(
            next((i, len(path)) for i, stem in enumerate(self.stems) if stem[: len(path)] == path)
            for path in self.prefixes
        )

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
        steps: log-probability of each step of the trie, [rows, steps] in float64.
        log_probabilities: of each verdict's line, [rows, verdicts] in float64.
        greedy: the most likely token at each state, [rows, states].
    """

    steps: torch.Tensor
    log_probabilities: torch.Tensor
    greedy: torch.Tensor

    @staticmethod
    def of_steps(steps: torch.Tensor, greedy: torch.Tensor, trie: VerdictTrie) -> "Reading":
        """Sum the steps of each line, and what stands for a cut one."""
        lines = torch.stack([steps[:, columns].sum(dim=1) for columns in trie.columns], dim=1)
        lines += torch.tensor(trie.tails or 0.0, dtype=lines.dtype)
        return Reading(steps, lines, greedy)


def read_plain(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], trie: VerdictTrie, pad: int
) -> Reading:
    """Read the same with one sequence per row and verdict: slower, but right on any attention."""
    rows = []
    for prompt in prompts:
        # Padding on the right needs no mask: what follows a token does not change its logits.
        padded = [
            [*prompt, *line[:-1], *[pad] * (trie.depth + 1 - len(line))] for line in trie.lines
        ]
        ids = torch.tensor(padded, device=model.device)
        every = {"attention_mask": torch.ones_like(ids), "use_cache": False}
        logits = model(input_ids=ids, logits_to_keep=trie.depth + 1, **every).logits
        of_states = logits.new_zeros(trie.states, logits.shape[-1])
        for index, path in enumerate(trie.paths):
            of_states[[state for state, _ in path]] = logits[index, : len(path)]
        rows.append(of_states)
    ((_, _, reading),) = readings_of(torch.cat(rows), [trie] * len(rows))
    return reading


def readings_of(
    logits: torch.Tensor, tries: Sequence[VerdictTrie]
) -> Iterator[tuple[VerdictTrie, list[int], Reading]]:
    """Reduce logits to a reading for each trie.

    Args:
        logits: [states of all rows, vocabulary], row after row.
        tries: the trie of each row.

    Yields:
        Each trie, the indices of its rows, and their reading.
    """
    # Blocks of a few states stay in the cache of a core, which halves the time.
    blocks = torch.split(logits, max(1, CACHED // logits.shape[-1]))
    both = [(torch.logsumexp(block.float(), dim=-1), block.argmax(dim=-1)) for block in blocks]
    normaliser, greedy = (torch.cat(each).cpu() for each in zip(*both, strict=True))
    starts = list(accumulate((trie.states for trie in tries), initial=0))
    rows_of: dict[int, list[int]] = {}
    for row, trie in enumerate(tries):
        rows_of.setdefault(id(trie), []).append(row)
    for rows in rows_of.values():
        trie = tries[rows[0]]
        first = torch.tensor([starts[row] for row in rows])[:, None]
        at, token = torch.tensor(trie.steps).T
        states = first + at
        of_steps = logits[states.to(logits.device), token.to(logits.device)].cpu().double()
        own = greedy[first + torch.arange(trie.states)]
        yield trie, rows, Reading.of_steps(of_steps - normaliser[states].double(), own, trie)
