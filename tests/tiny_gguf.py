"""A random Llama of two layers as a GGUF file, as llama.cpp's converter writes one."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

from tests.tiny_models import make_tokenizer

HEADS, KV_HEADS = 4, 2


def make_llama(tokenizer: Any) -> Any:
    """A random float32 Llama whose width is a multiple of 32, the block of Q8_0, and of 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def write_gguf(
    file: Path,
    kind: str = "chatml",
    *,
    quantized: str = "F32",
    template: bool = True,
    tokenizer: bool = True,
    architecture: str = "llama",
    splitting: str = "qwen2",
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> tuple[Any, Any]:
    """Write a GGUF file; returns the model and the tokenizer that it holds.

    `quantized` is the type of its matrices; `fields` and `tensors` are written beside its own.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    own = make_tokenizer(file.parent / f"{file.stem}-tokenizer", kind)
    model = make_llama(own)
    writer = GGUFWriter(file, architecture)
    _write_config(writer, model.config)
    for key, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    if tokenizer:
        _write_tokenizer(writer, own, splitting, template)
    for name, weights in (_tensors(model) | (tensors or {})).items():
        if weights.ndim == 2 and quantized != "F32":
            kind_of = GGMLQuantizationType[quantized]
            writer.add_tensor(name, quantize(weights, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, own


def _write_config(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter, tokenizer: Any, splitting: str, template: bool) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control = set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    kinds = [TokenType.CONTROL if i in control else TokenType.NORMAL for i in range(len(tokens))]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights by llama.cpp's names; queries and keys in its order of rotary dimensions."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    written = {}
    for key, weight in model.state_dict().items():
        name = key.removeprefix("model.").replace("layers.", "blk.")
        name = name.replace("embed_tokens", "token_embd")
        name = "output_norm.weight" if name == "norm.weight" else name
        for theirs, own in names.items():
            name = name.replace(theirs, own)
        values = weight.numpy()
        for part, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS)):
            if part in name:
                split = values.reshape(heads, 2, -1, values.shape[1])
                values = split.swapaxes(1, 2).reshape(values.shape)
        if key != "lm_head.weight":  # tied
            written[name] = values
    return written
