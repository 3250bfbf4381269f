"""The shapes of models from scratch, counted against published and hand-counted figures."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from pt_app.pretrain.shapes import gpt2, qwen3, steps_of


def parameters_of(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def test_gpt2_has_the_parameters_of_the_published_model() -> None:
    assert parameters_of(gpt2()) == 124_439_808


# Attention, SwiGLU and norms of each layer, the last norm, and the embeddings: twice if not tied.
D4 = 4 * (4 * 256**2 + 3 * 256 * 704 + 2 * 256 + 2 * 64) + 256 + 4096 * 256
D20 = 20 * (4 * 1280**2 + 3 * 1280 * 3456 + 2 * 1280 + 2 * 128) + 1280 + 2 * 65_536 * 1280


@pytest.mark.parametrize(("depth", "vocab", "parameters"), [(4, 4096, D4), (20, 65_536, D20)])
def test_the_dial_of_depth_gives_sizes_counted_by_hand(
    depth: int, vocab: int, parameters: int
) -> None:
    assert parameters_of(qwen3(depth, vocab, 1024)) == parameters


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_is_a_valid_shape(depth: int) -> None:
    config = qwen3(depth, 512, 256)
    assert config.hidden_size == 64 * depth == config.num_attention_heads * config.head_dim
    assert 0 <= config.intermediate_size - config.hidden_size * 8 / 3 < 64
    assert config.intermediate_size % 64 == 0


def test_steps_follow_from_tokens_per_parameter_of_matrices_and_head() -> None:
    assert steps_of(gpt2(), 1, 1) == 12 * 12 * 768**2 + 768 * 50_257
    matrices, head = 4 * 64**2 + 3 * 64 * 192, 64 * 300
    small = qwen3(1, 300, 64)
    assert steps_of(small, 10, 32) == (matrices + head) * 10 / 32
    assert steps_of(small, 10, 33) == (matrices + head) * 10 // 33 + 1
    assert steps_of(small, 0.0001, 1024) == 1
