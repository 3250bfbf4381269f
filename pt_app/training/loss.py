"""The loss of a judge's answers, computed on packs that share prefixes, or row by row."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from pt_app.models.packing import IGNORED, Batch, Shapes, StepCollator, examples_of, pack, unpacked
from pt_app.models.tree_attention import last_mlp_only_at, tree_inputs
from pt_app.training.loop import Model, Objective

# Returns the loss of a model summed over a pack or a plain micro-batch.
SummedLoss = Callable[[Model, Batch], torch.Tensor]
log = logging.getLogger(__name__)


def supervised_logits(model: Model, inputs: Batch) -> torch.Tensor:
    """Return the logits of a pack or a plain micro-batch at its positions `keep` only.

    Elsewhere they would cost up to a fifth of the time of a small model and most of its memory.

    Args:
        model: the model with its adapter.
        inputs: a pack (`input_ids` [1, t], `position_ids`, `last`) or a plain micro-batch
            (`input_ids` [b, t], `attention_mask`), with `keep` [k].

    Returns:
        [1, k, vocabulary] or [b, k, vocabulary], in float32 or more.
    """
    if "last" in inputs:
        layout = tree_inputs(model, inputs["input_ids"], inputs["position_ids"], inputs["last"])
    else:
        layout = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with last_mlp_only_at(model, torch.unique(inputs["keep"])):
        logits: torch.Tensor = model(
            **layout, logits_to_keep=inputs["keep"], use_cache=False
        ).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def summed_loss(model: Model, inputs: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the supervised tokens of a pack or a plain micro-batch.

    With `weights` each token counts as often as its weight says.

    The stock loss refuses labels together with an index tensor in `logits_to_keep`, hence this one.
    """
    logits, targets = supervised_logits(model, inputs), inputs["targets"].flatten()
    flat, weights = logits.flatten(0, 1), inputs.get("weights")
    if weights is None:
        return F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    each = F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none")
    return each @ weights.flatten().to(each.dtype)


@dataclass
class AnswerLoss(Objective):
    """The loss of the supervised tokens, and how their packs are computed.

    Packs are only a layout, which no gradient depends on: prefix trees, or micro-batches of rows
    where the attention of a model cannot read trees. Memory that runs out makes them smaller.

    Attributes:
        pad_id: the padding token.
        rows: maximum rows of a plain micro-batch.
        shapes: the sizes to which a plain micro-batch is padded.
        trees: whether packs are computed as prefix trees.
        tolerance: maximum relative difference of the two losses in the check of the first step.
        pack_tokens: maximum tokens per pack, as the collator makes them.
        budget: the same since memory ran out; None: it has not.
        weights: the format in which the base is held.
        unchecked: whether the first step compares its packs with their plain rows.
        summed: the loss itself; benchmarks/objectives has others than the cross-entropy.
    """

    pad_id: int
    rows: int = 1
    shapes: Shapes = field(default_factory=Shapes)
    trees: bool = True
    tolerance: float = 1e-4
    pack_tokens: int = 2048
    budget: int | None = None
    weights: str = "float32"
    unchecked: bool = True
    summed: SummedLoss = summed_loss

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return the loss summed over a batch."""
        return self.summed(model, batch)

    def batches(self, model: Model, packs: Sequence[Batch]) -> list[Batch]:
        """Return the batches in which packs are computed; the first packs are checked."""
        packs = self.fitting(packs)
        if self.trees and self.unchecked and packs:
            self._check_trees(model, packs)
        return packs if self.trees else [b for packed in packs for b in self.plain(packed)]

    def plain(self, packed: Batch) -> list[Batch]:
        """Return the rows of a pack as padded micro-batches."""
        return unpacked(packed, self.pad_id, self.rows, self.shapes)

    def idle(self) -> Batch:
        """Return a batch without a supervised token, whose loss and gradients are 0."""
        packed = pack([{"input_ids": [self.pad_id] * 2, "prompt_length": 1}], self.pad_id)
        batch = packed if self.trees else self.plain(packed)[0]
        return batch | {"targets": torch.full_like(batch["targets"], IGNORED)}

    def fitting(self, packs: Sequence[Batch]) -> list[Batch]:
        """Return the same examples in packs of at most `budget` tokens."""
        if self.budget is None or not self.trees:
            return list(packs)
        collate = StepCollator(self.pad_id, self.budget, self.shapes)
        return collate.packs([example for packed in packs for example in examples_of(packed)])

    def shrink(self, packs: Sequence[Batch]) -> str | None:
        """Halve the rows of a micro-batch, or the budget from the largest pack that divides."""
        if not self.trees:
            if self.rows == 1:
                return None
            self.rows //= 2
            return f"{self.rows} rows"
        many = [p["input_ids"].numel() for p in self.fitting(packs) if len(p["starts"]) > 1]
        if not many:
            return None
        self.budget = min(self.budget or max(many), max(many)) // 2
        return f"{self.budget} tokens"

    def state(self) -> dict[str, object]:
        """Return the layout, which memory may have decided."""
        names = ("weights", "trees", "rows")
        return {name: getattr(self, name) for name in names} | {"pack_tokens": self.budget}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the layout, unless weights of another format leave other room."""
        if state["weights"] != self.weights:
            message = "the base was held in %s and is in %s from here on"
            log.warning(message, state["weights"], self.weights)
        else:
            self.trees &= state["trees"]
            self.rows = min(self.rows, state["rows"])
            self.budget = state["pack_tokens"] and min(state["pack_tokens"], self.pack_tokens)

    def _check_trees(self, model: Model, packs: Sequence[Batch]) -> None:
        """Compare the loss of the smallest pack of the first step with that of its plain rows."""
        smallest = min(packs, key=lambda packed: packed["input_ids"].numel())
        smallest = {name: tensor.to(model.device) for name, tensor in smallest.items()}
        model.eval()
        with torch.no_grad():
            tree = float(self.loss(model, smallest))
            plain = sum(float(self.loss(model, batch)) for batch in self.plain(smallest))
        self.unchecked = False
        apart = abs(tree - plain) / max(abs(plain), 1.0)
        self.trees = apart <= self.tolerance
        if self.trees:
            message = "packs: checked against plain rows, relative difference of the loss %.1e"
            log.info(message, apart)
        else:
            message = (
                "packs: the loss of a pack is %.6g and of its rows one by one %.6g, more than %.0e "
                "apart: this model is trained on plain rows"
            )
            log.warning(message, tree, plain, self.tolerance)
