"""NF4 there and back on the device, and the layer that multiplies with it."""

from collections.abc import Iterator
from typing import Any

import torch

from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.finding import Finding, one_line
from pt_app.preflight.doctor.side import TOLERANCE, Side, error_of, in_float64

BLOCK = 64  # weights that share a scale, bitsandbytes' default on every device since 0.49.2
# The widest gap between two levels of NF4 (-1 and -0.6962; arXiv 2305.14314, appendix E) is 0.304
# of a block's scale, so rounding errs by half of it at most. The scale is itself held in 8 bits: on
# a CPU that adds 0.001 to 0.007 (60 drawn matrices, in float32 and bfloat16), and 0.01 is allowed.
WORST = 0.304 / 2 + 0.01
OUT, IN = 128, 512
FIX = "train with --no_4bit, or install bitsandbytes 0.50.2 (pip install -r requirements-cuda.txt)"


def check_nf4(platform: Platform) -> Iterator[Finding]:
    """Quantise a matrix and look at the errors; multiply with it, and look at the gradient.

    Both, since either alone has been wrong: garbage from the quantiser on RDNA (bitsandbytes PR
    1885) and on CDNA (PRs 1856, 1887), a product unlike its own weights on gfx1100 (issue 2087).
    """
    if platform.weights != "nf4":
        yield Finding("NF4", "skip", f"not used: the base is held in {platform.weights}")
        return
    try:
        import bitsandbytes as bnb
    except Exception as error:  # a library of the GPU's that it misses, among others
        why = f"bitsandbytes does not load: {type(error).__name__}: {one_line(error, 150)}"
        yield Finding("NF4", "fail", why, FIX)
        return
    side = Side.of_device(platform.device, platform.compute_dtype)
    weight = side.draw(OUT, IN)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    back = bnb.functional.dequantize_4bit(packed, state)
    yield _round_trip(weight, back)
    yield _product(bnb, side, weight, back)


def _round_trip(weight: torch.Tensor, back: torch.Tensor) -> Finding:
    """Each error against the scale of its block: the largest weight in it."""
    right, got = (in_float64(tensor).reshape(-1, BLOCK) for tensor in (weight, back))
    worst = float(((got - right).abs() / right.abs().amax(1, keepdim=True)).max())
    said = f"errs by {worst:.3f} of a block's scale at most"
    if worst <= WORST:
        return Finding("NF4, there and back", "ok", said)
    return Finding("NF4, there and back", "fail", f"{said}, NF4's own is {WORST:.3f}", FIX)


def _product(bnb: Any, side: Side, weight: torch.Tensor, back: torch.Tensor) -> Finding:
    """Forward and backward of the layer against products with the weights that it holds."""
    layer = bnb.nn.Linear4bit(
        IN, OUT, bias=False, compute_dtype=side.dtype, quant_type="nf4", compress_statistics=True
    )
    layer.weight = bnb.nn.Params4bit(
        weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to(side.device)
    held = in_float64(back)
    errors = []
    for rows in (1, 8, 64):  # kernels of their own
        x, upstream = side.draw(rows, IN, seed=1), side.draw(rows, OUT, seed=2)
        x.requires_grad_(True)
        out = layer(x)
        torch.autograd.backward((out * upstream).sum())
        assert x.grad is not None
        errors.append(error_of(out, in_float64(x) @ held.T))
        errors.append(error_of(x.grad, in_float64(upstream) @ held))
    tolerance = TOLERANCE[side.dtype]
    said = f"{max(errors):.0e} off the product with its own weights"
    if max(errors) <= tolerance:
        return Finding("NF4, products", "ok", said)
    return Finding("NF4, products", "fail", f"{said}, at most {tolerance:.0e}", FIX)
