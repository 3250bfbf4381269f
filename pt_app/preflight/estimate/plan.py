"""Plan the packs of a whole run, in training and evaluation, without computing any of them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from accelerate.data_loader import SeedableRandomSampler

from pt_app.core import console
from pt_app.core.dataset import JudgeExample, draw
from pt_app.core.orders import swapped
from pt_app.core.settings import Settings
from pt_app.models.packing import Shapes, common_prefix, under_budget
from pt_app.models.platforms import Platform
from pt_app.scoring.scorer import MAX_LOGITS, verdict_trie
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.training.ordering import GroupedOrder, share
from pt_app.training.preparation import MAX_CALIBRATION_ROWS, Prepared
from pt_app.training.run import examples_a_step

SCORED_TOKENS = 2048  # batch_tokens of the JudgeScorer in the evaluation


@dataclass(frozen=True)
class Pack:
    """The size of one forward pass.

    Attributes:
        tokens: computed tokens.
        logit_positions: tokens that get logits.
        longest: tokens of the longest row.
        seen: sum over all tokens of the keys that each sees, the area of the attention.
    """

    tokens: int
    logit_positions: int
    longest: int
    seen: int


@dataclass(frozen=True)
class Step:
    """One optimizer step of a rank: its rows and their packs."""

    rows: list[int]
    packs: list[Pack]


@dataclass(frozen=True)
class Plan:
    """All forward passes of a run.

    Attributes:
        steps: the optimizer steps of one rank.
        validation: the passes that read the verdicts of one validation.
        validation_loss: the passes that compute its loss.
        validations: number of validations.
        test: the passes over the test rows, for one judge.
        calibration: the passes over the validation rows on which confidence is calibrated.
    """

    steps: list[Step]
    validation: list[Pack]
    validation_loss: list[Pack]
    validations: int
    test: list[Pack]
    calibration: list[Pack]

    @cached_property
    def packs(self) -> list[Pack]:
        """The packs of all steps."""
        return [pack for step in self.steps for pack in step.packs]

    @property
    def tokens(self) -> int:
        """Tokens that one rank computes in the training; a common prefix counts once per pack."""
        return sum(pack.tokens for pack in self.packs)


def plan_run(
    settings: Settings, platform: Platform, prepared: Prepared, vocabulary: int, trees: bool
) -> Plan:
    """Plan a run as training, validation and evaluation will compute it.

    Args:
        settings: the settings of the run.
        platform: where it trains.
        prepared: its data.
        vocabulary: words of the head.
        trees: rows are packed as prefix trees, instead of one row per pack.
    """
    trie = verdict_trie(prepared.encoder)
    shapes = _shapes(settings, platform, trie)
    steps = steps_of(settings, prepared, Rows(prepared.train, shapes, trees))
    plan = Plan(steps, validation=[], validation_loss=[], validations=0, test=[], calibration=[])
    if prepared.val is not None:
        rows = Rows(prepared.val, shapes, trees)
        prompts = [ids[:start] for ids, start in zip(rows.ids, rows.starts, strict=True)]
        plan = replace(
            plan,
            validation=readings(prompts, trie, settings.pack_tokens, vocabulary),
            validation_loss=rows.packs(settings.pack_tokens),
            validations=math.ceil(len(steps) / settings.eval_steps),
        )
    if settings.skip_eval:
        return plan
    rows_of_val = draw(prepared.data.val or (), MAX_CALIBRATION_ROWS, seed=0)
    return replace(
        plan,
        test=_scored(prepared, prepared.test, trie, vocabulary),
        calibration=_scored(prepared, rows_of_val, trie, vocabulary),
    )


def replan(
    plan: Plan,
    settings: Settings,
    platform: Platform,
    prepared: Prepared,
    vocabulary: int,
    trees: bool,
) -> Plan:
    """Plan one epoch and its validations with another `pack_tokens`; the evaluation stays."""
    once = replace(settings, epochs=1, skip_eval=True)
    other = plan_run(once, platform, prepared, vocabulary, trees)
    return replace(other, test=plan.test, calibration=plan.calibration)


def _shapes(settings: Settings, platform: Platform, trie: VerdictTrie) -> Shapes:
    """Choose the sizes of packs as `training.run.build_trainer` does."""
    if not platform.fixed_lengths:
        return Shapes()
    longest = max(settings.pack_tokens, settings.max_seq_length + len(trie.tokens))
    return Shapes.up_to(longest)


def _scored(
    prepared: Prepared, examples: Sequence[JudgeExample], trie: VerdictTrie, vocabulary: int
) -> list[Pack]:
    """Return the passes in which the evaluation scores rows, pairs in both orders."""
    packs: list[Pack] = []
    for rows in (examples, [two for row in examples if (two := swapped(row)) is not None]):
        bare = [row.model_copy(update={"label": None}) for row in rows]
        fitted, _ = prepared.encoder.fit(bare)
        prompts = [row.prompt for row in fitted if not row.unfit]
        packs += readings(prompts, trie, SCORED_TOKENS, vocabulary)
    return packs


def extremes(packs: Sequence[Pack]) -> list[Pack]:
    """Return the packs of which one needs the most memory: most tokens, most logits."""
    measures = (lambda pack: pack.tokens, lambda pack: pack.logit_positions)
    return list(dict.fromkeys(max(packs, key=measure) for measure in measures)) if packs else []


class Rows:
    """Encoded rows that are divided into packs; without `trees`, one row per pack."""

    def __init__(self, encoded: Iterable[dict[str, Any]], shapes: Shapes, trees: bool):
        rows = list(encoded)
        self.ids: list[list[int]] = [row["input_ids"] for row in rows]
        self.starts: list[int] = [row["prompt_length"] for row in rows]
        self.shapes, self.trees = shapes, trees

    def packs(self, budget: int, chosen: Sequence[int] | None = None) -> list[Pack]:
        """Return the packs of the `chosen` rows (all), as `StepCollator` makes them of one step."""
        if chosen is None:
            chosen = range(len(self.ids))
        parts: Iterator[list[int]] | list[list[int]] = [[place] for place in range(len(chosen))]
        if self.trees:
            parts = under_budget([self.ids[row] for row in chosen], budget)
        return [self._pack([chosen[place] for place in part]) for part in parts]

    def _pack(self, rows: Sequence[int]) -> Pack:
        supervised = sum(len(self.ids[row]) - self.starts[row] for row in rows)
        pack = tree_size([self.ids[row] for row in rows])
        tokens = self.shapes.tokens(pack.tokens)
        positions = self.shapes.kept(supervised, tokens)
        return replace(pack, tokens=tokens, logit_positions=positions)


def tree_size(in_order: Sequence[Sequence[int]]) -> Pack:
    """Return the size of the prefix tree of sorted sequences, without listing its tokens."""
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
    """Return the passes in which `tree_reading.read_parts` reads the verdicts of `prompts`."""
    max_rows = max(1, MAX_LOGITS // (trie.states * vocabulary))
    extra = len(trie.tokens)
    packs: list[Pack] = []
    before: Sequence[int] = ()
    for rows in under_budget(prompts, budget, extra=extra, most=max_rows, cached=True):
        chosen = [prompts[row] for row in rows]
        size = tree_size(chosen)
        cached = min(common_prefix(before, chosen[0]), len(chosen[0]) - 1)
        packs.append(
            Pack(
                tokens=size.tokens - cached + extra * len(rows),
                logit_positions=trie.states * len(rows),
                longest=size.longest + max((depth + 1 for depth in trie.depths), default=0),
                seen=size.seen - cached * (cached + 1) // 2 + extra * sum(map(len, chosen)),
            )
        )
        before = chosen[-1]
    return packs


def steps_of(settings: Settings, prepared: Prepared, rows: Rows) -> list[Step]:
    """Return each optimizer step; of several ranks, that of the rank with the most tokens."""
    ranks, size, count = console.ranks(), examples_a_step(settings), len(prepared.train)
    order: Any = SeedableRandomSampler(prepared.train, data_seed=settings.seed)
    if settings.group_variants:
        order = GroupedOrder(prepared.train["group"], size, settings.seed)
    steps: list[Step] = []
    for epoch in range(math.ceil(settings.epochs)):
        order.set_epoch(epoch)
        shuffled = list(order)
        for start in range(0, count, size):
            shares = [share(shuffled[start : start + size], rank, ranks) for rank in range(ranks)]
            of_ranks = [Step(part, rows.packs(settings.pack_tokens, part)) for part in shares]
            steps.append(max(of_ranks, key=lambda step: sum(pack.tokens for pack in step.packs)))
    return steps[: math.ceil(math.ceil(count / size) * settings.epochs)]
