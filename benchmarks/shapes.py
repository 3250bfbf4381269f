"""Models of well-known shapes with random weights, and what a token costs in them."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2.5 model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 151936
    tied: bool = True

    @property
    def body_weights(self) -> int:
        """Weights of all linear layers but the head: a token costs 2 FLOPs for each."""
        head = self.hidden // self.heads
        attention = self.hidden * (2 * self.hidden + 2 * self.kv_heads * head)
        return self.layers * (attention + self.mlp_weights)

    @property
    def mlp_weights(self) -> int:
        """Weights of one layer's MLP."""
        return 3 * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        """Weights of the head that gives the logits."""
        return self.hidden * self.vocabulary


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, vocabulary=4096),  # for trying the benchmark itself
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, vocabulary=49152),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2),
    "qwen2.5-3b": Shape(2048, 11008, 36, 16, 2),
}


def build(shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen2 model of this shape with seeded random weights, on the CPU."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(dtype).eval()
