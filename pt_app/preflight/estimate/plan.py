"""The packs of a whole training and of its readings, laid out as the run will, without tensors."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from pt_app.core import console
from pt_app.core.dataset import JudgeExample, draw
from pt_app.core.orders import swapped
from pt_app.core.settings import Settings
from pt_app.models.packing import Shapes, common_prefix, under_budget
from pt_app.models.platforms import Platform
from pt_app.scoring.scorer import MOST_LOGITS, verdict_trie
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.training.ordering import GroupedOrder, share
from pt_app.training.preparation import MAX_CALIBRATION_ROWS, Prepared

SCORED_TOKENS = 2048  # JudgeScorer's batch_tokens in the evaluation


@dataclass(frozen=True)
class Pack:
    """The size of one forward pass.

    `tokens` are computed, `kept` of them get logits, `longest` is the longest row, and `seen` the
    keys that all tokens see together: the area of the attention.
    """

    tokens: int
    kept: int
    longest: int
    seen: int


@dataclass(frozen=True)
class Step:
    """One optimizer step of a rank: its rows, and the packs they are laid into."""

    rows: list[int]
    packs: list[Pack]


@dataclass(frozen=True)
class Plan:
    """All forward passes of a run: those of each optimizer step of one rank, of one validation
    (verdicts read, and the loss), and of the evaluation of one judge."""

    steps: list[Step]
    examples_a_step: int
    validation: list[Pack]
    validation_loss: list[Pack]
    validations: int
    test: list[Pack]
    calibration: list[Pack]

    @cached_property
    def packs(self) -> list[Pack]:
        """Of all steps."""
        return [pack for step in self.steps for pack in step.packs]

    @property
    def tokens(self) -> int:
        """Computed in the whole training by one rank, common beginnings once a pack."""
        return sum(pack.tokens for pack in self.packs)


def plan_run(
    settings: Settings, platform: Platform, prepared: Prepared, vocabulary: int, trees: bool
) -> Plan:
    """Lay out a whole run, as `training`, `validation` and `evaluation` will."""
    trie = verdict_trie(prepared.encoder)
    shapes = _shapes(settings, platform, trie)
    steps = steps_of(settings, prepared, Rows(prepared.train, shapes, trees))
    validation: list[Pack] = []
    loss: list[Pack] = []
    validations = 0
    if prepared.val is not None:
        rows = Rows(prepared.val, shapes, trees)
        loss = rows.packs(range(len(rows.ids)), settings.pack_tokens)
        prompts = [ids[:start] for ids, start in zip(rows.ids, rows.starts, strict=True)]
        validation = readings(prompts, trie, settings.pack_tokens, vocabulary)
        validations = math.ceil(len(steps) / settings.eval_steps)
    test: list[Pack] = []
    calibration: list[Pack] = []
    if not settings.skip_eval:
        test = _scored(prepared, prepared.test, trie, vocabulary)
        rows_of_val = draw(prepared.data.val or (), MAX_CALIBRATION_ROWS, seed=0)
        calibration = _scored(prepared, rows_of_val, trie, vocabulary)
    examples = settings.batch_size * settings.gradient_accumulation * console.ranks()
    return Plan(steps, examples, validation, loss, validations, test, calibration)


def replan(
    plan: Plan, settings: Settings, platform: Platform, prepared: Prepared, trees: bool
) -> Plan:
    """The same run with another `pack_tokens`; its validation is read in fewer tokens or more."""
    trie = verdict_trie(prepared.encoder)
    rows = Rows(prepared.train, _shapes(settings, platform, trie), trees)
    steps = steps_of(replace(settings, epochs=1), prepared, rows)
    loss, reading = plan.validation_loss, plan.validation
    if prepared.val is not None:
        of_val = Rows(prepared.val, rows.shapes, trees)
        loss = of_val.packs(range(len(of_val.ids)), settings.pack_tokens)
    return replace(plan, steps=steps, validation=reading, validation_loss=loss)


def _shapes(settings: Settings, platform: Platform, trie: VerdictTrie) -> Shapes:
    """The sizes of packs, as `training.build_trainer` chooses them."""
    if not platform.fixed_lengths:
        return Shapes()
    longest = max(settings.pack_tokens, settings.max_seq_length + len(trie.tokens))
    return Shapes.up_to(longest)


def _scored(
    prepared: Prepared, examples: Sequence[JudgeExample], trie: VerdictTrie, vocabulary: int
) -> list[Pack]:
    """The passes in which the evaluation scores rows; pairs in both orders."""
    found: list[Pack] = []
    for rows in (examples, [two for row in examples if (two := swapped(row)) is not None]):
        bare = [row.model_copy(update={"label": None}) for row in rows]
        fitted, _ = prepared.encoder.fit(bare, on_unfit="status")
        prompts = [prepared.encoder.prompt_ids(row) for row in fitted if row is not None]
        found += readings(prompts, trie, SCORED_TOKENS, vocabulary)
    return found


def extremes(packs: Sequence[Pack]) -> list[Pack]:
    """The packs of which one needs the most memory: most tokens, most logits."""
    measures = (lambda pack: pack.tokens, lambda pack: pack.kept)
    return list(dict.fromkeys(max(packs, key=measure) for measure in measures)) if packs else []


class Rows:
    """Encoded rows, laid into packs of any size; `trees` off: one row a pack."""

    def __init__(self, encoded: Iterable[dict[str, Any]], shapes: Shapes, trees: bool):
        rows = list(encoded)
        self.ids: list[list[int]] = [row["input_ids"] for row in rows]
        self.starts: list[int] = [row["prompt_length"] for row in rows]
        self.shapes, self.trees = shapes, trees

    def packs(self, chosen: Sequence[int], budget: int) -> list[Pack]:
        """The packs of these rows, as `StepCollator` makes them of one step."""
        ids = [self.ids[row] for row in chosen]
        parts: Iterator[list[int]] | list[list[int]] = under_budget(ids, budget)
        if not self.trees:
            parts = [[place] for place in range(len(ids))]
        return [self._pack([chosen[place] for place in part]) for part in parts]

    def _pack(self, rows: Sequence[int]) -> Pack:
        kept = sum(len(self.ids[row]) - self.starts[row] for row in rows)
        pack = tree_size([self.ids[row] for row in rows])
        tokens = self.shapes.tokens(pack.tokens)
        return replace(pack, tokens=tokens, kept=self.shapes.kept(kept, tokens))


def tree_size(in_order: Sequence[Sequence[int]]) -> Pack:
    """The size of the prefix tree of sequences in sorted order; nothing is kept."""
    tokens = seen = 0
    before: Sequence[int] = ()
    for ids in in_order:
        shared = common_prefix(before, ids)
        tokens += len(ids) - shared
        seen += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
        before = ids
    return Pack(tokens, 0, max(map(len, in_order)), seen)


def readings(
    prompts: Sequence[Sequence[int]], trie: VerdictTrie, budget: int, vocabulary: int
) -> list[Pack]:
    """The passes in which the verdicts of `prompts` are read, as `tree_reading.read_parts` does."""
    most = max(1, MOST_LOGITS // (trie.states * vocabulary))
    extra = len(trie.tokens)
    found: list[Pack] = []
    before: Sequence[int] = ()
    for rows in under_budget(prompts, budget, extra=extra, most=most, cached=True):
        chosen = [prompts[row] for row in rows]
        size = tree_size(chosen)
        known = min(common_prefix(before, chosen[0]), len(chosen[0]) - 1)
        behind = extra * sum(map(len, chosen))
        found.append(
            Pack(
                tokens=size.tokens - known + extra * len(rows),
                kept=trie.states * len(rows),
                longest=size.longest + max((d + 1 for d in trie.depths), default=0),
                seen=size.seen - known * (known + 1) // 2 + behind,
            )
        )
        before = chosen[-1]
    return found


def order(settings: Settings, prepared: Prepared, size: int, epoch: int) -> list[int]:
    """The rows of an epoch in the order of the trainer's loader: accelerate's seeded sampler."""
    if settings.group_variants:
        grouped = GroupedOrder(prepared.train["group"], size, settings.seed)
        grouped.set_epoch(epoch)
        return list(grouped)
    generator = torch.Generator().manual_seed(settings.seed + epoch)
    shuffled: list[int] = torch.randperm(len(prepared.train), generator=generator).tolist()
    return shuffled


def steps_of(settings: Settings, prepared: Prepared, rows: Rows) -> list[Step]:
    """Each optimizer step; with several ranks, of the rank that computes most tokens."""
    ranks = console.ranks()
    size = settings.batch_size * settings.gradient_accumulation * ranks
    count = len(prepared.train)
    total = math.ceil(math.ceil(count / size) * settings.epochs)
    steps: list[Step] = []
    for epoch in range(math.ceil(settings.epochs)):
        shuffled = order(settings, prepared, size, epoch)
        for start in range(0, count, size):
            if len(steps) == total:
                break
            whole = shuffled[start : start + size]
            parts = [share(whole, rank, ranks) for rank in range(ranks)]
            of_ranks = [Step(part, rows.packs(part, settings.pack_tokens)) for part in parts]
            steps.append(max(of_ranks, key=lambda step: sum(p.tokens for p in step.packs)))
    return steps
