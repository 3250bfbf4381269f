"""A gated MLP that keeps two of its three wide tensors for the backward pass.

down(silu(gate) * up): torch keeps gate, silu(gate) and up, which are most of what a training step
without activation checkpointing holds. silu(gate) is computed again instead: a sixth of the step's
memory for 0.2 % of its time (docs/PERFORMANCE.md), and the same numbers to the last bit.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")


class _SiluTimes(torch.autograd.Function):
    """silu(gate) * up, of which only gate and up are kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        gate, up = ctx.saved_tensors
        to_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return to_gate, F.silu(gate).mul_(gradient)


def _forward(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    product = _SiluTimes.apply(mlp.gate_proj(hidden), mlp.up_proj(hidden))  # type: ignore[no-untyped-call]
    out: torch.Tensor = mlp.down_proj(product)
    return out


def keep_less(model: Any) -> int:
    """Let each gated SiLU MLP of `model` keep less; gives how many there are.

    Others (another activation, other parts) are left as they are.
    """
    found = 0
    for module in model.modules():
        if all(hasattr(module, part) for part in PARTS) and _is_silu(module.act_fn):
            module.forward = partial(_forward, module)
            found += 1
    return found


def _is_silu(activation: Any) -> bool:
    return "silu" in type(activation).__name__.lower()
