"""Attention over a prefix tree: each token attends to its own path and to nothing else.

On every device a boolean mask through the attention interface of transformers does this. On CPUs
the queries are also divided into blocks, and each block is multiplied only with the keys that it
can see: for a rubric with four variants, three quarters of the full square are never computed.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKS = "judge_blocks"  # the name of this attention in the registry of transformers
# Queries. Smaller blocks compute fewer invisible scores, larger ones have faster matmuls.
BLOCK_SIZE = 64


@dataclass(frozen=True)
class Block:
    """A block of queries and the keys that they can see, as positions in the tree.

    Attributes:
        start: the first query.
        stop: one past the last query.
        keys: [n], the visible keys.
        mask: [queries, m], added to the scores of the last m keys: 0, or minus infinity. All
            queries see the keys before these.
    """

    start: int
    stop: int
    keys: torch.Tensor
    mask: torch.Tensor


def tree_mask(last: torch.Tensor, cached: int = 0) -> torch.Tensor:
    """Return the mask of a tree, [1, 1, t - cached, t]: query i sees key j if j <= i <= last[j].

    In depth-first order the subtree of j is the range j to last[j], and the tokens whose subtree
    holds i are the path from the root to i.

    Args:
        last: [t], the last token of the subtree of each token.
        cached: tokens at the front that are in the KV cache, and have no queries.
    """
    index = torch.arange(len(last), device=last.device)
    query = index[cached:, None]
    mask: torch.Tensor = ((index <= query) & (query <= last))[None, None]
    return mask


def blocks_of(last: torch.Tensor, cached: int = 0) -> list[Block]:
    """Divide the queries of a tree, without the first `cached` tokens, into blocks."""
    blocks = []
    for start in range(cached, len(last), BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, len(last))
        # Of the tokens before it, a block can only see the ancestors of its first token: branches
        # that begin within the block leave the path to that token.
        before = (last[:start] >= start).nonzero().flatten()
        keys = torch.cat([before, torch.arange(start, stop)])
        query = torch.arange(start, stop)[:, None]
        seen = (keys <= query) & (query <= last[keys])
        some = seen[:, int(seen.all(0).cumprod(0).sum()) :]
        mask = torch.zeros(some.shape).masked_fill_(~some, -torch.inf)
        blocks.append(Block(start, stop, keys, mask))
    return blocks


class _BlockAttention(torch.autograd.Function):
    """softmax(query key' * scale + mask) value, block by block.

    The backward pass recomputes the probabilities, so that none are kept (as FlashAttention does,
    arXiv 2205.14135): memory is linear in the length of the tree, not quadratic. The softmax's
    gradient needs the sum of probability times gradient of each row; as in that paper it is
    computed as sum(out * gradient), over D numbers per row and not T.

    Shapes: query [1, H, Q, D]; key and value [1, G, T, D], each for H / G heads (grouped-query
    attention); the queries are those of the last Q of the T tokens. Matmuls have the dtype of the
    inputs, the softmax is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        blocks: Sequence[Block],
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        for block in blocks:
            rows, queries, keys, values = _of_block(query, key, value, block)
            probabilities = _probabilities(queries, keys, scale, block)
            out[0, :, rows] = _as_heads(torch.bmm(probabilities, values), query)
        ctx.save_for_backward(query, key, value, out)
        ctx.scale, ctx.blocks = scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        query, key, value, out = ctx.saved_tensors
        to_query = torch.empty_like(query)
        # Blocks share keys, so the gradients of keys and values are sums over blocks.
        to_key, to_value = torch.zeros_like(key), torch.zeros_like(value)
        for block in ctx.blocks:
            rows, queries, keys, values = _of_block(query, key, value, block)
            outs, grads = (_as_groups(x[0, :, rows], key) for x in (out, gradient))
            probabilities = _probabilities(queries, keys, ctx.scale, block)
            to_value[0].index_add_(1, block.keys, torch.bmm(probabilities.transpose(1, 2), grads))
            sums = (grads * outs).sum(-1, keepdim=True)
            scores = torch.bmm(grads, values.transpose(1, 2)).sub_(sums).mul_(probabilities)
            scores.mul_(ctx.scale)
            to_query[0, :, rows] = _as_heads(torch.bmm(scores, keys), query)
            to_key[0].index_add_(1, block.keys, torch.bmm(scores.transpose(1, 2), queries))
        return to_query, to_key, to_value, None, None


def _of_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block: Block
) -> tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows of a block in `query`, its queries by group, and its keys and values."""
    cached = key.shape[2] - query.shape[2]  # tokens at the front that have no queries
    rows = slice(block.start - cached, block.stop - cached)
    keys, values = (tensor[0].index_select(1, block.keys) for tensor in (key, value))
    return rows, _as_groups(query[0, :, rows], key), keys, values


def _as_groups(heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Reshape [H, Q, D] to [G, H / G * Q, D]: the heads of a group share their keys."""
    return heads.reshape(key.shape[1], -1, heads.shape[-1])


def _as_heads(grouped: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Reshape [G, H / G * Q, D] back to [H, Q, D]."""
    return grouped.view(query.shape[1], -1, grouped.shape[-1])


def _probabilities(
    queries: torch.Tensor, keys: torch.Tensor, scale: float, block: Block
) -> torch.Tensor:
    scores = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(scale)
    # With a column for each key the masks of all blocks would grow with the square of the length.
    (rows, masked), (groups, number, _) = block.mask.shape, keys.shape
    scores.view(groups, -1, rows, number)[..., number - masked :].add_(block.mask)
    return torch.softmax(scores, dim=-1).to(queries.dtype)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    blocks: Sequence[Block] | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention in blocks if the forward call has some, else SDPA.

    transformers hands unknown keyword arguments of a model's forward down to its attention, which
    is how the blocks of `tree_inputs` arrive here.
    """
    if blocks is None or dropout:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return result
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = _BlockAttention.apply(query, key, value, scale, blocks)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(BLOCKS, _attend)
AttentionMaskInterface.register(BLOCKS, sdpa_mask)


def tree_inputs(
    model: PreTrainedModel,
    ids: torch.Tensor,
    positions: torch.Tensor,
    last: torch.Tensor,
    cached: int = 0,
) -> dict[str, torch.Tensor | list[Block]]:
    """Return the keyword arguments with which `model` reads a tree.

    Args:
        model: the model.
        ids: [1, q], token ids without the cached ones.
        positions: [1, q], their depths.
        last: [t], the last token of the subtree of each token, cached ones included.
        cached: tokens at the front that are in the KV cache.
    """
    inputs: dict[str, torch.Tensor | list[Block]] = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": as_attention_mask(tree_mask(last, cached), model),
    }
    if core(model).config._attn_implementation == BLOCKS:
        inputs["blocks"] = blocks_of(last, cached)
    return inputs


def as_attention_mask(seen: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Return a boolean mask [b, 1, q, t] in the form that the model's attention takes."""
    if core(model).config._attn_implementation != "eager":
        return seen
    low = torch.finfo(model.dtype).min  # eager attention adds its mask to the scores
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill_(~seen, low)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention of a model by its name in the registry of transformers.

    A model that does not use the registry, or that was loaded as "eager", keeps its own.
    """
    plain = core(model)
    own = plain.config._attn_implementation
    if own in ("sdpa", BLOCKS) and plain._can_set_attn_implementation():
        plain.set_attn_implementation(name)


@contextmanager
def last_mlp_only_at(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Compute the MLP of the last layer only at `positions` (unique), within.

    Nothing after it depends on the other positions: the keys and values are computed before it, and
    logits are needed at `positions` only. The result is exact and saves the MLP of a layer, forward
    and backward. Models whose last layer has no `mlp`, or is checkpointed, are not changed.
    """
    layers = getattr(getattr(core(model), "model", None), "layers", None) or [None]
    mlp = getattr(layers[-1], "mlp", None)
    # A checkpointed layer is recomputed in the backward pass, outside of this context.
    checkpointed = getattr(layers[-1], "gradient_checkpointing", False) and layers[-1].training
    if mlp is None or checkpointed:
        yield
        return
    whole, own = mlp.forward, vars(mlp).get("forward")

    def at_positions(hidden: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        computed = whole(hidden[:, positions])
        # The MLP of a mixture of experts may return the scores of its router, too.
        out, *others = computed if isinstance(computed, tuple) else (computed,)
        out = torch.zeros_like(hidden).index_copy(1, positions, out)
        return (out, *others) if isinstance(computed, tuple) else out

    mlp.forward = at_positions
    try:
        yield
    finally:
        del mlp.forward
        if own is not None:  # set on the instance, as gated_mlp.py does
            mlp.forward = own


def core(model: PreTrainedModel) -> PreTrainedModel:
    """Return the plain model inside a PeftModel or a launcher's wrapper."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def why_no_tree(model: PreTrainedModel, longest: int) -> str | None:
    """Return why a model cannot read trees with paths of up to `longest` tokens; None if it can.

    It needs full attention or a window that is not shorter than `longest` in every layer (one mask
    then serves them all), an attention that takes any mask, and positions that come from
    position_ids.
    """
    base = core(model)
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    if others := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(others))}"
    if window < longest:
        return f"its attention window has {window} tokens, and rows have up to {longest}"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores"
    if config._attn_implementation not in (BLOCKS, "sdpa", "eager"):
        return f"its attention, {config._attn_implementation}, takes no mask"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return "it takes no position_ids"
    return None
