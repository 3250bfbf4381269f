"""The trainings from scratch, each from its flags to the folder of its model."""

from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from pt_app.core.files import sha256_file
from pt_app.pretrain.batches import TokenSteps, in_order
from pt_app.pretrain.loss import HeldOut, NextTokens
from pt_app.pretrain.model import END_OF_TEXT
from pt_app.pretrain.settings import BaseSettings, decisive
from pt_app.pretrain.shapes import Sizes, qwen3
from pt_app.pretrain.shards import MANIFEST, Shards, open_shards
from pt_app.pretrain.stages import Parts, Plan, run_stage
from pt_app.training.loop import Model


def base_train(settings: BaseSettings) -> Path:
    """Train a base of `--depth` layers on the shards of scripts.tok_train; return its folder."""
    data, final = Path(settings.data_dir), Path(settings.model_dir) / "base"
    facts = decisive(settings) | {"tokens": sha256_file(data / MANIFEST)}

    def build(objective: NextTokens) -> Parts:
        tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
        shards = open_shards(data, tokenizer)
        config = qwen3(settings.depth, shards.manifest.vocabulary, settings.max_seq_len)
        sizes = Sizes.of(config, settings.max_seq_len)
        total = settings.num_iterations or sizes.steps(
            settings.tokens_per_parameter, settings.total_batch_size
        )
        model = new_model(config, tokenizer, settings.seed)
        sequence, rows = settings.max_seq_len, settings.device_batch_size
        shape = settings.total_batch_size, sequence, total, settings.seed, rows
        return text_parts(model, tokenizer, shards, TokenSteps(shards.train, *shape), objective)

    return run_stage(Plan("base", settings, facts, working(final), final), build)


def working(final: Path) -> Path:
    """Return the folder of a stage's checkpoints."""
    return final.with_name(f"{final.name}.training")


def new_model(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Model:
    """Make a float32 model of random weights, whose answers end where a turn or a text does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)}
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def text_parts(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    shards: Shards,
    steps: TokenSteps,
    objective: NextTokens,
    prompt: str = "",
) -> Parts:
    """Return the parts of a training on shards of text, validated on their whole val split."""
    batches = partial(in_order, shards.val, steps.sequence, steps.micro_batch)
    held_out = HeldOut(batches, shards.token_bytes, objective)
    return Parts(model, tokenizer, steps, len(steps) * steps.batch_tokens, held_out, prompt)
