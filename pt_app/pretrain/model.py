"""The tiny Qwen2 and its tokenizer: trained from text, started at random, written to disk."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from pt_app.core.files import give_mode_of
from pt_app.models.bases import check_base_folder, read_tokenizer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_LENGTH = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train on `texts` and return a `Qwen2Tokenizer` of at most `vocab_size` entries.

    It has fewer where the text has no more pairs that occur twice: one that occurs once teaches
    nothing, and its embedding stays as it was drawn.

    All 256 bytes are in the vocabulary, so every text can be encoded. AutoTokenizer turns each
    tokenizer of model type qwen2 into this class, which puts its own normalizer and
    pre-tokenizer in place of the file's: training uses the class's own, so that ids agree.
    """
    bpe = Qwen2Tokenizer().backend_tokenizer
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = Qwen2Tokenizer(
        vocab=bpe.get_vocab(),
        merges=[tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        model_max_length=MAX_LENGTH,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


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


def load(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model of a folder, ready to be read, and its tokenizer.

    Raises UserError for a file that is missing or damaged.
    """
    check_base_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    return model, read_tokenizer(folder)


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
