"""GGUF files of a judge: merged into its base, or as a LoRA beside it. Qwen2 and Llama shapes.

Names of tensors are the `gguf` package's. What llama.cpp would compute otherwise is refused.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from pt_app.core.errors import UserError
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.serving.options import Dtype

Types = gguf.GGMLQuantizationType
TYPES = {"float32": Types.F32, "float16": Types.F16, "bfloat16": Types.BF16, "q8_0": Types.Q8_0}
FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "llama": gguf.MODEL_ARCH.LLAMA}
# Fields of adapter_config.json that llama.cpp does not read: it scales by lora_alpha / r alone.
UNREAD = ["use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"]
UNREAD += ["lora_bias", "layer_replication", "fan_in_fan_out"]
# tokenizer.ggml.pre, by what a tokenizer.json splits texts with; `judge parity` compares the ids.
QWEN2_SPLIT, LLAMA3_SPLIT = r"|\p{N}|", r"\p{N}{1,3}"


def check_shape(config: Any) -> None:
    """Raise UserError for a model that the writer does not know, or llama.cpp reads otherwise."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"--to gguf: models of type {config.model_type} are not written: {known}")
    found = {
        "rotary scaling": config.rope_parameters.get("rope_type", "default") != "default",
        "a bias": config.model_type == "llama" and getattr(config, "attention_bias", False),
        "a window": getattr(config, "use_sliding_window", False),
    }
    if unwritten := [what for what, there in found.items() if there]:
        raise UserError(f"--to gguf: {unwritten[0]} is not written: use merged")


def check_lora(info: AdapterInfo) -> None:
    """Raise UserError for an adapter that llama.cpp would scale wrong, or read in part."""
    unread = [name for name in UNREAD if info.config.get(name)]
    if info.config.get("bias", "none") != "none":
        unread.append("bias")
    if unread:
        problem = f"llama.cpp does not read {', '.join(unread)} of {bases.ADAPTER_CONFIG}"
        raise UserError(f"--to gguf-lora: {problem}: use --to gguf, which merges")


def write_model(model: Any, folder: Path, file: Path, dtype: Dtype, name: str) -> None:
    """Write a model and the tokenizer of an adapter's folder as one GGUF file."""
    config = model.config
    check_shape(config)
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config.vocab_size)
    for key, tensor in _tensors(model.state_dict(), config):
        kind = TYPES[dtype] if tensor.ndim > 1 and tensor.shape[-1] % 32 == 0 else Types.F32
        writer.add_tensor(key, gguf.quantize(tensor, kind), raw_dtype=kind)
    _write(writer)


def write_lora(info: AdapterInfo, config: Any, file: Path) -> None:
    """Write the weights of an adapter as a GGUF file that goes beside that of its base."""
    check_shape(config)
    check_lora(info)
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(info.config["lora_alpha"]))
    names = _names(config)
    for key, tensor in sorted(load_file(info.folder / adapters.WEIGHTS).items()):
        module, _, which = key.removeprefix("base_model.model.").partition(".lora_")
        known = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if known is None or which not in ("A.weight", "B.weight"):
            raise UserError(f"--to gguf-lora: {key} has no name in a GGUF file: use --to gguf")
        weight = tensor.numpy()
        if which == "B.weight":  # its rows are those of the layer's weight
            weight = _permuted(module, weight, config)
        writer.add_tensor(f"{known}.lora_{which[0].lower()}", weight)
    _write(writer)


def _add_shape(writer: "gguf.GGUFWriter", config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: "gguf.GGUFWriter", folder: Path, size: int) -> None:
    """Write a byte-level BPE tokenizer; raises UserError for another kind."""
    tokenizer = bases.load_tokenizer(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(content["decoder"]):
        raise UserError("--to gguf: only byte-level BPE tokenizers are written: use merged or mlx")
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, place in model["vocab"].items():
        tokens[place], types[place] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(content))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "pad"):
        if (place := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(place)
    writer.add_add_bos_token(False)  # the chat template writes what it needs
    writer.add_chat_template(tokenizer.chat_template)


def _splitting(content: Mapping[str, Any]) -> str:
    split = json.dumps(content["pre_tokenizer"], ensure_ascii=False).replace("\\\\", "\\")
    if LLAMA3_SPLIT in split:
        return "llama-bpe"
    if QWEN2_SPLIT in split:
        return "qwen2"
    return "smollm" if '"Digits"' in split else "gpt-2"


def _names(config: Any) -> Any:
    return gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)


def _tensors(
    state: Mapping[str, torch.Tensor], config: Any
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the tensors of a model by their names in a GGUF file, in float32."""
    names = _names(config)
    for key, tensor in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"--to gguf: {key} has no name in a GGUF file: use merged")
        weight = tensor.detach().float().contiguous().numpy()
        yield name, _permuted(key, weight, config)


def _permuted(name: str, weight: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """Put the rows of Llama's q and k in llama.cpp's order: rotary pairs beside each other."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    own = next((count for part, count in heads.items() if part in name), None)
    if own is None or config.model_type != "llama":
        return weight
    halves = weight.reshape(own, 2, weight.shape[0] // own // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _write(writer: "gguf.GGUFWriter") -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
