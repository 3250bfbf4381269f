"""FlexAttention against SDPA with a mask, on the prefix trees of training packs.

The sizes are those of one layer of the large base: forward and backward, median of several.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.gpu.bases import workload
from benchmarks.gpu.part import Part
from pt_app.models.packing import Example, pack
from pt_app.models.tree_attention import tree_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
REPEATS = 20 if DEVICE == "cuda" else 2
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def tree_of(rows: list[Example], tokens: int) -> torch.Tensor:
    """Return `last` [tokens] of the tree of as many rows as have that many tokens, cut there."""
    count = 1
    while len(last := pack(rows[:count], 0)["last"]) < tokens and count < len(rows):
        count += 1
    return last[:tokens].clamp(max=min(tokens, len(last)) - 1).to(DEVICE)


def timed(attend: Attend, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Return the median milliseconds of a pass, forward and (on a GPU) backward, and the result.

    The first pass, in which a kernel may be compiled, is given apart, in seconds. FlexAttention has
    no backward pass on CPUs.
    """
    seconds = []
    for _ in range(REPEATS + 1):
        began = _now()
        out = attend(*inputs)
        if DEVICE == "cuda":
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
        seconds.append(_now() - began)
    median = statistics.median(seconds[1:])
    return {"first_seconds": seconds[0], "milliseconds": 1000 * median, "out": out.detach()}


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flex(last: torch.Tensor) -> tuple[Attend, float]:
    """Return FlexAttention over the tree, and the milliseconds that its block mask takes."""

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query <= last[key])

    def make() -> Any:
        return create_block_mask(seen, None, None, len(last), len(last), device=DEVICE)

    make()
    began = _now()
    blocks = make()
    spent = 1000 * (_now() - began)
    compiled: Any = torch.compile(flex_attention, dynamic=False) if DEVICE == "cuda" else None
    function: Any = compiled or flex_attention
    return lambda q, k, v: function(q, k, v, block_mask=blocks, enable_gqa=True), spent


def sdpa(last: torch.Tensor | None) -> Attend:
    """Return SDPA as transformers calls it: with the tree's mask, or causal without one."""
    mask = None if last is None else tree_mask(last)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, keys, values, mask, is_causal=mask is None)

    return attend


def compare(part: Part, tokens: int) -> dict[str, Any]:
    """Time all kinds on one tree."""
    shape = part.sizes.big
    last = tree_of(workload(part.sizes).encoded, tokens)
    head = shape.hidden // shape.heads
    torch.manual_seed(0)
    inputs = tuple(
        torch.randn(
            1, h, len(last), head, device=DEVICE, dtype=DTYPE, requires_grad=DEVICE != "cpu"
        )
        for h in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    attend, spent = flex(last)
    found = {
        "sdpa with the mask": timed(sdpa(last), inputs),
        "sdpa, causal": timed(sdpa(None), inputs),  # another result: what a tree could cost at best
        "flex": timed(attend, inputs) | {"block_mask_milliseconds": spent},
    }
    right = found["sdpa with the mask"]["out"].float()
    error = (found["flex"]["out"].float() - right).norm() / right.norm()
    for one in found.values():
        del one["out"]
    ratio = found["sdpa with the mask"]["milliseconds"] / found["flex"]["milliseconds"]
    against = {"flex_speed_over_sdpa": ratio, "flex_difference": float(error)}
    return {"tokens": len(last), **found, **against}


def main() -> None:
    """Compare on each size of pack; fails where FlexAttention computes something else."""
    part = Part.started("attention")
    numbers: dict[str, Any] = {}
    for tokens in part.sizes.attention:
        numbers[str(tokens)] = compare(part, tokens)
        part.save(numbers)
    if wrong := [name for name, one in numbers.items() if not one["flex_difference"] < 0.02]:
        raise SystemExit(f"FlexAttention differs from SDPA at {', '.join(wrong)} tokens")


if __name__ == "__main__":
    main()
