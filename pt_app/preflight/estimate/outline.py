"""A model without its numbers: its parts in bytes, and what a forward and backward pass hold.

The model's own code runs, with its adapter, on tensors that have a shape and no storage (torch's
FakeTensorMode), and every allocation is counted from its making to its end. So nothing is guessed
of an architecture. What comes out for a Qwen2 layer without activation checkpointing is in
docs/ESTIMATE.md, term by term, and a test adds it up.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from pt_app.core.settings import Settings
from pt_app.models.adapters import attach_lora
from pt_app.models.bases import ModelSource
from pt_app.models.gated_mlp import keep_less
from pt_app.models.platforms import Platform
from pt_app.models.tree_attention import (
    BLOCKS,
    MAX_BLOCK,
    Block,
    as_attention_mask,
    core,
    last_mlp_only_at,
    use_attention,
    why_no_tree,
)
from pt_app.preflight.estimate.meter import Meter
from pt_app.preflight.estimate.plan import Pack

Pass = Literal["training", "loss", "reading"]


# Layers are alike, so what a pass holds grows by the same bytes with each: it is counted on models
# of these depths and carried on to the real one.
DEPTHS = (2, 4)


@dataclass(frozen=True)
class Held:
    """Bytes that passes hold beside the model at their peak, logits among them; `top` is what a
    heap grows to that keeps the freed ones."""

    peak: int
    top: int
    logits: int


class Outline:
    """The model of a run without its numbers, as `pipeline` puts it together.

    `adapter` off gives the plain model of the evaluation, in float32 with attention in blocks;
    `checkpointed` keeps the inputs of layers alone, as `activation_checkpointing` does.
    """

    def __init__(
        self,
        source: ModelSource,
        settings: Settings,
        platform: Platform,
        *,
        adapter: bool = True,
        checkpointed: bool = False,
    ) -> None:
        plain = replace(platform, compute_dtype=torch.float32, attention=BLOCKS, weights="float32")
        self.platform = platform if adapter else plain
        self.checkpointed = checkpointed
        self._known: dict[tuple[tuple[Pass, Pack], ...], Held] = {}
        self._build = partial(_meta_model, source, settings, self.platform, adapter)
        model = self._build(None)
        self.model = model
        self.config = core(model).config.get_text_config()
        self.linear = linear_layers(model)
        self.shared_head = _shared_head(model)
        self.adapters: list[int] = [
            int(p.numel()) for p in model.parameters() if p.requires_grad and adapter
        ]
        self.frozen: int = sum(int(p.numel()) for p in model.parameters()) - sum(self.adapters)
        self.why_no_tree = why_no_tree(model, settings.max_seq_length)

    @cached_property
    def _depths(self) -> list[tuple[int, "_Runner"]]:
        layers = self.config.num_hidden_layers
        depths = DEPTHS if layers > max(DEPTHS) else (layers,)
        return [(n, _Runner(self._build(n), self.platform, self.checkpointed)) for n in depths]

    def held(self, passes: Sequence[tuple[Pass, Pack]]) -> Held:
        """What these passes hold, one after the other in one process."""
        if (key := tuple(passes)) not in self._known:
            self._known[key] = self._counted(passes)
        return self._known[key]

    def _counted(self, passes: Sequence[tuple[Pass, Pack]]) -> Held:
        found = []
        for depth, runner in self._depths:
            meter = runner.meter()
            for kind, pack in passes:
                runner.run(pack, meter, kind)
            found.append((depth, Held(meter.peak, meter.top, meter.logits)))
        (deep, most), (shallow, least) = found[-1], found[0]
        more = (self.config.num_hidden_layers - deep) / max(deep - shallow, 1)
        return Held(
            peak=round(most.peak + more * (most.peak - least.peak)),
            top=round(most.top + more * (most.top - least.top)),
            logits=most.logits,
        )


def _meta_model(
    source: ModelSource, settings: Settings, platform: Platform, adapter: bool, layers: int | None
) -> Any:
    """The model on the meta device, all of it or its first layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    dtype = torch.float32 if platform.weights == "nf4" else platform.compute_dtype
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if adapter:
            model = attach_lora(
                model,
                r=settings.lora_r,
                alpha=settings.lora_alpha,
                dropout=settings.lora_dropout,
                targets=settings.lora_targets,
            )
    use_attention(model, platform.attention)
    keep_less(model)
    return model


class _Runner:
    """Runs passes of a meta model on tensors without storage."""

    def __init__(self, model: Any, platform: Platform, checkpointed: bool) -> None:
        self.platform, self.checkpointed = platform, checkpointed
        # Meta tensors are ten times faster; but mixed precision passes them by, and SDPA takes
        # its plain path for them, which keeps what no device's own would.
        plain = platform.attention == BLOCKS and not any(platform.autocast.values())
        self.mode: Any = torch.device("meta") if plain else FakeTensorMode()
        self.model = _without_storage(model, self.mode)
        self.vocabulary = core(model).config.get_text_config().vocab_size
        if platform.weights == "nf4":
            for module in linear_layers(model):
                module.forward = _Dequantised.of(  # type: ignore[method-assign]
                    module, platform.compute_dtype
                )
        if checkpointed:
            self.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )

    def meter(self) -> Meter:
        """A meter for passes of this model; its weights and their gradients are not counted."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        gradients = [w.grad for w in self.model.parameters() if w.grad is not None]
        return Meter(weights + gradients, self.vocabulary, self.platform.most_kept)

    def run(self, pack: Pack, meter: Meter, kind: Pass) -> None:
        """One pass over `pack`: a training pack forward and backward, the loss of a validation
        pack, or verdicts read (`tree_reading`), whose keys and values are kept until its end."""
        training = kind == "training"
        self.model.train(training)
        cache = DynamicCache() if kind == "reading" else None
        with self.mode, meter, torch.set_grad_enabled(training), self._autocast():
            inputs = self._inputs(pack)
            kept = torch.zeros(pack.kept, dtype=torch.long)
            with last_mlp_only_at(self.model, kept[: pack.tokens]):
                logits = self.model(
                    **inputs,
                    logits_to_keep=kept,
                    past_key_values=cache,
                    use_cache=cache is not None,
                ).logits
            if cache is None:  # as `trainer.summed_loss`
                loss = F.cross_entropy(logits.float().flatten(0, 1), kept, reduction="sum")
            if training:
                del logits
                loss.backward()  # type: ignore[no-untyped-call]

    def _inputs(self, pack: Pack) -> dict[str, Any]:
        ids = torch.zeros(1, pack.tokens, dtype=torch.long)
        mask = torch.ones(1, 1, pack.tokens, pack.tokens, dtype=torch.bool)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": ids.clone()}
        inputs["attention_mask"] = as_attention_mask(mask, self.model)
        if core(self.model).config._attn_implementation == BLOCKS:
            # Blocks are computed one after the other, so that the largest stands for all; but the
            # masks of all are held. A block sees what its tokens see and half of its own square.
            size = min(MAX_BLOCK, pack.tokens)
            keys = torch.zeros(min(pack.longest + size, pack.tokens), dtype=torch.long)
            area = min(pack.seen + pack.tokens * MAX_BLOCK // 2, pack.tokens**2)
            masks = torch.zeros(max(area, size * len(keys)))
            mask = masks[: size * len(keys)].view(size, len(keys))
            inputs["blocks"] = [Block(0, size, keys, mask)]
        return inputs

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """The mixed precision of GPUs, on tensors that say they are a CPU's."""
        # The evaluation's outline computes in float32, which is no mixed precision anywhere.
        mixed = any(self.platform.autocast.values())
        with torch.autocast("cpu", self.platform.compute_dtype, enabled=mixed):
            yield


def linear_layers(model: Any) -> list[torch.nn.Linear]:
    """The base's linear layers but the head: those that NF4 quantises."""
    plain = core(model)
    head = plain.get_output_embeddings()
    return [
        module
        for name, module in plain.named_modules()
        if type(module) is torch.nn.Linear and module is not head and "lora_" not in name
    ]


def _shared_head(model: Any) -> int:
    """Weights of the head where they are the embedding's too; else 0."""
    plain = core(model)
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    shared = head is not None and head.weight is embedding.weight
    return int(head.weight.numel()) if shared else 0


def _without_storage(model: Any, mode: Any) -> Any:
    """The model with tensors of `mode`: meta ones, or ones that say they lie on the CPU."""
    made: dict[int, torch.nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    new = torch.nn.Parameter(
                        torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad
                    )
                    module._parameters[name] = made.setdefault(id(old), new)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for parameter in model.parameters():
            if parameter.requires_grad:  # counted as gradients, which outlive a pass
                parameter.grad = torch.empty_like(parameter)
    return model


class _Dequantised(torch.autograd.Function):
    """A product with an NF4 weight, as bitsandbytes' MatMul4Bit holds it: the weight in the
    compute dtype while it multiplies, forward and backward, and nothing in between."""

    @staticmethod
    def of(module: torch.nn.Linear, dtype: torch.dtype) -> Any:
        """A forward function in place of `module`'s."""
        return lambda x: _Dequantised.apply(x, module.weight.shape, dtype)  # type: ignore[no-untyped-call]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.dtype, ctx.of_input = shape, dtype, x.dtype
        return F.linear(x.to(dtype), torch.empty(shape, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        weight = torch.empty(ctx.shape, dtype=ctx.dtype).to(gradient.dtype)
        return torch.matmul(gradient, weight).to(ctx.of_input), None, None
