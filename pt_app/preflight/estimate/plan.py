"""Plan the packs of a whole run, in training and evaluation, without computing any of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pt_app.core import console
from pt_app.core.dataset import JudgeExample, draw
from pt_app.core.orders import swapped
from pt_app.core.settings import Settings
from pt_app.evidence.calibration import rows_to_fit_on
from pt_app.models.packing import Batch, Example, StepCollator, Tree, chunk_by_tokens, common_prefix
from pt_app.models.platforms import Platform
from pt_app.scoring.scorer import MAX_LOGITS, largest_trie
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.training.ordering import RowSteps
from pt_app.training.preparation import Prepared
from pt_app.training.run import examples_a_step, fixed_shapes, order_of, share_of

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

    @staticmethod
    def of(batch: Batch) -> "Pack":
        """Return the size of a pack of the training; a token sees as many keys as it is deep."""
        depths = batch["position_ids"]
        tokens, longest = depths.numel(), batch["paths"].shape[1]
        return Pack(tokens, len(batch["keep"]), longest, seen=int(depths.sum()) + tokens)


@dataclass(frozen=True)
class Step:
    """One optimizer step of a rank: the indices of its rows, and their packs."""

    rows: list[int]
    packs: list[Pack]

    @property
    def tokens(self) -> int:
        """Tokens that are computed in the step; a common prefix counts once per pack."""
        return sum(pack.tokens for pack in self.packs)


@dataclass(frozen=True)
class Plan:
    """All forward passes of a run.

    Attributes:
        steps: the optimizer steps of one rank.
        validation: the passes that read the verdicts of one validation.
        validation_loss: the passes that compute its loss.
        validations: number of validations.
        evaluation: the passes of the evaluation; empty if it is skipped.
    """

    steps: list[Step]
    validation: list[Pack]
    validation_loss: list[Pack]
    validations: int
    evaluation: list[Pack]

    @cached_property
    def packs(self) -> list[Pack]:
        """The packs of all steps."""
        return [pack for step in self.steps for pack in step.packs]

    @property
    def tokens(self) -> int:
        """Tokens that one rank computes in the training."""
        return sum(step.tokens for step in self.steps)


def plan_run(
    settings: Settings, platform: Platform, prepared: Prepared, vocabulary: int, trees: bool
) -> Plan:
    """Plan a run as training, validation and evaluation will compute it.

    Of several ranks each step is planned as the one with most tokens takes it, so that all of them
    come to the same decision.

    Args:
        settings: the settings of the run.
        platform: where it trains.
        prepared: its data.
        vocabulary: number of logits per position.
        trees: rows are packed as prefix trees, instead of one row per pack.
    """
    collate = StepCollator(0, settings.pack_tokens, fixed_shapes(settings, platform, prepared))

    def packs_of(rows: Sequence[Example]) -> list[Pack]:
        together = [rows] if trees else [[row] for row in rows]
        return [Pack.of(batch) for chosen in together for batch in collate.packs(chosen)]

    train, val = list(prepared.train), list(prepared.val or ())
    size, order = examples_a_step(settings), order_of(settings, prepared)
    steps = RowSteps(prepared.train, order, size, collate, members=prepared.members)
    planned: list[Step] = []
    for epoch in range(math.ceil(settings.epochs)):
        for shares in zip(*(steps.rows_of(epoch, k) for k in range(console.ranks())), strict=True):
            of_ranks = [Step(rows, packs_of([train[row] for row in rows])) for rows in shares]
            planned.append(max(of_ranks, key=lambda step: step.tokens))
    planned = planned[: math.ceil(len(steps) * settings.epochs)]
    every = share_of(settings.eval_steps, len(planned))
    trie = largest_trie(prepared.encoder)
    prompts = [row["input_ids"][: row["prompt_length"]] for row in val]
    return Plan(
        steps=planned,
        validation=reading_passes(prompts, trie, settings.pack_tokens, vocabulary),
        validation_loss=packs_of(val),
        validations=math.ceil(len(planned) / every) if val else 0,
        evaluation=[] if settings.skip_eval else _evaluation(settings, prepared, trie, vocabulary),
    )


def _evaluation(
    settings: Settings, prepared: Prepared, trie: VerdictTrie, vocabulary: int
) -> list[Pack]:
    """Return the passes of the probe, of scoring base and adapter, and of the calibration."""

    def scored(rows: Sequence[JudgeExample], trie: VerdictTrie = trie) -> list[Pack]:
        other_order = [other for row in rows if (other := swapped(row)) is not None]
        both = (rows, other_order)  # pairs are read in both orders
        return [p for order in both for p in scoring_passes(prepared, order, trie, vocabulary)]

    calibration = rows_to_fit_on(prepared.data.val)
    probed: list[JudgeExample] = []  # their hidden states may be cached already
    if settings.probe_rows:
        probed = [*draw(prepared.data.train, settings.probe_rows, seed=0), *prepared.test]
    states = scored(probed, VerdictTrie.build([[0]]))
    return states + 2 * scored(prepared.test) + scored(calibration)


def scoring_passes(
    prepared: Prepared, rows: Sequence[JudgeExample], trie: VerdictTrie, vocabulary: int
) -> list[Pack]:
    """Return the passes in which a JudgeScorer scores `rows`."""
    fitted, _ = prepared.encoder.fit([row.model_copy(update={"label": None}) for row in rows])
    prompts = [row.prompt for row in fitted if not row.unfit]
    return reading_passes(prompts, trie, SCORED_TOKENS, vocabulary)


def reading_passes(
    prompts: Sequence[Sequence[int]], trie: VerdictTrie, budget: int, vocabulary: int
) -> list[Pack]:
    """Return the passes in which `tree_reading.TreeReader` reads the verdicts of `prompts`."""
    max_rows = max(1, MAX_LOGITS // (trie.states * vocabulary))
    extra, depth = len(trie.tokens), trie.depth
    packs: list[Pack] = []
    before: Sequence[int] = ()
    for rows in chunk_by_tokens(prompts, budget, extra=extra, max_rows=max_rows, cached=True):
        chosen = [prompts[row] for row in rows]
        cached = min(common_prefix(before, chosen[0]), len(chosen[0]) - 1)
        depths = Tree.of(chosen).depths[cached:]
        tokens, logit_positions = len(depths) + extra * len(rows), trie.states * len(rows)
        longest = max(map(len, chosen)) + depth
        seen = sum(depths) + len(depths) + extra * sum(map(len, chosen))
        packs.append(Pack(tokens, logit_positions, longest, seen))
        before = chosen[-1]
    return packs
