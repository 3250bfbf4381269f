"""The shapes of models from scratch, counted against published and hand-counted figures."""

import pytest

from pt_app.pretrain.shapes import Sizes, gpt2, qwen3


def test_gpt2_has_the_parameters_of_the_published_model() -> None:
    sizes = Sizes.of(gpt2())
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
    assert Sizes.of(qwen3(depth, vocab, 1024)).parameters == parameters


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_is_a_valid_shape(depth: int) -> None:
    config = qwen3(depth, 512, 256)
    assert config.hidden_size == 64 * depth == config.num_attention_heads * config.head_dim
    assert 0 <= config.intermediate_size - config.hidden_size * 8 / 3 < 64
    assert config.intermediate_size % 64 == 0


def test_steps_follow_from_tokens_per_parameter() -> None:
    sizes = Sizes(parameters=300, matrices=100, head=60)
    assert sizes.steps(10, 32) == 50
    assert sizes.steps(10, 33) == 49
    assert sizes.steps(0.0001, 1024) == 1
