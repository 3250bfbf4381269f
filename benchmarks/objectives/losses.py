"""Losses of the distribution over verdicts, to be added to the cross-entropy of the answer.

A row's loss is

    CE(answer) - NLL(p, y) + sum of weight * L(p, y), over L in `LOSSES`

where p are the probabilities of the verdicts among each other and y is the label. With the weight 1
for `ce` alone it is the cross-entropy of the answer. Without `ce` the answer still learns its form
and which verdicts are allowed: only the choice among them is left to the other losses.

p is read teacher-forced, at the states of the verdict trie from which several tokens lead on; the
other tokens of a verdict's line follow from those. A state that the label does not pass through
costs a token or two beside the row. No head is added: the adapter is an ordinary one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.orders import flipped, swapped
from pt_app.core.verdicts import Scale
from pt_app.models.packing import IGNORED, Batch, Example, examples_of, pack, unpacked
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.training.loop import Model
from pt_app.training.loss import summed_loss, supervised_logits

# Takes log p [n, v] over the lines of verdicts, the labels' positions [n], the numbers of the lines
# [v] on a width of 1, and the raters' shares [n, v]; returns the loss of each row [n].
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# The raters' shares of a row by its token ids.
Shares = Mapping[tuple[int, ...], Sequence[float]]
SMOOTHING = 1.0  # pseudo-votes, spread as the labels of all training rows are


def _ce(log_p: torch.Tensor, label: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(1, label[:, None])[:, 0]


def _soft(log_p: torch.Tensor, label: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    _, shares = more
    return -(shares * log_p).sum(dim=1)


def _rps(log_p: torch.Tensor, label: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """Return the ranked probability score (Epstein 1969), the squares weighted by their steps."""
    numbers, _ = more
    reached = torch.arange(len(numbers) - 1, device=label.device) >= label[:, None]
    apart = log_p.exp().cumsum(dim=1)[:, :-1] - reached.to(log_p.dtype)
    return (apart**2 * numbers.diff()).sum(dim=1)


def _raft(log_p: torch.Tensor, label: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """Return the squared error of the expectation (RAFT, Lukasik et al., ICLR 2025)."""
    numbers, _ = more
    return (log_p.exp() @ numbers - numbers[label]) ** 2


LOSSES: dict[str, Loss] = {"ce": _ce, "soft": _soft, "rps": _rps, "raft": _raft}
NUMBERS, RATERS = ("rps", "raft"), ("soft",)  # the losses that need them


class VerdictLoss:
    """The loss of an `AnswerLoss`, with losses of the distribution over verdicts.

    Args:
        trie: the verdicts of the scale.
        scale: the scale that is trained.
        weights: of the losses, by name.
        pad_id: the padding token.
        shares: what `soft` compares with, of each training row.

    Raises:
        UserError: for an unknown loss, and one without the numbers or the shares it needs.
    """

    def __init__(
        self,
        trie: VerdictTrie,
        scale: Scale,
        weights: Mapping[str, float],
        pad_id: int,
        shares: Shares | None = None,
    ) -> None:
        check_objective(weights, scale)
        changed = {**weights, "ce": weights.get("ce", 0.0) - 1}
        self.weights = {name: weight for name, weight in changed.items() if weight}
        self.trie, self.pad_id, self.shares = trie, pad_id, shares or {}
        prefixes = [trie.stems[stem][:length] for stem, length in trie.places]
        steps = sorted({step for path in trie.paths for step in path})
        leads_on = dict(steps)  # a token after each state
        count = Counter(state for state, _ in steps)
        # The tokens that lead to each branch, and one that leads on from it.
        self.branches = {s: (prefixes[s], leads_on[s]) for s in leads_on if count[s] > 1}
        steps = [step for step in steps if step[0] in self.branches]
        order = {state: index for index, state in enumerate(self.branches)}
        self.branch_of = torch.tensor([order[state] for state, _ in steps])  # [steps]
        self.tokens = torch.tensor([token for _, token in steps])
        member = [[float(step in path) for path in trie.paths] for step in steps]
        self.member = torch.tensor(member)  # [steps, v]
        values = [v if isinstance(v, int | float) else i for i, v in enumerate(scale.line_values)]
        self.numbers = torch.tensor(values, dtype=torch.float64) / (values[-1] - values[0])

    def __call__(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return the loss of a pack or a plain micro-batch, summed over its rows."""
        if not self.weights or not batch["targets"].ne(IGNORED).any():
            return summed_loss(model, batch)
        rows = _rows_of(batch)
        sequences, where = self._with_branches(rows)
        logits = self._logits(model, sequences, trees="last" in batch)
        device = logits.device
        answers = [token for row in rows for token in row["input_ids"][row["prompt_length"] :]]
        targets = torch.tensor(answers, device=device)
        total = F.cross_entropy(logits[: len(targets)], targets, reduction="sum")
        log_p = self._log_p(logits, where.to(device))
        label = torch.tensor([self._label(row) for row in rows], device=device)
        votes = [self.shares[tuple(row["input_ids"])] for row in rows] if self.shares else []
        shares = torch.tensor(votes, dtype=log_p.dtype, device=device)
        numbers = self.numbers.to(device, log_p.dtype)
        for name, weight in self.weights.items():
            total = total + weight * LOSSES[name](log_p, label, numbers, shares).sum()
        return total

    def _with_branches(self, rows: Sequence[Example]) -> tuple[list[Example], torch.Tensor]:
        """Return the rows and what has to be read beside them.

        Returns:
            The sequences, and where in their logits each row has each branch [rows, branches].
        """
        beside: list[Example] = []
        where: list[int] = []
        lengths = [len(row["input_ids"]) - row["prompt_length"] for row in rows]
        starts = [sum(lengths[:i]) for i in range(len(rows) + 1)]
        for row, start in zip(rows, starts, strict=False):
            prompt, answer = _parted(row)
            for prefix, token in self.branches.values():
                if tuple(answer[: len(prefix)]) == prefix:
                    where.append(start + len(prefix))
                    continue
                where.append(starts[-1] + len(beside))
                opened = [*prompt, *prefix]
                beside.append(Example(input_ids=[*opened, token], prompt_length=len(opened)))
        return [*rows, *beside], torch.tensor(where).view(len(rows), -1)

    def _logits(self, model: Model, sequences: Sequence[Example], trees: bool) -> torch.Tensor:
        """Return the logits before each token after the prompts, in order [k, vocabulary]."""
        packs = [pack(sequences, self.pad_id)]
        if not trees:
            packs = [unpacked(pack([one], self.pad_id), self.pad_id)[0] for one in sequences]
        device = model.device
        read = [{name: t.to(device) for name, t in packed.items()} for packed in packs]
        return torch.cat([supervised_logits(model, inputs)[0] for inputs in read])

    def _log_p(self, logits: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of the verdicts among each other [rows, v]."""
        at, device = where[:, self.branch_of.to(where.device)], logits.device
        steps = logits[at, self.tokens.to(device)] - logits.logsumexp(dim=1)[at]
        return F.log_softmax(steps @ self.member.to(device, steps.dtype), dim=1)

    def _label(self, row: Example) -> int:
        """Return the position of the verdict with which a row's answer begins."""
        state = 0
        for token in _parted(row)[1]:
            if (state, token) in self.trie.leaves:
                return self.trie.leaves[state, token]
            state = self.trie.edges[state, token]
        raise AssertionError("an answer ends within its verdict")


def check_objective(weights: Mapping[str, float], scale: Scale) -> None:
    """Raise UserError for an unknown loss, and for one that needs numbers on a scale without."""
    for name in weights:
        if name not in LOSSES:
            raise UserError(f"objective {name}: choose of {', '.join(LOSSES)}")
        if name in NUMBERS and scale.task != "score":
            raise UserError(f"objective {name} needs numbers, and the scale is {scale.name}")


def raters_shares(rows: Sequence[JudgeExample], scale: Scale) -> list[list[float]]:
    """Return the shares of the raters' verdicts of each row, with Dirichlet smoothing.

    Args:
        rows: the training rows.
        scale: the scale that is trained.

    Returns:
        [rows][v], over the lines of verdicts: with a grid, those of its bins.

    Raises:
        UserError: for a row without raters.
    """
    labels = Counter(scale.line(row.label.verdict) for row in rows if row.label)
    prior = [labels[line] / labels.total() for line in scale.lines()]
    shares = []
    for row in rows:
        if not row.annotators:
            raise UserError(f"{row.where}: objective soft needs the verdicts of its annotators")
        votes = Counter(scale.line(annotator.verdict) for annotator in row.annotators)
        total = votes.total() + SMOOTHING
        pairs = zip(scale.lines(), prior, strict=True)
        shares.append([(votes[line] + SMOOTHING * share) / total for line, share in pairs])
    return shares


def in_both_orders(
    rows: Sequence[JudgeExample], shares: Sequence[Sequence[float]], scale: Scale
) -> list[Sequence[float]]:
    """Repeat the shares of each pair for its other order, as `orders.both_orders` does the rows."""
    other = [[flipped(v) for v in scale.values].index(value) for value in scale.values]
    every: list[Sequence[float]] = []
    for row, own in zip(rows, shares, strict=True):
        every.append(own)
        if swapped(row) is not None:
            every.append([own[place] for place in other])
    return every


def _parted(row: Example) -> tuple[list[int], list[int]]:
    return row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]


def _rows_of(batch: Batch) -> list[Example]:
    """Return the rows of a pack or a plain micro-batch."""
    if "paths" in batch:
        return examples_of(batch)
    rows = []
    for ids, real, targets in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["targets"], strict=True
    ):
        start = int(batch["keep"][targets.ne(IGNORED)][0]) + 1
        rows.append(Example(input_ids=ids[real].tolist(), prompt_length=start))
    return rows
