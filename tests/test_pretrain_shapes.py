"""The shapes of models from scratch, counted against published and hand-counted figures."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from pt_app.pretrain.shapes import Sizes, gpt2, qwen3


def test_gpt2_has_the_parameters_of_the_published_model() -> None:
    sizes = Sizes.of(gpt2(), 1024)
    assert sizes.parameters == 124_439_808
    assert sizes.matrices == 12 * 12 * 768**2
    assert sizes.head == 768 * 50_257


# Attention, SwiGLU and norms of each layer, the last norm, and the embeddings: twice if not tied.
D4 = 4 * (4 * 256**2 + 3 * 256 * 704 + 2 * 256 + 2 * 64) + 256 + 4096 * 256
D20 = 20 * (4 * 1280**2 + 3 * 1280 * 3456 + 2 * 1280 + 2 * 128) + 1280 + 2 * 65_536 * 1280


@pytest.mark.parametrize(("depth", "vocab", "parameters"), [(4, 4096, D4), (20, 65_536, D20)])
def test_the_dial_of_depth_gives_sizes_counted_by_hand(
    depth: int, vocab: int, parameters: int
) -> None:
    assert Sizes.of(qwen3(depth, vocab, 1024), 1024).parameters == parameters


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_is_a_valid_shape(depth: int) -> None:
    config = qwen3(depth, 512, 256)
    assert config.hidden_size == 64 * depth == config.num_attention_heads * config.head_dim
    assert 0 <= config.intermediate_size - config.hidden_size * 8 / 3 < 64
    assert config.intermediate_size % 64 == 0


def test_operations_are_those_of_the_matmuls_of_a_step() -> None:
    """The formula counts a matmul at 6 per weight; torch's own counter sees the same matmuls."""
    from torch.utils.flop_counter import FlopCounterMode

    config, tokens = qwen3(2, 512, 64), 64
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long)).logits.sum().backward()
    expected = Sizes.of(config, tokens).flops_per_token * tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_steps_follow_from_tokens_per_parameter() -> None:
    sizes = Sizes(parameters=300, matrices=100, head=60, flops_per_token=0)
    assert sizes.steps(10, 32) == 50
    assert sizes.steps(10, 33) == 49
    assert sizes.steps(0.0001, 1024) == 1
