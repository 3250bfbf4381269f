"""Tokens on disk: text becomes shards once, which trainings map into memory.

A folder of shards holds `train-00000.bin`, `val-00000.bin` and so on, plain arrays of uint16 (or of
uint32, for a vocabulary above 65,536), `manifest.json`, and the tokenizer's folder `tokenizer`.
Each document starts with a separator.
"""

import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.core.files import read_json, sha256_file
from pt_app.core.records import checked
from pt_app.judge_data.folder import replace_folder
from pt_app.models.new_tokenizer import END_OF_TEXT

Split = Literal["train", "val"]
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
SPLITS: tuple[Split, ...] = ("train", "val")
ENCODED_TOGETHER = 256  # documents
# Nothing is put around a document, its control tokens are text, and it may have any length.
AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
VAL_ONE_IN, VAL_BYTES = 32, 4_000_000
REMAKE = "make the tokens with scripts.tok_train"
OTHER_TOKENIZER = "take one of scripts.tok_train, or GPT-2's"


class Shard(BaseModel):
    """A file of a split."""

    file: str
    sha256: str
    tokens: int


class SplitFacts(BaseModel):
    """What a split holds; `bytes` are those of its text in UTF-8, separators not counted."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    shards: list[Shard] = []


class Manifest(BaseModel):
    """The facts of a folder of shards.

    Attributes:
        settings: what it was made with: where the text comes from, and how it is split.
        tokenizer: the hash of the tokenizer that made the tokens.
        vocabulary: the number of its tokens.
        dtype: the type of a token in the files.
        train, val: the splits.
    """

    settings: dict[str, Any] = {}
    tokenizer: str
    vocabulary: int
    dtype: Literal["uint16", "uint32"]
    train: SplitFacts = SplitFacts()
    val: SplitFacts = SplitFacts()


def by_hash(
    documents: Iterable[str], one_in: int = VAL_ONE_IN, max_bytes: int = VAL_BYTES
) -> Iterator[tuple[Split | None, str]]:
    """Place each document in a split by its own hash, so that equal documents stay together.

    Validation takes one document of `one_in` until it holds `max_bytes` of text; later ones are
    left out (None). It then stays the same however much text follows.
    """
    room = max_bytes
    for document in documents:
        text = document.encode()
        if int.from_bytes(hashlib.sha256(text).digest()[:8]) % one_in:
            yield "train", document
        else:
            yield ("val" if room > 0 else None), document
            room -= len(text)


def at_end(text: str, val_share: float = 0.1) -> Iterator[tuple[Split | None, str]]:
    """Split one text: its last part is for validation, as nanoGPT splits TinyShakespeare."""
    end = int(len(text) * (1 - val_share))
    yield "train", text[:end]
    yield "val", text[end:]


class Tokens:
    """The tokens of a split, over all of its shards, read where they are asked for."""

    def __init__(self, arrays: Iterable[NDArray[Any]]) -> None:
        self.arrays = list(arrays)
        self.ends = np.cumsum([len(array) for array in self.arrays]).tolist()

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.ends else 0

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return tokens `start` to `stop`, [stop - start]."""
        pieces = []
        for index in range(bisect_right(self.ends, start), len(self.arrays)):
            begin = self.ends[index] - len(self.arrays[index])
            pieces.append(self.arrays[index][max(start - begin, 0) : max(stop - begin, 0)])
            if self.ends[index] >= stop:
                break
        return np.concatenate(pieces).astype(np.int64)


@dataclass(frozen=True)
class Shards:
    """A folder of shards, open for reading.

    Attributes:
        manifest: its facts.
        train, val: the tokens of its splits.
        pieces: the bytes of text that each token stands for; none for a special token.
    """

    manifest: Manifest
    train: Tokens
    val: Tokens
    pieces: list[bytes]

    def text(self, split: Split, start: int = 0, stop: int | None = None) -> bytes:
        """Return what tokens of a split stand for, by default all: UTF-8 without separators."""
        tokens: Tokens = getattr(self, split)
        stop = len(tokens) if stop is None else min(stop, len(tokens))
        return b"".join(self.pieces[token] for token in tokens.read(start, stop).tolist())


def lengths_of(pieces: Sequence[bytes]) -> NDArray[np.int64]:
    """Return the number of bytes of each piece, [v]."""
    return np.array([len(piece) for piece in pieces])


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes that each token of a byte-level vocabulary stands for.

    Raises:
        UserError: for a tokenizer of another kind.
    """
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = tokenizer.added_tokens_decoder
    texts = ["" if i in added else token for i, token in enumerate(tokens)]
    try:
        return [bytes(byte_of[letter] for letter in text) for text in texts]
    except KeyError as error:
        raise UserError(f"the tokenizer is not a byte-level one: {OTHER_TOKENIZER}") from error


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that decides which tokens a text becomes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    decisive = {part: state[part] for part in parts}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class _Writer:
    """Writes the shards of one split."""

    def __init__(self, folder: Path, split: Split, dtype: str, shard_tokens: int) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.facts = SplitFacts()
        self.waiting, self.size = list[NDArray[Any]](), 0

    def add(self, ids: Sequence[int]) -> None:
        self.waiting.append(np.array(ids, self.dtype))
        self.size += len(ids)
        self.facts.documents += 1
        if self.size >= self.shard_tokens:
            self.flush()

    def finish(self) -> SplitFacts:
        """Write what waits, and return the facts; raises UserError if no document came."""
        self.flush()
        if not self.facts.tokens:
            shutil.rmtree(self.folder, ignore_errors=True)
            remedy = "give more documents, or take the end of the text (--split end)"
            raise UserError(f"no document is in the split {self.split}: {remedy}")
        return self.facts

    def flush(self) -> None:
        if not self.size:
            return
        content = np.concatenate(self.waiting).tobytes()
        name = f"{self.split}-{len(self.facts.shards):05}.bin"
        files.write_bytes_atomic(self.folder / name, content)
        digest = hashlib.sha256(content).hexdigest()
        self.facts.shards.append(Shard(file=name, sha256=digest, tokens=self.size))
        self.facts.tokens += self.size
        self.waiting, self.size = [], 0


def write_shards(
    placed: Iterable[tuple[Split | None, str]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    settings: Mapping[str, object] | None = None,
    shard_tokens: int = 1 << 26,
) -> Manifest:
    """Turn documents into a folder of shards, which appears whole and replaces one that is there.

    A marker such as <|im_end|> in a document is text, never a control token.

    Args:
        placed: each document with its split, from `by_hash` or `at_end`; None leaves it out.
        tokenizer: a byte-level tokenizer, whose <|endoftext|> separates documents.
        folder: the folder to write.
        settings: what the manifest should say of where the text comes from.
        shard_tokens: tokens after which a shard ends, by default 128 MiB of uint16.

    Raises:
        UserError: for a tokenizer of another kind, a split without a document, and a folder that
            cannot be written.
    """
    lengths = lengths_of(pieces_of(tokenizer))
    dtype: Literal["uint16", "uint32"] = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    if (separator := tokenizer.get_vocab().get(END_OF_TEXT)) is None:
        problem = f"the tokenizer has no {END_OF_TEXT}, which separates documents"
        raise UserError(f"{problem}: {OTHER_TOKENIZER}")
    manifest = Manifest(tokenizer=tokenizer_hash(tokenizer), vocabulary=len(tokenizer), dtype=dtype)
    manifest.settings = dict(settings or {})
    staged = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    writers = {split: _Writer(staged, split, dtype, shard_tokens) for split in SPLITS}
    kept = ((split, text) for split, text in placed if split is not None)
    while batch := list(islice(kept, ENCODED_TOGETHER)):
        encoded = tokenizer([text for _, text in batch], **AS_TEXT).input_ids
        for (split, _), ids in zip(batch, encoded, strict=True):
            writers[split].add([separator, *ids])
            writers[split].facts.bytes += int(lengths[ids].sum())
    manifest.train, manifest.val = (writers[split].finish() for split in SPLITS)
    files.write_json_atomic(staged / MANIFEST, manifest.model_dump())
    try:
        tokenizer.save_pretrained(staged / TOKENIZER)
        replace_folder(staged, folder)
    except OSError as error:
        raise UserError(files.cannot_write(folder, error)) from error
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the facts of a folder of shards; raises UserError where it is none."""
    path = folder / MANIFEST
    return checked(Manifest, read_json(path, f"is not there: {REMAKE}", REMAKE), path, REMAKE)


def open_shards(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Shards:
    """Map the shards of a folder into memory, after their hashes have been checked.

    Raises:
        UserError: if a shard is missing or is not what was written, or if another tokenizer made
            the tokens.
    """
    manifest = read_manifest(folder)
    if manifest.tokenizer != tokenizer_hash(tokenizer):
        made = f"made with another tokenizer (hash {manifest.tokenizer[:12]}...)"
        raise UserError(f"the tokens of {folder} were {made}: give its folder, or {REMAKE}")
    train, val = (
        Tokens(np.memmap(_check(folder / s.file, s), manifest.dtype, "r") for s in split.shards)
        for split in (manifest.train, manifest.val)
    )
    return Shards(manifest, train, val, pieces_of(tokenizer))


def _check(path: Path, shard: Shard) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing: {REMAKE}, or copy it")
    if (digest := sha256_file(path)) != shard.sha256:
        found = f"(sha256 {digest[:12]}..., expected {shard.sha256[:12]}...)"
        raise UserError(f"{path} is not the shard that was written {found}: copy it, or {REMAKE}")
    return path
