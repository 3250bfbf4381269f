"""One training step on the device against float64 on the CPU: forward, backward, optimizer.

The step is the project's own: packs, loss, attention and optimizer as a run on this platform has
them, on a Qwen2 of two layers with random weights and a LoRA adapter. The reference reads the
rows one by one, with plain attention.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pt_app.models.adapters import attach_lora
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Batch, Shapes, pack, unpacked
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import use_attention
from pt_app.preflight.doctor.finding import Finding
from pt_app.preflight.doctor.side import TOLERANCE, Side, error_of, in_float64
from pt_app.training.trainer import summed_loss

VOCABULARY, PAD = 256, 0
HIDDEN = RANK = 64  # so that adapter weights have the 4,096 numbers from which 8-bit states begin
SHAPES = Shapes.up_to(64, 2)  # so that packs have pads, as on MPS
LEARNING_RATE, DECAY = 1e-2, 0.1
DO_NOT_TRAIN = (
    "do not train on this device with this installation: install the versions that the "
    "requirements name, and torch 2.14 or newer on Apple"
)


@dataclass(frozen=True)
class Step:
    """What a forward and a backward pass gave: the loss, and the gradient of each weight."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def check_training_step(platform: Platform) -> Iterator[Finding]:
    """Compare plain rows, a pack, and the update of the weights, each with the reference."""
    side = Side.of_device(platform.device, platform.compute_dtype)
    with _own_random():
        model = _model()
        packed = pack(_rows(), PAD, SHAPES)
        right = _step(_placed(model, side.reference(), "eager"), _plain(packed), None)
        device = _placed(model, side, platform.attention)
        keep_less(device)
        tolerance = TOLERANCE[side.dtype]
        autocast = platform.compute_dtype if any(platform.autocast.values()) else None
        for name, batches in (("step, plain rows", _plain(packed)), ("step, pack", [packed])):
            got = _step(device, batches, autocast)
            yield _compare(name, got, right, tolerance)
        yield _check_optimizer(platform, device)


def _rows() -> list[dict[str, Any]]:
    """Three rows that begin alike, of unequal length, two supervised tokens or more each."""
    shared = list(range(2, 22))
    return [
        {"input_ids": [*shared, *tail], "prompt_length": len(shared) + 2}
        for tail in ([30, 31, 40, 41], [30, 32, 42, 43, 44], [33, 34, 45, 46, 47, 48])
    ]


def _model() -> Any:
    """A float32 LoRA model in memory; its adapter is no longer the fresh one that does nothing."""
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
    """A copy of the model on a side: the base rounded to its dtype, the adapter kept whole."""
    placed = copy.deepcopy(model).to(side.device)
    whole = torch.promote_types(side.dtype, torch.float32)
    for parameter in placed.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(whole)
        else:
            parameter.data = parameter.data.to(side.rounded_to).to(side.dtype)
    use_attention(placed, attention)
    return placed.train()


def _plain(packed: Batch) -> list[Batch]:
    return unpacked(packed, PAD, rows=2, shapes=SHAPES)


def _step(model: Any, batches: list[Batch], autocast: torch.dtype | None) -> Step:
    """Forward and backward over all batches, on the model's device."""
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


def _compare(name: str, got: Step, right: Step, tolerance: float) -> Finding:
    loss = error_of(got.loss, right.loss)
    errors = {key: error_of(got.gradients[key], right.gradients[key]) for key in right.gradients}
    worst = max(errors, key=lambda key: errors[key])
    said = f"loss {loss:.0e}, gradients {errors[worst]:.0e} off float64 on the CPU"
    if loss <= tolerance and errors[worst] <= tolerance:
        return Finding(name, "ok", said)
    return Finding(name, "fail", f"{said}, at most {tolerance:.0e}; {_short(worst)}", DO_NOT_TRAIN)


def _check_optimizer(platform: Platform, model: Any) -> Finding:
    """One step of the run's optimizer against AdamW in float64, from the same gradients.

    Not from the reference's: Adam's first step is nearly the sign of a gradient, which noise turns
    where a gradient is next to nothing.
    """
    weights = _trained(model)
    right = {name: in_float64(p).clone() for name, p in weights.items()}
    for name, p in right.items():
        p.grad = in_float64(weights[name].grad)
    before = {name: p.clone() for name, p in right.items()}
    options: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": DECAY}
    torch.optim.AdamW(right.values(), foreach=False, **options).step()
    _optimizer(platform)(weights.values(), **options).step()
    updates = {name: in_float64(p) - before[name] for name, p in weights.items()}
    errors = {name: error_of(updates[name], right[name] - before[name]) for name in right}
    worst = max(errors, key=lambda name: errors[name])
    name, said = "step, optimizer", f"{platform.optimizer}: updates {errors[worst]:.0e} off AdamW"
    # An update is the difference of two float32 weights that are larger; GPUs divide roughly here.
    tolerance = 10 * TOLERANCE[torch.float32]
    if errors[worst] <= tolerance:
        return Finding(name, "ok", said)
    fix = f"{DO_NOT_TRAIN} (addcdiv on MPS spoiled every Adam: pytorch issue 118115)"
    return Finding(name, "fail", f"{said}, at most {tolerance:.0e}; {_short(worst)}", fix)


def _optimizer(platform: Platform) -> Any:
    """The optimizer's class as transformers builds it from its name, with its own options."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir="unused", optim=platform.optimizer, use_cpu=platform.on_cpu, report_to="none"
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    del options["lr"]
    return partial(kind, **options)


def _short(parameter: str) -> str:
    return parameter.removeprefix("base_model.model.model.").removesuffix(".default.weight")


@contextmanager
def _own_random() -> Iterator[None]:
    """Random numbers of its own within: a run that asks the doctor first draws the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
