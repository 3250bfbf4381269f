"""Muon for the matrices of the layers, AdamW for everything else, and the rate over a run."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from pt_app.training.loop import Model
from pt_app.training.run import share_of

MUON, ADAMW = "muon, adamw", "adamw"  # for checkpoints: the state of others does not fit
log = logging.getLogger(__name__)


def divided(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices of the layers, and the embeddings, output matrix, norms and biases.

    Together they are all parameters that are trained, each once: a tied output matrix is the
    embedding.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    apart = {id(table) for table in [*tables, *([head.weight] if head is not None else [])]}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in apart]
    others = [p for p in trained if p.ndim != 2 or id(p) in apart]
    return matrices, others


def muon_and_adamw(
    model: Model,
    matrix_lr: float,
    other_lr: float,
    weight_decay: float = 0.01,
    *,
    muon: bool = True,
    fused: bool = True,
) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the layers, and AdamW for the other parameters.

    Muon rounds to bfloat16 in each step: a run is bit-exact on one machine, and equal but for
    rounding on another. Its step costs some 20 x min(rows, columns) operations per weight, as
    much as 3 x min(rows, columns) tokens: small batches of large models are better off with AdamW.
    That also takes its place, which is logged, where a device cannot compute its step (Apple GPUs
    with some versions of torch).

    Args:
        model: the model, on its device.
        matrix_lr: the learning rate of Muon.
        other_lr: that of AdamW.
        weight_decay: of the matrices.
        muon: whether to use Muon.
        fused: whether AdamW is torch's fused one.
    """
    matrices, others = divided(model)
    adamw = partial(torch.optim.AdamW, lr=other_lr, betas=(0.9, 0.95), fused=fused)
    if muon and (why := _why_no_muon(matrices[0].device)):
        log.warning("Muon does not run on %s (%s): AdamW trains all", matrices[0].device, why)
        muon = False
    if not muon:
        decayed: dict[str, Any] = {"params": matrices, "weight_decay": weight_decay}
        return [adamw([decayed, {"params": others}], weight_decay=0.0)]
    # torch's Muon multiplies an update by sqrt(max(1, rows / columns)), taking rows for outputs, as
    # in nn.Linear. In Conv1D (GPT-2) they are inputs: this ratio makes up for it.
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    groups: list[dict[str, Any]] = [{"params": [p for p in matrices if id(p) not in transposed]}]
    for matrix in (p for p in matrices if id(p) in transposed):
        ratio = (matrix.shape[1] / matrix.shape[0]) ** 0.5
        decay = weight_decay / ratio  # the rate multiplies it
        groups.append({"params": [matrix], "lr": matrix_lr * ratio, "weight_decay": decay})
    first = torch.optim.Muon(groups, lr=matrix_lr, weight_decay=weight_decay)
    return [first, adamw(others, weight_decay=0.0)]


def _why_no_muon(device: torch.device) -> str:
    """Return why a device cannot take a step of Muon; "" where it can."""
    if device.type == "cpu":
        return ""
    weight = torch.ones(2, 2, device=device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    try:
        torch.optim.Muon([weight]).step()  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:160]
    return ""


def trapezoid(warmup: float, decay_from: float, step: int, steps: int) -> float:
    """Return the fraction of the learning rate: a linear rise, then flat, then linear to 0.

    Args:
        warmup: steps of the rise, or below 1 the fraction of all steps.
        decay_from: the fraction of all steps after which it falls.
        step: the number of past updates.
        steps: all steps.
    """
    rise = min(share_of(warmup, steps), steps)
    warm = min(1.0, (step + 1) / rise) if rise else 1.0
    return min(warm, (steps - step) / (steps * (1 - decay_from)))
