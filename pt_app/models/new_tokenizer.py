"""A byte-level tokenizer from text, which AutoTokenizer reads back as it was trained."""

import json
from collections.abc import Iterable

from tokenizers import pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

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
