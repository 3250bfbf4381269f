"""Random models of two layers and small tokenizers, built in a second, for tests.

`make_model_folder(tmp_path)` is what most tests want: a folder that stock transformers loads.
"""

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ ns.system + message['content'] }} [/INST]"
    "{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# kind: (chat template, control tokens, bos token, end-of-turn token, digits per token)
KINDS: dict[str, tuple[str, list[str], str | None, str, int]] = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", 1),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        3,
    ),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", 1),
    "no_system": (
        NO_SYSTEM,
        ["<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<end_of_turn>",
        2,
    ),
}

TEXTS = [
    "You judge translations from English to Portuguese.",
    "Source: the old house is white.\nReference: a casa velha é branca.\nCandidate: o casa velho",
    'Issues: gender "o" -> "a"; wrong_word "casa" -> "mesa"\nFeedback: Two errors.',
    "Winner: A\nWinner: B\nWinner: tie\nVerdict: PASS\nVerdict: FAIL\n",
    *(f"Score: {score}/10\nIssues: none\nFeedback: good" for score in range(11)),
    *(f"Score: {score / 2}/10\nScore: {score % 5 + 1}/5\n" for score in range(21)),
]


def make_tokenizer(folder: Path, kind: str = "chatml", vocab_size: int = 400) -> Any:
    """Train a byte-level BPE on TEXTS, save it in `folder`, return it as loaded from there.

    `kind` is a key of KINDS. The splitting is Qwen2's own, so that "chatml" has the same ids
    whether AutoTokenizer finds a Qwen2 config beside it (it then puts Qwen2's in place) or not.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    template, control, bos, end, digits = KINDS[kind]
    pattern = PRETOKENIZE_REGEX
    if digits > 1:
        pattern = pattern.replace(r"|\p{N}|", rf"|\p{{N}}{{1,{digits}}}|")
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=control,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=end, pad_token=control[0]
    )
    tokenizer.add_special_tokens({"extra_special_tokens": control})
    tokenizer.chat_template = template
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_model(tokenizer: Any, *, seed: int = 0, **overrides: Any) -> Any:
    """A random float32 Qwen2 model (2 layers, width 32, 2 KV heads) in memory, on the CPU.

    `overrides` go to Qwen2Config. The weights are drawn wide, so that verdicts differ by row.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(Qwen2Config(**(settings | overrides))).eval()


def make_model_folder(
    folder: Path, *, kind: str = "chatml", seed: int = 0, **overrides: Any
) -> Path:
    """Save `make_model` and `make_tokenizer` in `folder` (made if missing) and return it."""
    tokenizer = make_tokenizer(folder, kind)
    make_model(tokenizer, seed=seed, **overrides).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: str, scale: str = "0-10") -> Path:
    """Save an adapter of random weights on `base`, and return its folder."""
    import torch

    from pt_app.core.prompt_templates import Template
    from pt_app.core.prompts import PromptEncoder
    from pt_app.core.verdicts import Scale
    from pt_app.models import adapters, bases

    source = bases.resolve_model(base)
    tokenizer, template = bases.load_tokenizer(source.path), Template.load("translation")
    targets = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "q_proj,v_proj,down_proj"}
    model = adapters.attach_lora(bases.load_model(source), **targets)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros, which would leave the base as it is
                torch.nn.init.normal_(weight, std=0.05)
    return adapters.save_adapter(
        model,
        PromptEncoder(tokenizer, template, Scale.from_name(scale), 512),
        folder,
        identity=bases.model_identity(source),
        training_config={},
    ).folder
