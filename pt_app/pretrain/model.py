"""A model from scratch: made with random weights, or loaded from the folder of a stage."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pt_app.models.bases import check_base_folder, read_tokenizer
from pt_app.models.new_tokenizer import END_OF_TEXT
from pt_app.training.loop import Model


def new_model(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Model:
    """Make a float32 model of random weights, whose answers end where a turn or a text does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    text_end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    end = text_end if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    pad = min(end, text_end) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = end, pad
    answers = {"eos_token_id": sorted({end, text_end}), "pad_token_id": pad, "do_sample": False}
    model.generation_config = GenerationConfig(**answers)
    return model


def load(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model of a folder, ready to be read, and its tokenizer.

    Raises UserError for a file that is missing or damaged.
    """
    check_base_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    return model, read_tokenizer(folder)
