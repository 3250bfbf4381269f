"""The trainings from scratch, each from its flags to the folder of its model."""

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.pretrain import mixtures, shapes
from pt_app.pretrain.batches import TokenSteps, in_order, steps_in
from pt_app.pretrain.conversations import ConversationSteps
from pt_app.pretrain.loss import HeldOut, NextTokens
from pt_app.pretrain.model import END_OF_TEXT
from pt_app.pretrain.settings import (
    BaseSettings,
    Gpt2Settings,
    MidSettings,
    SmallSettings,
    TokenizerSettings,
    decisive,
)
from pt_app.pretrain.shards import MANIFEST, TOKENIZER, Shards, open_shards, pieces_of
from pt_app.pretrain.stages import Parts, Plan, run_stage
from pt_app.pretrain.vocabulary import make_tokens
from pt_app.tracking.access import has_tensorboard
from pt_app.training.loop import Model


def base_train(settings: BaseSettings) -> Path:
    """Train a base of `--depth` layers on the tokens of scripts.tok_train; return its folder."""
    data, final = Path(settings.data_dir), Path(settings.model_dir) / "base"
    facts = decisive(settings) | _tokens(data)

    def build(objective: NextTokens) -> Parts:
        tokenizer, shards = _opened(data)
        config = shapes.qwen3(settings.depth, len(tokenizer), settings.max_seq_len)
        sizes = shapes.Sizes.of(config, settings.max_seq_len)
        ratio, batch_tokens = settings.tokens_per_parameter, settings.total_batch_size
        total = settings.num_iterations or sizes.steps(ratio, batch_tokens)
        shape = batch_tokens, settings.max_seq_len, total, settings.seed
        steps = TokenSteps(shards.train, *shape, settings.device_batch_size)
        return _text_parts(
            new_model(config, tokenizer, settings.seed), tokenizer, shards, steps, objective
        )

    return run_stage(Plan("base", settings, facts, _working(final), final), build)


def chat_train(settings: MidSettings) -> Path:
    """Train mid or sft on the answers of conversations; return the folder of the stage."""
    source = Path(settings.source)
    if not (source / "config.json").is_file():
        source = Path(settings.model_dir) / settings.source
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise UserError(f"--source {settings.source}: {source} holds no model: train it before")
    sides = mixtures.split(mixtures.read(settings.mixture, settings.seed))
    facts = decisive(settings) | {"parent": sha256_file(*weights)}
    facts |= {"conversations": mixtures.digest([*sides[0], *sides[1]])}
    final = Path(settings.model_dir) / settings.stage

    def build(objective: NextTokens) -> Parts:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        longest = model.config.max_position_embeddings
        if settings.max_seq_len > longest:
            raise UserError(
                f"--max_seq_len {settings.max_seq_len}: {source} reads {longest} tokens at most"
            )
        steps, val = (
            ConversationSteps.of(
                tokenizer,
                side,
                batch_tokens=settings.total_batch_size,
                sequence=settings.max_seq_len,
                micro_batch=settings.device_batch_size,
                seed=settings.seed,
            )
            for side in sides
        )
        lengths = np.array([len(piece) for piece in pieces_of(tokenizer)])
        total = settings.num_iterations or math.ceil(settings.num_epochs * len(steps))
        held_out = HeldOut(val.in_order, lengths, objective)
        return Parts(model, tokenizer, steps, total, steps.batch * steps.width, held_out)

    return run_stage(Plan(settings.stage, settings, facts, _working(final), final), build)


def train_gpt2(settings: Gpt2Settings) -> Path:
    """Train GPT-2 124M with its own vocabulary on a text; return its folder."""
    data = Path(settings.output_dir) / "tokens"
    wanted = TokenizerSettings(text=settings.train_data, split=settings.split, data_dir=str(data))
    make_tokens(replace(wanted, vocabulary="gpt2"))
    return _train_text("gpt2", settings, settings.seq_length, data, shapes.gpt2())


def train_small(settings: SmallSettings) -> Path:
    """Train a small model on a text, with the tokenizer that is there or a new one."""
    data, folder = Path(settings.output_dir) / "tokens", Path(settings.tokenizer).parent
    wanted = TokenizerSettings(text=settings.train_data, split=settings.split, data_dir=str(data))
    there = (folder / "tokenizer_config.json").is_file()
    given = AutoTokenizer.from_pretrained(folder) if there else None
    made = make_tokens(replace(wanted, vocab_size=settings.vocab_size), given)
    if not there and console.is_main_process():
        shutil.copytree(data / TOKENIZER, folder, dirs_exist_ok=True)
    if settings.hidden_size % settings.num_heads:
        raise UserError(
            f"--hidden_size {settings.hidden_size} is no multiple of --num_heads "
            f"{settings.num_heads}: change one of them"
        )
    config = shapes.qwen3(1, made.vocabulary, settings.max_seq_length)
    config.update(
        {
            "hidden_size": settings.hidden_size,
            "intermediate_size": settings.intermediate_size,
            "num_hidden_layers": settings.num_layers,
            "num_attention_heads": settings.num_heads,
            "num_key_value_heads": settings.num_heads,
            "head_dim": settings.hidden_size // settings.num_heads,
            "layer_types": ["full_attention"] * settings.num_layers,
        }
    )
    return _train_text("small", settings, settings.max_seq_length, data, config)


def _train_text(
    name: str,
    settings: Gpt2Settings | SmallSettings,
    sequence: int,
    data: Path,
    config: PretrainedConfig,
) -> Path:
    """Train in passes over a text, and keep the best weights; `data` holds its tokens."""
    batch = settings.batch_size * settings.gradient_accumulation_steps * console.ranks()
    facts = decisive(settings) | _tokens(data) | {"tokens_per_step": batch * sequence}

    def build(objective: NextTokens) -> Parts:
        tokenizer, shards = _opened(data)
        total = steps_in(settings.num_epochs, shards.train, batch * sequence)
        shape = batch * sequence, sequence, total, settings.seed, settings.batch_size
        steps = TokenSteps(shards.train, *shape)
        model = new_model(config, tokenizer, settings.seed)
        return replace(_text_parts(model, tokenizer, shards, steps, objective), prompt="\n")

    log_dir = settings.log_dir or (str(data.parent) if has_tensorboard() else "")
    plan = Plan(
        name,
        settings,
        facts,
        work=data.parent,
        final=Path(settings.final_dir),
        resume=Path(settings.resume) if settings.resume else None,
        keep_best=True,
        log_dir=Path(log_dir) if log_dir else None,
    )
    return run_stage(plan, build)


def _working(final: Path) -> Path:
    """Return the folder of a stage's checkpoints."""
    return final.with_name(f"{final.name}.training")


def _tokens(data: Path) -> dict[str, object]:
    """Return the hash of the manifest of the tokens, which has those of the shards."""
    return {"tokens": sha256_file(data / MANIFEST)}


def _opened(data: Path) -> tuple[PreTrainedTokenizerBase, Shards]:
    tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZER)
    return tokenizer, open_shards(data, tokenizer)


def new_model(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Model:
    """Make a float32 model of random weights, whose answers end where a turn or a text does."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)}
    pad = min(ends) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, pad
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(ends), pad_token_id=pad, do_sample=False
    )
    return model


def _text_parts(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    shards: Shards,
    steps: TokenSteps,
    objective: NextTokens,
) -> Parts:
    """Return the parts of a training on shards of text, validated on their whole val split."""
    batches = partial(in_order, shards.val, steps.sequence, steps.micro_batch)
    held_out = HeldOut(batches, shards.token_bytes, objective)
    return Parts(model, tokenizer, steps, len(steps), steps.batch_tokens, held_out)
