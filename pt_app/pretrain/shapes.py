"""The shapes of models from scratch: one dial of depth, GPT-2, and what a shape costs."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig, Qwen3Config

WIDTH_PER_LAYER = 64
# A separate head pays where the layers outweigh it, and so do heads of 128: below that a model of
# four layers would spend its weights on the vocabulary, and have two heads.
LARGE = 12
GPT2_VOCABULARY, GPT2_CONTEXT = 50_257, 1024


def qwen3(depth: int, vocab: int, max_length: int) -> Qwen3Config:
    """Return the shape of a depth: all of it follows from the number of layers.

    The width is 64 per layer. A SwiGLU layer has three matrices where the classic one has two of
    four times the width, hence its 8/3 (Shazeer 2020, arXiv:2002.05202), rounded up to 64.

    Args:
        depth: number of layers.
        vocab: number of tokens of the tokenizer.
        max_length: longest sequence, in tokens.
    """
    width, large = WIDTH_PER_LAYER * depth, depth >= LARGE
    head = 128 if large and width % 128 == 0 else 64
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=math.ceil(width * 8 / 3 / 64) * 64,
        num_hidden_layers=depth,
        num_attention_heads=width // head,
        num_key_value_heads=width // head,
        head_dim=head,
        max_position_embeddings=max_length,
        tie_word_embeddings=not large,
        bos_token_id=None,
        eos_token_id=None,
    )


def gpt2(vocab: int = GPT2_VOCABULARY) -> GPT2Config:
    """Return the shape of GPT-2 124M, without dropout, which hurts where text is not repeated."""
    return GPT2Config(vocab_size=vocab, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@dataclass(frozen=True)
class Sizes:
    """What a shape costs.

    Attributes:
        parameters: all of them, a matrix that is used twice counted once.
        matrices: those of the matrices of the layers, which Muon trains.
        head: width x vocabulary, which every token pays whether or not the head is tied.
        flops_per_token: floating-point operations of a training step per token, 6 per weight of a
            matmul and 12 x layers x width x sequence of attention (PaLM, arXiv:2204.02311,
            appendix B).
    """

    parameters: int
    matrices: int
    head: int
    flops_per_token: int

    @staticmethod
    def of(config: PretrainedConfig, sequence: int) -> "Sizes":
        """Count a model of this shape, which is not allocated, on sequences of so many tokens."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        embeddings = {model.get_output_embeddings()}
        embeddings |= {m for m in model.modules() if isinstance(m, nn.Embedding)}
        matrices = sum(
            weight.numel()
            for module in model.modules()
            if module not in embeddings
            for weight in module.parameters(recurse=False)
            if weight.ndim == 2
        )
        width = config.num_attention_heads * getattr(config, "head_dim", 0) or config.hidden_size
        head = config.hidden_size * config.vocab_size
        attention = 12 * config.num_hidden_layers * width * sequence
        flops = 6 * (matrices + head) + attention
        return Sizes(model.num_parameters(), matrices, head, flops)

    def steps(self, tokens_per_parameter: float, batch_tokens: int) -> int:
        """Return the steps of a training on so many tokens per parameter of matrices and head.

        Without the embeddings the best ratio hardly depends on the size: nanochat measured 10.5
        from 1e18 to 1e19 operations (its dev/LOG.md, 2026-01-27).
        """
        tokens = tokens_per_parameter * (self.matrices + self.head)
        return max(1, math.ceil(tokens / batch_tokens))
