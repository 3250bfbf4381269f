"""How good a judge is while it is trained: verdict quality and loss on the validation split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from pt_app.core import console
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import headline
from pt_app.evidence.summary import strict_agreement
from pt_app.models.memory import is_out_of_memory
from pt_app.models.packing import Example, StepCollator
from pt_app.scoring.scorer import JudgeScorer, Scored
from pt_app.training.loop import Model
from pt_app.training.loss import AnswerLoss

# The verdict of each labelled row, and what the model says.
Verdicts = list[tuple[Verdict, Scored]]
log = logging.getLogger(__name__)


def quality_metric(scale: Scale, rows: Sequence[JudgeExample]) -> str:
    """Return the metric that chooses the best checkpoint: the first number of every report.

    Kappa is undefined if all labels are equal; then it is the fraction of exact verdicts.
    """
    if len({row.label.verdict for row in rows if row.label}) > 1:
        return headline(scale)
    return "exact" if scale.task == "score" else "accuracy"


@dataclass(frozen=True)
class Validation:
    """Score the validation rows with the current weights; each rank takes its shard of the rows.

    Attributes:
        rows: the rows of the split.
        encoded: the same rows as token ids, pairs in both orders.
        encoder: encodes prompts and verdicts.
        collate: lays rows out as packs.
        objective: the loss in training, which knows whether prefix trees may be used.
        sharded: the model is sharded; every rank then scores all rows, in step with the others.
    """

    rows: Sequence[JudgeExample]
    encoded: Sequence[Example]
    encoder: PromptEncoder
    collate: StepCollator
    objective: AnswerLoss
    sharded: bool = False

    def __call__(self, model: Model) -> dict[str, float]:
        """Return the quality metric, the fraction of parse failures, and the loss per token.

        If memory runs out, smaller batches are tried; if the smallest do not fit either, the result
        is empty with a warning: a validation never ends a training.
        """
        # Every rank has scored all rows of a sharded model: rank 0 counts, so that all agree.
        shards = gather_object([self._my_shard(model)])[: 1 if self.sharded else None]
        if any(shard is None for shard in shards):
            log.warning("this validation ran out of memory and is skipped; training continues")
            return {}
        pairs = [pair for verdicts, _, _ in shards for pair in verdicts]
        labels, verdicts = [label for label, _ in pairs], [own.verdict for _, own in pairs]
        name = quality_metric(self.encoder.scale, self.rows)
        return {
            name: strict_agreement(labels, verdicts, self.encoder.scale)[name],
            "parse_failures": sum(own.greedy is None for _, own in pairs) / len(pairs),
            "loss": sum(total for _, total, _ in shards) / sum(count for _, _, count in shards),
        }

    def _my_shard(self, model: Model) -> tuple[Verdicts, float, int] | None:
        """Return verdicts, summed loss and tokens of this rank's rows; None: no memory."""
        rank, ranks = (0, 1) if self.sharded else (console.rank(), console.ranks())
        mine, encoded = list(self.rows[rank::ranks]), list(self.encoded)[rank::ranks]
        budget, objective = self.collate.budget, self.objective
        while True:
            shapes, trees = objective.shapes, objective.trees
            scorer = JudgeScorer(
                model, self.encoder, batch_tokens=budget, progress=False, shapes=shapes, trees=trees
            )
            try:
                scored = zip(mine, scorer.score(mine), strict=True)
                verdicts = [(row.label.verdict, own) for row, own in scored if row.label]
                return (verdicts, *self._loss(model, encoded, replace(self.collate, budget=budget)))
            except (RuntimeError, MemoryError) as error:
                # The other ranks of a sharded model wait within a layer.
                if not is_out_of_memory(error) or self.sharded:
                    raise
            clear_device_cache(garbage_collection=True)
            if budget <= max((len(row["input_ids"]) for row in encoded), default=0):
                return None
            budget //= 2
            log.warning("validation ran out of memory: batches of %d tokens are tried", budget)

    def _loss(
        self, model: Model, encoded: Sequence[Example], collate: StepCollator
    ) -> tuple[float, int]:
        """Return the summed cross-entropy and the number of supervised tokens."""
        if not encoded:
            return 0.0, 0
        step, total, training = collate(encoded), 0.0, model.training
        model.eval()
        with torch.no_grad():
            # As they are: `batches` would lay them out by the budget that a training step was left.
            for packed in step["packs"]:
                for batch in [packed] if self.objective.trees else self.objective.plain(packed):
                    on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
                    total += float(self.objective.loss(model, on_device))
        model.train(training)
        return total, int(step["count"])
