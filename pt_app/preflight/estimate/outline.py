"""Outline a model without its weights: the bytes of its parts, and what its passes hold and cost.

The code of the model itself runs, with its adapter, on meta tensors, which have a shape but no
storage, and each allocation is counted from its creation to its end. So nothing about an
architecture is guessed. docs/ESTIMATE.md lists what a layer of Qwen2 keeps without activation
checkpointing, and a test adds it up.
"""

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache, PreTrainedModel

from pt_app.core.settings import Settings
from pt_app.models import tree_attention
from pt_app.models.bases import ModelSource
from pt_app.models.platforms import Platform
from pt_app.preflight.estimate.plan import Pack
from pt_app.training.run import assemble

# Forward and backward; the loss of a validation; its verdicts (`tree_reading`), with a cache.
Pass = Literal["training", "loss", "reading"]
# Layers are alike, so each adds the same bytes to what a pass holds: this is counted on models of
# two depths and extrapolated. A pass through 36 layers would take seconds.
DEPTHS = (2, 4)


@dataclass(frozen=True)
class Held:
    """The peak of bytes that a pass holds beside the model, and those of logits among them."""

    peak: int = 0
    logits: int = 0

    @property
    def activations(self) -> int:
        """The bytes of all other tensors at the peak."""
        return self.peak - self.logits


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that are made within it, until their storage ends.

    Args:
        uncounted: tensors that exist already, such as weights.
        vocabulary: last dimension of logits.

    Attributes:
        peak: most bytes in use.
        logits: bytes of the tensors over the vocabulary at the peak.
    """

    def __init__(self, uncounted: Iterable[torch.Tensor], vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.peak = self.logits = self._now = self._logits_now = 0
        # A storage is one object for all views of it, as long as it is referenced here.
        self._uncounted = [tensor.untyped_storage() for tensor in uncounted]
        self._alive: dict[int, object] = {storage._cdata: None for storage in self._uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        logits = size if tensor.shape[-1:] == (self.vocabulary,) else 0

        def freed(_: object) -> None:
            del self._alive[key]
            self._count(-size, -logits)

        self._alive[key] = weakref.ref(storage, freed)
        self._count(size, logits)

    def _count(self, size: int, logits: int) -> None:
        self._now += size
        self._logits_now += logits
        if self._now > self.peak:
            self.peak, self.logits = self._now, self._logits_now


class Outline:
    """The model of a run without its weights, assembled as in `training.run.load_judge`.

    Args:
        source: the base.
        settings: the settings of the run.
        platform: where it computes.

    Attributes:
        linear: weights of each linear layer of the base but the head: what NF4 quantizes.
        shared_head: weights of the head if it shares those of the embedding, else 0.
        adapters: parameters of each tensor of the adapter.
        frozen: parameters of the base.
        why_no_tree: why rows cannot be packed as trees; None if they can.
    """

    def __init__(self, source: ModelSource, settings: Settings, platform: Platform) -> None:
        self.platform = platform
        model = _build(source, settings, platform)
        plain = tree_attention.core(model)
        self.config = plain.config.get_text_config()
        head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
        self.linear: list[int] = [
            layer.weight.numel()
            for name, layer in plain.named_modules()
            if type(layer) is torch.nn.Linear and layer is not head and "lora_" not in name
        ]
        shared = head is not None and head.weight is embedding.weight
        self.shared_head: int = head.weight.numel() if shared else 0
        self.adapters: list[int] = [p.numel() for p in model.parameters() if p.requires_grad]
        self.frozen: int = sum(p.numel() for p in model.parameters()) - sum(self.adapters)
        self.why_no_tree = tree_attention.why_no_tree(model, settings.max_seq_length)
        layers = self.config.num_hidden_layers
        depths = DEPTHS if layers > max(DEPTHS) else (layers,)
        self._models = [(depth, _build(source, settings, platform, depth)) for depth in depths]

    def largest(self, passes: Mapping[Pass, Sequence[Pack]]) -> Held:
        """Return what the pass with the highest peak holds, of packs by the kind of their pass."""
        # Of the packs of a kind, one with the most tokens or the most logits needs the most.
        measures = (lambda pack: pack.tokens, lambda pack: pack.logit_positions)
        made = {kind: packs for kind, packs in passes.items() if packs}
        largest = [(kind, max(packs, key=by)) for kind, packs in made.items() for by in measures]
        held = (self.held(kind, pack) for kind, pack in dict.fromkeys(largest))
        return max(held, key=lambda held: held.peak, default=Held())

    def held(self, kind: Pass, pack: Pack) -> Held:
        """Return what a pass over a pack of this size holds at its peak."""
        counted = []
        for depth, model in self._models:
            weights = [*model.parameters(), *model.buffers()]
            weights += [p.grad for p in model.parameters() if p.grad is not None]
            with torch.device("meta"), Meter(weights, self.config.vocab_size) as meter:
                _run_pass(model, kind, pack)
            counted.append((depth, meter))
        (shallow, low), (deep, high) = counted[0], counted[-1]
        more = (self.config.num_hidden_layers - deep) / max(deep - shallow, 1)
        peak = high.peak + round(more * (high.peak - low.peak))
        return Held(peak + self._more_in_nf4(pack), high.logits)

    def _more_in_nf4(self, pack: Pack) -> int:
        """Return the bytes that a pass holds besides if the base is in NF4.

        One weight at a time exists in the compute dtype (MatMul4Bit). Embeddings and norms have
        float32 (`prepare_model_for_kbit_training`), and so do the inputs of layers.
        """
        if self.platform.weights != "nf4":
            return 0
        dtype, config = self.platform.compute_dtype, self.config
        inputs: int = config.num_hidden_layers * config.hidden_size * pack.tokens
        return max(self.linear) * dtype.itemsize + inputs * (4 - dtype.itemsize)


def _build(
    source: ModelSource, settings: Settings, platform: Platform, layers: int | None = None
) -> PreTrainedModel:
    """Build the model on the meta device, with all or the first `layers` of its layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=platform.compute_dtype)
        model = assemble(model, settings, platform)
        # On meta tensors SDPA takes its plain path, which keeps more than that of any device; this
        # attention keeps the same tensors as a fused kernel.
        tree_attention.use_attention(model, tree_attention.BLOCKS)
        if settings.activation_checkpointing == "full":
            model.activation_checkpointing_enable()
        if platform.mixed_precision != "no":  # autocast ignores meta tensors
            model = model.to(platform.compute_dtype)
        for parameter in model.parameters():
            if parameter.requires_grad:  # a gradient outlives the pass, and is counted by itself
                parameter.grad = torch.empty_like(parameter)
    return model


def _run_pass(model: PreTrainedModel, kind: Pass, pack: Pack) -> None:
    """Run one pass of a model without storage over a pack of this size."""
    training = kind == "training"
    model.train(training)
    cache = DynamicCache() if kind == "reading" else None
    positions = torch.zeros(pack.logit_positions, dtype=torch.long)
    with torch.set_grad_enabled(training):
        with tree_attention.last_mlp_only_at(model, positions[: pack.tokens]):
            caching = {"past_key_values": cache, "use_cache": cache is not None}
            logits = model(**_inputs(model, pack), **caching, logits_to_keep=positions).logits
        if cache is None:  # as in `training.loss.summed_loss`
            loss = F.cross_entropy(logits.float().flatten(0, 1), positions, reduction="sum")
        if training:
            del logits
            loss.backward()  # type: ignore[no-untyped-call]


def _inputs(model: PreTrainedModel, pack: Pack) -> dict[str, object]:
    ids = torch.zeros(1, pack.tokens, dtype=torch.long)
    mask = torch.ones(1, 1, pack.tokens, pack.tokens, dtype=torch.bool)
    inputs: dict[str, object] = {"input_ids": ids, "position_ids": ids.clone()}
    inputs["attention_mask"] = tree_attention.as_attention_mask(mask, model)
    if tree_attention.core(model).config._attn_implementation == tree_attention.BLOCKS:
        # Blocks are computed one after the other, so the largest stands for all of them; but
        # the masks of all are held, each of some of the keys of its own block.
        size = min(tree_attention.BLOCK_SIZE, pack.tokens)
        keys = torch.zeros(min(pack.longest + size, pack.tokens), dtype=torch.long)
        masks = torch.zeros(pack.tokens, size)
        inputs["blocks"] = [tree_attention.Block(0, size, keys, masks[:size])]
    return inputs


@dataclass(frozen=True)
class Cost:
    """Count the floating-point operations of passes, which a test compares with FlopCounterMode.

    A weight costs two operations per token and pass (arXiv 2001.08361, section 2.1). A frozen
    weight takes part in the forward pass and in the gradient of the input, an adapter also in its
    own gradient; with `checkpointed` activations the forward pass is computed twice. Attention
    multiplies each token with the keys that it sees: twice forward, five times backward, where the
    scores are recomputed.

    Attributes:
        body: weights of all linear layers but the head.
        adapters: those of the adapters among them.
        head: weights of the head.
        attention: layers x heads x head size.
        checkpointed: activations are recomputed in the backward pass.
    """

    body: int
    adapters: int
    head: int
    attention: int
    checkpointed: bool

    @staticmethod
    def of(outline: Outline, checkpointed: bool) -> "Cost":
        """Read the sizes from the layers of the model."""
        config, heads = outline.config, outline.config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        adapters, head = sum(outline.adapters), config.hidden_size * config.vocab_size
        body, attention = sum(outline.linear) + adapters, config.num_hidden_layers * heads * size
        return Cost(body, adapters, head, attention, checkpointed)

    def forward(self, packs: Sequence[Pack]) -> float:
        """Return the operations of passes without gradients."""
        return _weighed(packs, 2 * self.body, 2 * self.head, 4 * self.attention)

    def training(self, packs: Sequence[Pack]) -> float:
        """Return the operations of passes forward and backward."""
        passes = 3 if self.checkpointed else 2  # the layers are computed again, the head is not
        body = 2 * (passes * self.body + self.adapters)
        return _weighed(packs, body, 4 * self.head, (4 * passes + 6) * self.attention)


def _weighed(packs: Sequence[Pack], per_token: float, per_logit: float, per_key: float) -> float:
    """Return the operations of packs by those of a token, a position with logits, and a key."""
    return sum(
        float(per_token * pack.tokens + per_logit * pack.logit_positions + per_key * pack.seen)
        for pack in packs
    )
