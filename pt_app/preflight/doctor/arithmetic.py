"""Compare what a device computes with float64 on the CPU: operations, a training step, NF4."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from pt_app.core.errors import UserError
from pt_app.models import launcher
from pt_app.models.bases import ModelSource
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.finding import Finding, Status, one_line, run_check
from pt_app.preflight.doctor.needs import words_of
from pt_app.preflight.doctor.operations import check_operations
from pt_app.preflight.doctor.parity import check_training_step
from pt_app.preflight.doctor.side import TOLERANCE, Side, compared, error_of, in_float64

BLOCK = 64  # weights that share a scale: the default of bitsandbytes on all devices since 0.49.2
# The widest gap between two levels of NF4 (-1 and -0.6962; arXiv 2305.14314, appendix E) is 0.304
# of the scale of a block, so that rounding errs by at most half of it. The scale itself is held in
# 8 bits: on a CPU this adds 0.001 to 0.007 (60 random matrices, in float32 and bfloat16), and 0.01
# is allowed.
MAX_NF4_ERROR = 0.304 / 2 + 0.01
OUT, IN = 128, 512
FIX = "train with --no_4bit, or install bitsandbytes 0.50.2 (pip install -r requirements-cuda.txt)"

log = logging.getLogger(__name__)


def check_first(platform: Platform, source: ModelSource) -> None:
    """Check the device on which a run is about to train, each rank its own.

    A CPU is checked with a training step only: its operations are the reference of the others. A
    check that cannot be made is logged, and the run itself shows whether it matters.

    Raises:
        UserError: if the device computes something wrongly that training needs.
    """
    launcher.meet(platform.on_cpu)
    start = time.perf_counter()
    findings = check_training(platform, "warn")
    if not platform.on_cpu:
        findings = check_arithmetic(platform, words_of(source), "warn")
    passed = 0
    for finding in findings:
        line = f"doctor: {finding.name}: {finding.said}; {finding.fix}"
        if finding.status == "fail":
            raise UserError(line)
        if finding.status == "warn":
            log.warning("%s", line)
        passed += finding.status == "ok"
    log.info("doctor: %d checks passed (%.1f s)", passed, time.perf_counter() - start)


def check_arithmetic(platform: Platform, words: int, broken: Status = "fail") -> Iterator[Finding]:
    """Check the operations of a device, with a head of `words`, and a training step."""
    yield from check_operations(platform.device, platform.compute_dtype, words, broken)
    yield from check_training(platform, broken)


def check_training(platform: Platform, broken: Status = "fail") -> Iterator[Finding]:
    """Check a training step, and NF4 if the base is held in it."""
    yield from run_check("training step", lambda: check_training_step(platform), broken)
    yield from run_check("NF4", lambda: check_nf4(platform), broken)


def check_nf4(platform: Platform) -> Iterator[Finding]:
    """Check the round trip of a matrix through NF4, and a matmul with it, with its gradient.

    Both, since each has been wrong alone: the quantizer on RDNA (bitsandbytes PR 1885) and on CDNA
    (PRs 1856, 1887), a matmul that did not match its weights on gfx1100 (issue 2087).
    """
    if platform.weights != "nf4":
        yield Finding("NF4", "skip", f"not used: the base is held in {platform.weights}")
        return
    try:
        import bitsandbytes as bnb
    except Exception as error:  # such as a missing library of the GPU
        said = f"bitsandbytes does not load: {type(error).__name__}: {one_line(error, 150)}"
        yield Finding("NF4", "fail", said, FIX)
        return
    side = Side.of_device(platform.device, platform.compute_dtype)
    weight = side.draw(OUT, IN)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    original = in_float64(weight)
    held = in_float64(bnb.functional.dequantize_4bit(packed, state))
    scales = original.reshape(-1, BLOCK).abs().amax(1, keepdim=True)
    worst = float(((held - original).reshape(-1, BLOCK).abs() / scales).max())
    said = f"errs by {worst:.3f} of the scale of a block, at most {MAX_NF4_ERROR:.3f} is NF4's own"
    yield Finding.of("NF4, round trip", worst <= MAX_NF4_ERROR, said, FIX)
    worst = _matmul_error(bnb, side, weight, held)
    said = f"{worst:.0e} off the matmul with its own weights"
    yield compared("NF4, matmul", worst, TOLERANCE[side.dtype], said, FIX)


def _matmul_error(bnb: Any, side: Side, weight: torch.Tensor, held: torch.Tensor) -> float:
    """Return the error of the layer, forward and backward, against the weights that it holds."""
    layer = bnb.nn.Linear4bit(
        IN, OUT, bias=False, compute_dtype=side.dtype, quant_type="nf4", compress_statistics=True
    )
    layer.weight = bnb.nn.Params4bit(
        weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to(side.device)
    errors = []
    for rows in (1, 8, 64):  # each has its own kernel
        x, upstream = side.draw(rows, IN, seed=1, requires_grad=True), side.draw(rows, OUT, seed=2)
        out = layer(x)
        (gradient,) = torch.autograd.grad((out * upstream).sum(), [x])
        errors.append(error_of(out, in_float64(x) @ held.T))
        errors.append(error_of(gradient, in_float64(upstream) @ held))
    return max(errors)
