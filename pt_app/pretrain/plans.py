"""The trainings from scratch, each from its flags to the folder of its model."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PretrainedConfig

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file, staged_folder
from pt_app.models.bases import read_tokenizer
from pt_app.pretrain import mixtures, shapes, shards
from pt_app.pretrain import settings as tables
from pt_app.pretrain.batches import TokenSteps, in_order
from pt_app.pretrain.conversations import ConversationSteps
from pt_app.pretrain.loss import HeldOut, NextTokens, check_logits
from pt_app.pretrain.model import load, new_model
from pt_app.pretrain.settings import TextSettings, decisive
from pt_app.pretrain.shards import MANIFEST, TOKENIZER, Manifest, read_manifest
from pt_app.pretrain.stages import Parts, Plan, run_stage
from pt_app.pretrain.vocabulary import make_tokens
from pt_app.tracking.access import has_tensorboard


def base_train(settings: tables.BaseSettings) -> Path:
    """Train a base of `--depth` layers on the tokens of scripts.tok_train; return its folder."""
    data, final = Path(settings.data_dir), Path(settings.model_dir) / "base"
    config = shapes.qwen3(settings.depth, read_manifest(data).vocabulary, settings.max_seq_len)
    batch, ratio = settings.total_batch_size, settings.tokens_per_parameter
    total = settings.num_iterations or shapes.steps_of(config, ratio, batch)
    steps = batch, settings.max_seq_len, total, settings.seed, settings.device_batch_size
    facts = decisive(settings) | {"tokens": sha256_file(data / MANIFEST)}
    plan = Plan("base", settings, facts, _working(final), final)
    return run_stage(plan, partial(_on_text, data, config, steps, ""))


def chat_train(settings: tables.MidSettings) -> Path:
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
        model, tokenizer = load(source)
        if settings.max_seq_len > (longest := model.config.max_position_embeddings):
            raise UserError(f"--max_seq_len: {source} reads at most {longest} tokens")
        if not tokenizer.chat_template:
            raise UserError(f"--source: {source} has no chat template: name a stage")
        check_logits(model)
        batch, rows = settings.total_batch_size, settings.device_batch_size
        shape = batch, settings.max_seq_len, rows, settings.seed
        steps, val = (ConversationSteps.of(tokenizer, side, *shape) for side in sides)
        total = settings.num_iterations or math.ceil(settings.num_epochs * len(steps))
        held_out = HeldOut(val.in_order, shards.lengths_of(shards.pieces_of(tokenizer)), objective)
        return Parts(model, tokenizer, steps, total, steps.batch * steps.width, held_out)

    return run_stage(Plan(settings.stage, settings, facts, _working(final), final), build)


def train_gpt2(settings: tables.Gpt2Settings) -> Path:
    """Train GPT-2 124M with its own vocabulary on a text; return its folder."""
    made = make_tokens(replace(_text_of(settings), vocabulary="gpt2"))
    return _train_text("gpt2", settings, settings.seq_length, made, shapes.gpt2())


def train_small(settings: tables.SmallSettings) -> Path:
    """Train a small model on a text, with the tokenizer that is there or a new one."""
    width, heads = settings.hidden_size, settings.num_heads
    if width % (2 * heads):
        problem = f"{width} is no multiple of twice --num_heads {heads}"
        raise UserError(f"--hidden_size {problem}: change one")
    file, wanted = Path(settings.tokenizer), _text_of(settings)
    folder = file.parent
    new = not folder.exists()
    whole = all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if file.name != "tokenizer.json" or not (new or whole):
        remedy = "name a tokenizer.json with its tokenizer_config.json, or one in a new folder"
        raise UserError(f"--tokenizer {file}: {remedy}")
    given = None if new else read_tokenizer(folder)
    made = make_tokens(replace(wanted, vocab_size=settings.vocab_size), given)
    if new and console.is_main_process():
        with staged_folder(folder) as staged:
            shutil.copytree(Path(wanted.data_dir) / TOKENIZER, staged, dirs_exist_ok=True)
            staged.rename(folder)
    shape = width, heads, settings.intermediate_size
    config = shapes.qwen3(settings.num_layers, made.vocabulary, settings.max_seq_length, *shape)
    return _train_text("small", settings, settings.max_seq_length, made, config)


def _text_of(settings: TextSettings) -> tables.TokenizerSettings:
    data, text = str(Path(settings.output_dir) / "tokens"), settings.train_data
    return tables.TokenizerSettings(text=text, split=settings.split, data_dir=data)


def _train_text(
    name: str, settings: TextSettings, sequence: int, made: Manifest, config: PretrainedConfig
) -> Path:
    """Train in passes over a text, and keep the best weights."""
    work = Path(settings.output_dir)
    data = work / "tokens"
    rows = settings.batch_size * settings.gradient_accumulation_steps * console.ranks()
    batch = rows * sequence
    total = max(1, math.ceil(settings.num_epochs * made.train.tokens / batch))
    steps = batch, sequence, total, settings.seed, settings.batch_size
    log_dir = settings.log_dir or (settings.output_dir if has_tensorboard() else "")
    plan = Plan(
        name,
        settings,
        decisive(settings) | {"tokens": sha256_file(data / MANIFEST), "tokens_per_step": batch},
        work=work,
        final=Path(settings.final_dir),
        resume=Path(settings.resume) if settings.resume else None,
        keep_best=True,
        log_dir=Path(log_dir) if log_dir else None,
    )
    return run_stage(plan, partial(_on_text, data, config, steps, "\n"))


def _working(final: Path) -> Path:
    """Return the folder of a stage's checkpoints."""
    return final.with_name(f"{final.name}.training")


def _on_text(
    data: Path, config: PretrainedConfig, shape: Sequence[int], prompt: str, objective: NextTokens
) -> Parts:
    """Return the parts of a training on shards of text, validated on their whole val split.

    `shape` are the fields of `TokenSteps` behind its tokens.
    """
    tokenizer = read_tokenizer(data / TOKENIZER)
    opened = shards.open_shards(data, tokenizer)
    steps = TokenSteps(opened.train, *shape)
    batches = partial(in_order, opened.val, steps.sequence, steps.micro_batch)
    held_out = HeldOut(batches, shards.lengths_of(opened.pieces), objective)
    model = new_model(config, tokenizer, steps.seed)
    return Parts(model, tokenizer, steps, len(steps), steps.batch_tokens, held_out, prompt)
