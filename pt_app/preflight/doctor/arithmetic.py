"""Compare what a device computes with float64 on the CPU: operations, a training step, NF4.

The step is that of a run on this platform, with its packs, loss, attention and optimizer, for a
Qwen2 of two layers with random weights and a LoRA adapter. The reference reads the rows one by one,
with plain attention.
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

import torch
from peft import PeftModel

from pt_app.core.errors import UserError
from pt_app.models import launcher
from pt_app.models.adapters import attach_lora
from pt_app.models.bases import ModelSource
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Batch, Example, Shapes, pack, unpacked
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import use_attention
from pt_app.preflight.doctor import operations
from pt_app.preflight.doctor.finding import FIXES, Finding, one_line, run_check
from pt_app.preflight.doctor.needs import vocabulary_of
from pt_app.preflight.doctor.operations import TOLERANCE, Side, error_of, in_float64
from pt_app.training.loss import summed_loss
from pt_app.training.run import optimizer_class

VOCABULARY, PAD = 256, 0
# The adapter's weights have 4,096 numbers, the least for 8-bit states.
HIDDEN = RANK = 64
SHAPES = Shapes.up_to(64, 2)  # so that packs are padded, as on MPS
RATE, DECAY = 1e-2, 0.1
NF4 = {"quant_type": "nf4", "compress_statistics": True}
BLOCK = 64  # weights that share a scale: the default of bitsandbytes on all devices since 0.49.2
# The widest gap between two levels of NF4 (-1 and -0.6962; arXiv 2305.14314, appendix E) is 0.304
# of the scale of a block, so that rounding errs by at most half of it. The scale itself is held in
# 8 bits: on a CPU this adds 0.001 to 0.007 (60 random matrices, in float32 and bfloat16), and 0.01
# is allowed.
MAX_NF4_ERROR = 0.304 / 2 + 0.01
OUT, IN = 128, 512
Tensors = Mapping[str, torch.Tensor]

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
    findings = check_training(platform)
    if not platform.on_cpu:
        findings = check_arithmetic(platform, vocabulary_of(source))
    passed = 0
    for finding in findings:
        line = f"doctor: {finding.name}: {finding.said}; {finding.fix}"
        if finding.status == "fail" and finding.fix != FIXES["broken"]:
            raise UserError(line)
        if finding.status in ("fail", "warn"):
            log.warning("%s", line)
        passed += finding.status == "ok"
    log.info("doctor: %d checks passed (%.1f s)", passed, time.perf_counter() - start)


def check_arithmetic(platform: Platform, vocabulary: int) -> Iterator[Finding]:
    """Check the operations of a device, with a head of that vocabulary, and a training step."""
    yield from operations.check_operations(platform.device, platform.compute_dtype, vocabulary)
    yield from check_training(platform)


def check_training(platform: Platform) -> Iterator[Finding]:
    """Check a training step, and NF4 if the base is held in it."""
    yield from run_check("training step", lambda: check_training_step(platform))
    yield from run_check("NF4", lambda: check_nf4(platform))


def check_training_step(platform: Platform) -> Iterator[Finding]:
    """Compare plain rows, a pack, and the update of the weights, each with the reference."""
    side = Side(platform.device, platform.compute_dtype, platform.compute_dtype)
    autocast = platform.compute_dtype if platform.mixed_precision != "no" else None
    # A fork of the random numbers: a run that is checked first draws the same ones.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model()
        packed = pack(_rows(), PAD, SHAPES)
        plain = unpacked(packed, PAD, rows=2, shapes=SHAPES)
        expected = _step(_placed(model, side.reference(), "eager"), plain, None)
        device = _placed(model, side, platform.attention)
        keep_less(device)
        for name, batches in (("step, plain rows", plain), ("step, pack", [packed])):
            error, weight = _worst(_step(device, batches, autocast), expected)
            said = f"{error:.0e} ({weight}) off float64 on the CPU"
            yield _compared(name, error, TOLERANCE[side.dtype], said)
        yield _check_optimizer(platform, device)


def _rows() -> list[Example]:
    """Make three rows of unequal length with a common prefix and at least two supervised tokens."""
    shared = list(range(2, 22))
    tails = [30, 31, 40, 41], [30, 32, 42, 43, 44], [33, 34, 45, 46, 47, 48]
    return [{"input_ids": [*shared, *tail], "prompt_length": len(shared) + 2} for tail in tails]


def _model() -> PeftModel:
    """Make a float32 model with a LoRA adapter that, unlike a fresh one, has an effect."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 128}
    base = Qwen2ForCausalLM(Qwen2Config(**heads, **sizes, pad_token_id=PAD))
    targets = "q_proj,v_proj,down_proj"
    model: PeftModel = attach_lora(base, r=RANK, alpha=RANK, dropout=0.0, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _placed(model: PeftModel, side: Side, attention: str) -> PeftModel:
    """Copy the model to a side, the base rounded to its dtype, the adapter in at least float32."""
    placed = copy.deepcopy(model).to(side.device)
    of_adapter = torch.promote_types(side.dtype, torch.float32)
    for parameter in placed.parameters():
        weight = parameter.data
        parameter.data = weight.to(of_adapter) if parameter.requires_grad else side.put(weight)
    use_attention(placed, attention)
    return placed.train()


def _step(model: PeftModel, batches: Sequence[Batch], autocast: torch.dtype | None) -> Tensors:
    """Compute all batches forward and backward; return the loss and each weight's gradient."""
    device = next(model.parameters()).device
    model.zero_grad()
    total = torch.zeros((), device=device)
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = summed_loss(model, moved)
        torch.autograd.backward(loss)
        total = total + loss.detach()
    gradients = {name: p.grad for name, p in _trained(model).items() if p.grad is not None}
    return {"loss": total} | gradients


def _trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _worst(actual: Tensors, expected: Tensors) -> tuple[float, str]:
    """Return the largest error, and the short name of its tensor."""
    errors = {name: error_of(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: errors[name])
    short = worst.removeprefix("base_model.model.model.").removesuffix(".default.weight")
    return errors[worst], short


def _check_optimizer(platform: Platform, model: PeftModel) -> Finding:
    """Compare a step of the run's optimizer with AdamW in float64, from the same gradients.

    Not from those of the reference: the first step of Adam is almost the sign of a gradient, which
    noise changes if the gradient is almost zero.
    """
    weights = _trained(model)
    before = {name: in_float64(p) for name, p in weights.items()}
    reference = {name: p.clone() for name, p in before.items()}
    for name, p in weights.items():
        assert p.grad is not None
        reference[name].grad = in_float64(p.grad)
    torch.optim.AdamW(reference.values(), lr=RATE, weight_decay=DECAY, foreach=False).step()
    optimizer_class(platform.optimizer)(weights.values(), lr=RATE, weight_decay=DECAY).step()
    updates = {name: in_float64(p) - before[name] for name, p in weights.items()}
    expected = {name: p - before[name] for name, p in reference.items()}
    error, weight = _worst(updates, expected)
    # An update is the difference of two larger float32 weights, and GPUs divide less exactly.
    tolerance = 10 * TOLERANCE[torch.float32]
    said = f"{platform.optimizer}: updates {error:.0e} ({weight}) off AdamW"
    return _compared("step, optimizer", error, tolerance, said)


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
        said = f"bitsandbytes does not load: {type(error).__name__}: {one_line(error)}"
        yield Finding.wrong("NF4", said)
        return
    side = Side(platform.device, platform.compute_dtype, platform.compute_dtype)
    weight = side.draw(OUT, IN)
    original = in_float64(weight)
    held = in_float64(bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(weight, **NF4)))
    scales = original.reshape(-1, BLOCK).abs().amax(1, keepdim=True)
    worst = float(((held - original).reshape(-1, BLOCK).abs() / scales).max())
    said = f"errs by {worst:.3f} of the scale of a block"
    yield _compared("NF4, round trip", worst, MAX_NF4_ERROR, said)
    worst = _matmul_error(bnb, side, weight, held)
    said = f"{worst:.0e} off the matmul with its own weights"
    yield _compared("NF4, matmul", worst, TOLERANCE[side.dtype], said)


def _matmul_error(bnb: ModuleType, side: Side, weight: torch.Tensor, held: torch.Tensor) -> float:
    """Return the error of the layer, forward and backward, against the weights that it holds."""
    layer = bnb.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=side.dtype, **NF4)
    layer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, **NF4)
    layer = layer.to(side.device)
    errors = []
    for rows in (1, 8, 64):  # each has its own kernel
        x, upstream = side.draw(rows, IN, seed=1, requires_grad=True), side.draw(rows, OUT, seed=2)
        out = layer(x)
        (gradient,) = torch.autograd.grad((out * upstream).sum(), [x])
        errors.append(error_of(out, in_float64(x) @ held.T))
        errors.append(error_of(gradient, in_float64(upstream) @ held))
    return max(errors)


def _compared(name: str, error: float, tolerance: float, said: str) -> Finding:
    """Return a finding on an error; `said` names it, and is followed by the tolerance."""
    return Finding.of(name, error <= tolerance, f"{said}, at most {tolerance:.2g} is allowed")
