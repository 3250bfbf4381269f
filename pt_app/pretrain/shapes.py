"""The shapes of models from scratch: one dial of depth, GPT-2, and the steps that a shape needs."""

import math

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen3Config

from pt_app.training.optimizers import divided

WIDTH_PER_LAYER = 64
# A separate head pays where the layers outweigh it, and so do heads of 128: below that a model of
# four layers would spend its weights on the vocabulary, and have two heads.
LARGE = 12


def qwen3(
    depth: int, vocab: int, max_length: int, width: int = 0, heads: int = 0, mlp: int = 0
) -> Qwen3Config:
    """Return the shape of a depth: all of it follows from the number of layers.

    The width is 64 per layer. A SwiGLU layer has three matrices where the classic one has two of
    four times the width, hence its 8/3 (Shazeer 2020, arXiv:2002.05202), rounded up to 64.

    Args:
        depth: number of layers.
        vocab: number of tokens of the tokenizer.
        max_length: longest sequence, in tokens.
        width, heads, mlp: numbers that do not follow from the depth: the width, the attention heads
            and the width of the MLPs.
    """
    width, large = width or WIDTH_PER_LAYER * depth, depth >= LARGE
    heads = heads or width // (128 if large and width % 128 == 0 else 64)
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp or math.ceil(width * 8 / 3 / 64) * 64,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=not large,
        bos_token_id=None,
        eos_token_id=None,
    )


def gpt2() -> GPT2Config:
    """Return the shape of GPT-2 124M, without dropout, which hurts where text is not repeated."""
    return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def steps_of(config: PretrainedConfig, tokens_per_parameter: float, batch_tokens: int) -> int:
    """Return the steps of a training on so many tokens per parameter of matrices and head.

    The head counts whether or not it is tied, since every token pays for it. Without the embeddings
    the best ratio hardly depends on the size: nanochat measured 10.5 from 1e18 to 1e19 operations
    (its dev/LOG.md, 2026-01-27).
    """
    with torch.device("meta"):  # nothing is allocated
        matrices, _ = divided(AutoModelForCausalLM.from_config(config))
    head: int = config.hidden_size * config.vocab_size
    parameters = sum(weight.numel() for weight in matrices) + head
    return max(1, math.ceil(tokens_per_parameter * parameters / batch_tokens))
