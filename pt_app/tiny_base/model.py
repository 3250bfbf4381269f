"""The tiny Qwen2: started at random, grown by a layer, written to disk."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from pt_app.core.files import give_mode_of
from pt_app.models.new_tokenizer import MAX_LENGTH, TURN_END


def new_model(
    tokenizer: PreTrainedTokenizerBase, width: int, layers: int, seed: int
) -> Qwen2ForCausalLM:
    """Make a float32 model with random weights.

    The output matrix is that of the embeddings, which saves a quarter of the parameters.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def grow(model: Qwen2ForCausalLM, seed: int) -> None:
    """Put one more layer on top, in place, which at first changes nothing.

    Its output projections start at zero. The layers below have learned to compare word with word
    by then; the new one finds their result ready and can gather it over a sentence.
    """
    torch.manual_seed(seed)
    config = model.config
    config.layer_types.append("full_attention")
    layer = Qwen2DecoderLayer(config, config.num_hidden_layers)
    for name, weight in layer.named_parameters():
        if "o_proj" in name or "down_proj" in name or name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        elif weight.ndim == 2:
            torch.nn.init.normal_(weight, std=config.initializer_range)
    model.model.layers.append(layer)
    config.num_hidden_layers += 1


def round_to_float16(model: torch.nn.Module) -> None:
    """Round all weights, in place, to what the float16 file will hold."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights in float16, configuration, tokenizer and chat template; greedy by default."""
    model.generation_config.do_sample = False
    model.to(torch.float16).save_pretrained(folder)
    model.to(torch.float32)
    tokenizer.save_pretrained(folder)
    give_mode_of(folder / "config.json", folder.glob("*.safetensors"))
