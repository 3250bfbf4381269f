"""How good a judge is while it is trained: verdict quality and loss on the validation split."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from pt_app.core import console
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.evidence.summary import strict_agreement
from pt_app.models.out_of_memory import is_out_of_memory
from pt_app.models.packing import StepCollator
from pt_app.models.tree_attention import why_no_tree
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.layout import Layout
from pt_app.training.trainer import summed_loss

log = logging.getLogger(__name__)


def quality_metric(scale: Scale, rows: Sequence[JudgeExample]) -> str:
    """The number by which the best checkpoint is chosen; parse failures count as wrong in it.

    Labels that are all equal have no kappa: then it is the share of exact verdicts.
    """
    labels = {row.label.verdict for row in rows if row.label}
    if scale.task != "score":
        return "f1_macro_strict"
    return "kappa_quadratic_strict" if len(labels) > 1 else "exact_strict"


@dataclass(frozen=True)
class Validation:
    """Scores the validation rows with the model as it is; each rank takes its share.

    `rows` are the split's, `encoded` the same for the trainer (of pairs, both orders). Of a model
    that is `sharded` every rank scores all rows, in step with the others.
    """

    rows: Sequence[JudgeExample]
    encoded: Sequence[dict[str, Any]]
    encoder: PromptEncoder
    collate: StepCollator
    sharded: bool = False

    def __call__(self, model: Any, layout: Layout) -> dict[str, float]:
        """The quality metric, the share of parse failures, and the loss a supervised token.

        `layout` is the trainer's of now: where trees do not hold, rows are read one by one.

        Where memory runs out, smaller batches are tried; none of these numbers, and a warning,
        where the smallest do not fit either: a validation never ends a training.
        """
        part = self._my_part(model, layout)
        # Of a sharded model each rank has all; that of rank 0 counts, lest ranks decide apart.
        parts = gather_object([part])[: 1 if self.sharded else None]
        if any(part is None for part in parts):
            log.warning("this validation ran out of memory and is left out; training goes on")
            return {}
        pairs = [
            (label.verdict, verdict)
            for verdicts, _, _ in parts
            for label, verdict in verdicts
            if label is not None
        ]
        name = quality_metric(self.encoder.scale, self.rows)
        labels, answers = [label for label, _ in pairs], [verdict for _, verdict in pairs]
        agreement = strict_agreement(labels, answers, self.encoder.scale)
        return {
            name: agreement[name.removesuffix("_strict")],
            "parse_failures": answers.count(None) / len(answers),
            "loss": sum(total for _, total, _ in parts) / sum(count for _, _, count in parts),
        }

    def _my_part(self, model: Any, layout: Layout) -> Any:
        """Labels with verdicts, summed loss and tokens of this rank's rows; None: no memory."""
        rank, ranks = (0, 1) if self.sharded else (console.rank(), console.ranks())
        mine, encoded = list(self.rows[rank::ranks]), list(self.encoded)[rank::ranks]
        budget = self.collate.budget
        while True:
            try:
                verdicts = self._verdicts(model, layout, mine, budget)
                collate = replace(self.collate, budget=budget)
                return (verdicts, *self._loss(model, layout, encoded, collate))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.sharded:  # the others wait within a layer
                    raise
            clear_device_cache(garbage_collection=True)
            if budget <= max((len(row["input_ids"]) for row in encoded), default=0):
                return None
            budget //= 2
            log.warning("validation ran out of memory: batches of %d tokens are tried", budget)

    def _verdicts(
        self, model: Any, layout: Layout, rows: Sequence[JudgeExample], budget: int
    ) -> list[Any]:
        scorer = JudgeScorer(
            model,
            self.encoder,
            batch_tokens=budget,
            progress=False,
            shapes=layout.shapes,
            trees=layout.trees,
        )
        scored = zip(rows, scorer.score(rows), strict=True)
        return [(row.label, score.verdict) for row, score in scored]

    def _loss(
        self,
        model: Any,
        layout: Layout,
        encoded: Sequence[dict[str, Any]],
        collate: StepCollator,
    ) -> tuple[float, int]:
        """Summed cross-entropy and the number of supervised tokens."""
        if not encoded:
            return 0.0, 0
        step = collate(encoded)
        longest = max(len(row["input_ids"]) for row in encoded)
        trees = layout.trees and why_no_tree(model, longest) is None
        total, training = 0.0, model.training
        model.eval()
        with torch.no_grad():
            for packed in step["packs"]:
                on_device = {name: tensor.to(model.device) for name, tensor in packed.items()}
                for batch in [on_device] if trees else layout.plain(on_device):
                    total += float(summed_loss(model, batch))
        model.train(training)
        return total, int((step["labels"] >= 0).sum())
