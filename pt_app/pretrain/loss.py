"""The cross-entropy of next tokens in chunks of positions, and bits per byte on a whole split."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.models.packing import IGNORED, Batch
from pt_app.training.loop import Model, Objective

# Logits at a time: 32 MiB in float32, the largest tensor that a CPU keeps for reuse (gemm.py).
# GPUs take more at a time, so that a matmul outlasts its launch.
CPU_CHUNK, GPU_CHUNK = 2**23, 2**27


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy whose gradients are made with it, chunk by chunk (the way of Liger Kernel).

    Neither logits nor their gradients exist for more than a chunk, and no logit is computed twice,
    which recomputation in the backward pass would cost. `forward` returns the sum in nats.

    Args:
        hidden: [n, d], in the precision of the matmuls.
        matrix: [v, d], the output matrix; its gradient has its own precision.
        targets: [n], token ids.
        softcap: the bound c of c tanh(logits / c); None: the logits are not bounded.
        chunk: logits at a time.
        wanted: whether gradients are made.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, matrix, targets, softcap, chunk, wanted = inputs
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        narrow, rows = matrix.to(hidden.dtype), max(1, chunk // len(matrix))
        by_hidden = torch.empty_like(hidden) if wanted else None
        by_matrix = torch.zeros_like(matrix) if wanted else None
        for part in (slice(i, i + rows) for i in range(0, len(targets), rows)):
            logits = (hidden[part] @ narrow.T).to(exact)
            bent = torch.tanh(logits / softcap) if softcap else None
            found = F.log_softmax(logits if bent is None else bent * softcap, -1)
            chosen = targets[part, None]
            total -= found.gather(1, chosen).sum()
            if by_hidden is None or by_matrix is None:
                continue
            slope = found.exp_().scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=exact))
            slope = (slope if bent is None else slope.mul_(1 - bent**2)).to(hidden.dtype)
            torch.mm(slope, narrow, out=by_hidden[part])
            if hidden.dtype == matrix.dtype:
                by_matrix.addmm_(slope.T, hidden[part])
            else:
                by_matrix += slope.T @ hidden[part]
        ctx.gradients = by_hidden, by_matrix
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        by_hidden, by_matrix = ctx.gradients
        ctx.gradients = None
        return by_hidden.mul_(outer[0]), by_matrix.mul_(outer[0]), None, None, None, None


def output_matrix(model: Model) -> Tensor:
    """Return the matrix [v, d] that gives the logits; raises UserError if there is also a bias."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UserError(f"{model.config.model_type} has a bias of its logits: choose another model")
    matrix: Tensor = head.weight
    return matrix


def check_logits(model: Model) -> None:
    """Raise UserError if the logits are not the product that `NextTokens` takes them for.

    Granite and Cohere, for example, scale it.
    """
    ids = torch.arange(9)[None]
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[0]
        own = float(F.cross_entropy(logits, batch["labels"][0], reduction="sum"))
        found = float(NextTokens().loss(model, batch))
    if not math.isclose(found, own, rel_tol=1e-3):
        name = model.config.model_type
        raise UserError(f"{name} does more than one product for its logits: choose another model")


@dataclass
class NextTokens(Objective):
    """The cross-entropy of each token after those before it, for models that `check_logits` takes.

    A batch holds `input_ids` [b, t], `labels` [b, t] (`IGNORED` where nothing is learned) and
    perhaps `position_ids` [b, t]. Where positions start again, another text does, which sees
    nothing of the one before; transformers makes the mask.

    Attributes:
        compute_dtype: of the matmuls; weights stay in float32.
        chunk: logits at a time.
        rows: maximum rows of a micro-batch, since memory ran out; None: it has not.
    """

    compute_dtype: torch.dtype = torch.float32
    chunk: int = CPU_CHUNK
    rows: int | None = None

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss summed over a batch, in nats."""
        ids, labels = batch["input_ids"], batch["labels"]
        inputs = {"input_ids": ids, "position_ids": batch.get("position_ids")}
        narrow = self.compute_dtype != torch.float32
        with torch.autocast(ids.device.type, self.compute_dtype, enabled=narrow):
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        kept = labels != IGNORED
        if narrow:
            hidden = hidden.to(self.compute_dtype)
        softcap = getattr(model.config, "final_logit_softcapping", None)
        terms = hidden[kept], output_matrix(model), labels[kept], softcap, self.chunk
        arguments = *terms, torch.is_grad_enabled()
        with torch.autocast(ids.device.type, enabled=False):
            loss: Tensor = _ChunkedLoss.apply(*arguments)  # type: ignore[no-untyped-call]
        return loss

    def batches(self, model: Model, packs: Sequence[Batch]) -> list[Batch]:
        """Return the packs of a step as micro-batches of at most `rows` rows."""
        parts = []
        for packed in packs:
            rows = self.rows or len(packed["input_ids"])
            starts = range(0, len(packed["input_ids"]), rows)
            parts += [{n: t[i : i + rows] for n, t in packed.items()} for i in starts]
        return parts

    def idle(self) -> Batch:
        """Return a batch without a target, whose loss and gradients are 0."""
        return {"input_ids": torch.zeros(1, 2).long(), "labels": torch.full((1, 2), IGNORED)}

    def shrink(self, packs: Sequence[Batch]) -> str | None:
        """Halve the rows of a micro-batch; a single row is not divided."""
        rows = max(len(packed["input_ids"]) for packed in packs)
        rows = min(rows, self.rows or rows)
        if rows == 1:
            return None
        self.rows = rows // 2
        return f"{self.rows} rows"

    def state(self) -> dict[str, object]:
        """Return the rows that memory allowed."""
        return {"rows": self.rows}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the rows that memory allowed."""
        self.rows = state["rows"]


@dataclass(frozen=True)
class HeldOut:
    """Measures a model on a whole held-out split; each rank takes its share of the batches.

    Special tokens stand for no byte of a text: they count neither bytes nor nats.

    Attributes:
        batches: makes the batches of the split, in which each target occurs once.
        token_bytes: [v], the UTF-8 bytes of each token; 0 for a special token.
        objective: the loss.
    """

    batches: Callable[[], Iterable[Batch]]
    token_bytes: NDArray[np.int64]
    objective: NextTokens

    def __call__(self, model: Model) -> dict[str, float]:
        """Return `bpb` (bits per byte), `loss` (nats per token), `n_tokens` and `n_bytes`."""
        lengths, training = torch.from_numpy(self.token_bytes), model.training
        nats, n_tokens, n_bytes = 0.0, 0, 0
        model.eval()
        with torch.no_grad():
            for batch in islice(self.batches(), console.rank(), None, console.ranks()):
                labels = batch["labels"]
                size = lengths[labels.clamp(min=0)] * (labels != IGNORED)
                counted = {"labels": labels.where(size > 0, IGNORED)}
                on_device = {n: t.to(model.device) for n, t in (batch | counted).items()}
                nats += float(self.objective.loss(model, on_device))
                n_tokens, n_bytes = n_tokens + int((size > 0).sum()), n_bytes + int(size.sum())
        model.train(training)
        sums = gather_object([(nats, n_tokens, n_bytes)])
        nats, n_tokens, n_bytes = (sum(part) for part in zip(*sums, strict=True))
        bpb, loss = nats / math.log(2) / max(n_bytes, 1), nats / max(n_tokens, 1)
        return {"bpb": bpb, "loss": loss, "n_tokens": n_tokens, "n_bytes": n_bytes}
