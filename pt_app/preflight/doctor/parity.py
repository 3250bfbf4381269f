"""Compare a training step on the device with float64 on the CPU: forward, backward, optimizer.

The step is that of a run on this platform, with its packs, loss, attention and optimizer, for a
Qwen2 of two layers with random weights and a LoRA adapter. The reference reads the rows one by one,
with plain attention.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pt_app.models.adapters import attach_lora
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Batch, Example, Shapes, pack, unpacked
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import use_attention
from pt_app.preflight.doctor.finding import Finding
from pt_app.preflight.doctor.side import TOLERANCE, Side, compared, error_of, in_float64
from pt_app.training.trainer import summed_loss

VOCABULARY, PAD = 256, 0
HIDDEN = RANK = 64  # so that adapter weights have 4,096 numbers, the least for 8-bit states
SHAPES = Shapes.up_to(64, 2)  # so that packs are padded, as on MPS
LEARNING_RATE, DECAY = 1e-2, 0.1
DO_NOT_TRAIN = (
    "do not train on this device with this installation: install the versions that the "
    "requirements name, and torch 2.14 or newer on Apple"
)


@dataclass(frozen=True)
class Step:
    """The results of a forward and a backward pass: the loss, and the gradient of each weight."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def check_training_step(platform: Platform) -> Iterator[Finding]:
    """Compare plain rows, a pack, and the update of the weights, each with the reference."""
    side = Side.of_device(platform.device, platform.compute_dtype)
    autocast = platform.compute_dtype if any(platform.autocast.values()) else None
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
            actual = _step(device, batches, autocast)
            yield _compare(name, actual, expected, TOLERANCE[side.dtype])
        yield _check_optimizer(platform, device)


def _rows() -> list[Example]:
    """Make three rows of unequal length with a common prefix and at least two supervised tokens."""
    shared = list(range(2, 22))
    return [
        {"input_ids": [*shared, *tail], "prompt_length": len(shared) + 2}
        for tail in ([30, 31, 40, 41], [30, 32, 42, 43, 44], [33, 34, 45, 46, 47, 48])
    ]


def _model() -> Any:
    """Make a float32 model with a LoRA adapter that, unlike a fresh one, has an effect."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=PAD,
    )
    model = attach_lora(
        Qwen2ForCausalLM(config), r=RANK, alpha=RANK, dropout=0.0, targets="q_proj,v_proj,down_proj"
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _placed(model: Any, side: Side, attention: str) -> Any:
    """Copy the model to a side, the base rounded to its dtype, the adapter in at least float32."""
    placed = copy.deepcopy(model).to(side.device)
    of_adapter = torch.promote_types(side.dtype, torch.float32)
    for parameter in placed.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(of_adapter)
        else:
            parameter.data = parameter.data.to(side.rounded_to).to(side.dtype)
    use_attention(placed, attention)
    return placed.train()


def _step(model: Any, batches: list[Batch], autocast: torch.dtype | None) -> Step:
    """Compute all batches forward and backward, on the model's device."""
    device = next(model.parameters()).device
    model.zero_grad()
    total = torch.zeros((), device=device)
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = summed_loss(model, moved)
        torch.autograd.backward(loss)
        total = total + loss.detach()
    return Step(total, {name: p.grad.clone() for name, p in _trained(model).items()})


def _trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _compare(name: str, actual: Step, expected: Step, tolerance: float) -> Finding:
    loss = error_of(actual.loss, expected.loss)
    gradient, weight = _worst(actual.gradients, expected.gradients)
    said = f"loss {loss:.0e}, gradients {gradient:.0e} ({weight}) off float64 on the CPU"
    return compared(name, max(loss, gradient), tolerance, said, DO_NOT_TRAIN)


def _worst(actual: dict[str, Any], expected: dict[str, Any]) -> tuple[float, str]:
    """Return the largest error, and the short name of its weight."""
    errors = {name: error_of(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: errors[name])
    short = worst.removeprefix("base_model.model.model.").removesuffix(".default.weight")
    return errors[worst], short


def _check_optimizer(platform: Platform, model: Any) -> Finding:
    """Compare a step of the run's optimizer with AdamW in float64, from the same gradients.

    Not from those of the reference: the first step of Adam is almost the sign of a gradient, which
    noise changes if the gradient is almost zero.
    """
    weights = _trained(model)
    reference = {name: in_float64(p).clone() for name, p in weights.items()}
    for name, p in reference.items():
        p.grad = in_float64(weights[name].grad)
    before = {name: p.clone() for name, p in reference.items()}
    options: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": DECAY}
    torch.optim.AdamW(reference.values(), foreach=False, **options).step()
    _optimizer(platform)(weights.values(), **options).step()
    error, weight = _worst(
        {name: in_float64(p) - before[name] for name, p in weights.items()},
        {name: p - before[name] for name, p in reference.items()},
    )
    # An update is the difference of two larger float32 weights, and GPUs divide less exactly.
    tolerance = 10 * TOLERANCE[torch.float32]
    said = f"{platform.optimizer}: updates {error:.0e} ({weight}) off AdamW"
    fix = f"{DO_NOT_TRAIN} (addcdiv on MPS made every Adam wrong: pytorch issue 118115)"
    return compared("step, optimizer", error, tolerance, said, fix)


def _optimizer(platform: Platform) -> Any:
    """Return the class of the optimizer, with the options that transformers gives it."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir="unused", optim=platform.optimizer, use_cpu=platform.on_cpu, report_to="none"
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    del options["lr"]
    return partial(kind, **options)
