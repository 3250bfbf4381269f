"""Outline a model without its weights: the bytes of its parts, and what its passes hold.

The code of the model itself runs, with its adapter, on tensors that have a shape but no storage
(meta tensors, or torch's FakeTensorMode), and each allocation is counted from its creation to its
end. So nothing about an architecture is guessed. docs/ESTIMATE.md lists what a layer of Qwen2
keeps without activation checkpointing, and a test adds it up.
"""

import warnings
from collections.abc import Sequence
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

# Layers are alike, so each adds the same bytes to what a pass holds: this is counted on models of
# these depths and extrapolated.
DEPTHS = (2, 4)


@dataclass(frozen=True)
class Held:
    """Bytes that passes hold beside the model.

    Attributes:
        peak: most bytes in use.
        top: size of a heap that keeps freed tensors.
        logits: bytes of the logits among them.
    """

    peak: int
    top: int
    logits: int


class Outline:
    """The model of a run without its weights, assembled as in `training.run.load_judge`.

    Args:
        source: the base.
        settings: the settings of the run.
        platform: where it trains.
        adapter: attach the adapter; else this is the model of the evaluation, in float32.
        checkpointed: keep only the inputs of layers (`activation_checkpointing`).

    Attributes:
        linear: the base's linear layers but the head.
        shared_head: weights of the head if it shares those of the embedding, else 0.
        adapters: parameters of each tensor of the adapter.
        frozen: parameters of the base.
        why_no_tree: why rows cannot be packed as trees; None if they can.
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
        self._counted: dict[tuple[tuple[Pass, Pack], ...], Held] = {}
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
    def _runners(self) -> list[tuple[int, "_Runner"]]:
        layers = self.config.num_hidden_layers
        depths = DEPTHS if layers > max(DEPTHS) else (layers,)
        return [(n, _Runner(self._build(n), self.platform, self.checkpointed)) for n in depths]

    def held(self, passes: Sequence[tuple[Pass, Pack]]) -> Held:
        """Return what these passes hold, one after the other in one process."""
        if (key := tuple(passes)) not in self._counted:
            self._counted[key] = self._count(passes)
        return self._counted[key]

    def _count(self, passes: Sequence[tuple[Pass, Pack]]) -> Held:
        meters = []
        for depth, runner in self._runners:
            meter = runner.meter()
            for kind, pack in passes:
                runner.run(pack, meter, kind)
            meters.append((depth, meter))
        (shallow, low), (deep, high) = meters[0], meters[-1]
        more = (self.config.num_hidden_layers - deep) / max(deep - shallow, 1)
        return Held(
            peak=round(high.peak + more * (high.peak - low.peak)),
            top=round(high.top + more * (high.top - low.top)),
            logits=high.logits,
        )


def _meta_model(
    source: ModelSource, settings: Settings, platform: Platform, adapter: bool, layers: int | None
) -> Any:
    """Build the model on the meta device, with all or the first `layers` of its layers."""
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
        self.mixed = any(platform.autocast.values())
        # Meta tensors are ten times faster. But autocast ignores them, and SDPA takes its plain
        # path for them, which keeps more than that of any device.
        meta = platform.attention == BLOCKS and not self.mixed
        self.mode: Any = torch.device("meta") if meta else FakeTensorMode()
        self.model = _without_storage(model, self.mode)
        self.vocabulary = core(model).config.get_text_config().vocab_size
        if platform.weights == "nf4":
            for module in linear_layers(model):
                module.forward = partial(  # type: ignore[method-assign]
                    _Dequantized.linear, module.weight.shape, platform.compute_dtype
                )
        if checkpointed:
            self.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )

    def meter(self) -> Meter:
        """Return a meter for passes of this model, without its weights and their gradients."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        gradients = [w.grad for w in self.model.parameters() if w.grad is not None]
        return Meter(weights + gradients, self.vocabulary, self.platform.max_kept)

    def run(self, pack: Pack, meter: Meter, kind: Pass) -> None:
        """Run one pass over `pack`.

        Args:
            pack: its size.
            meter: counts what the pass holds.
            kind: "training" is forward and backward, "loss" that of a validation, "reading" that of
                verdicts (`tree_reading`), whose keys and values are kept until its end.
        """
        training = kind == "training"
        self.model.train(training)
        cache = DynamicCache() if kind == "reading" else None
        # FakeTensorMode's tensors say that they are on a CPU, also those of a GPU's autocast.
        autocast = torch.autocast("cpu", self.platform.compute_dtype, enabled=self.mixed)
        with self.mode, meter, torch.set_grad_enabled(training), autocast:
            inputs = self._inputs(pack)
            positions = torch.zeros(pack.logit_positions, dtype=torch.long)
            with last_mlp_only_at(self.model, positions[: pack.tokens]):
                logits = self.model(
                    **inputs,
                    logits_to_keep=positions,
                    past_key_values=cache,
                    use_cache=cache is not None,
                ).logits
            if cache is None:  # as in `trainer.summed_loss`
                loss = F.cross_entropy(logits.float().flatten(0, 1), positions, reduction="sum")
            if training:
                del logits
                loss.backward()  # type: ignore[no-untyped-call]

    def _inputs(self, pack: Pack) -> dict[str, Any]:
        ids = torch.zeros(1, pack.tokens, dtype=torch.long)
        mask = torch.ones(1, 1, pack.tokens, pack.tokens, dtype=torch.bool)
        inputs: dict[str, Any] = {"input_ids": ids, "position_ids": ids.clone()}
        inputs["attention_mask"] = as_attention_mask(mask, self.model)
        if core(self.model).config._attn_implementation == BLOCKS:
            # Blocks are computed one after the other, so the largest stands for all of them; but
            # the masks of all are held. A block sees what its tokens see, and half of its square.
            size = min(MAX_BLOCK, pack.tokens)
            keys = torch.zeros(min(pack.longest + size, pack.tokens), dtype=torch.long)
            area = min(pack.seen + pack.tokens * MAX_BLOCK // 2, pack.tokens**2)
            masks = torch.zeros(max(area, size * len(keys)))
            mask = masks[: size * len(keys)].view(size, len(keys))
            inputs["blocks"] = [Block(0, size, keys, mask)]
        return inputs


def linear_layers(model: Any) -> list[torch.nn.Linear]:
    """Return the base's linear layers but the head, which are those that NF4 quantizes."""
    plain = core(model)
    head = plain.get_output_embeddings()
    return [
        module
        for name, module in plain.named_modules()
        if type(module) is torch.nn.Linear and module is not head and "lora_" not in name
    ]


def _shared_head(model: Any) -> int:
    """Return the number of weights that the head shares with the embedding; 0 if it has its own."""
    plain = core(model)
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    shared = head is not None and head.weight is embedding.weight
    return int(head.weight.numel()) if shared else 0


def _without_storage(model: Any, mode: Any) -> Any:
    """Replace the tensors of a model by ones of `mode`: on "meta", or fake ones on the CPU."""
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
            if parameter.requires_grad:  # a gradient outlives the pass, and is counted by itself
                parameter.grad = torch.empty_like(parameter)
    return model


class _Dequantized(torch.autograd.Function):
    """A matmul with an NF4 weight, with the allocations of MatMul4Bit of bitsandbytes.

    The weight exists in the compute dtype while it is multiplied, forward and backward, but not in
    between.
    """

    @staticmethod
    def linear(shape: torch.Size, dtype: torch.dtype, x: torch.Tensor) -> Any:
        """Multiply `x` with a weight of this shape; a layer's forward."""
        return _Dequantized.apply(x, shape, dtype)  # type: ignore[no-untyped-call]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        ctx.shape, ctx.dtype, ctx.of_input = shape, dtype, x.dtype
        return F.linear(x.to(dtype), torch.empty(shape, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        weight = torch.empty(ctx.shape, dtype=ctx.dtype).to(gradient.dtype)
        return torch.matmul(gradient, weight).to(ctx.of_input), None, None
