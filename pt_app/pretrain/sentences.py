"""Sentences of the base's half, with errors put into them: from the grammar or from real text."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pt_app.core.files import sha256_file
from pt_app.judge_data.generator.corpus import CorpusMaterial, read_corpus
from pt_app.judge_data.generator.errors import Candidate
from pt_app.judge_data.generator.generate import GrammarMaterial
from pt_app.judge_data.generator.grammar import reserved_for_judges
from pt_app.judge_data.options import LexiconSize

HELD_OUT_SHARE = 32  # one source of so many


@dataclass(frozen=True)
class Example:
    """A source, its reference and a candidate with known differences."""

    source: str
    reference: str
    candidate: Candidate


class Sentences(Protocol):
    """Where sentences come from; `description` says it in one line."""

    description: str

    def sample(self, rng: random.Random, kinds: Sequence[str]) -> Example:
        """Draw a sentence with errors of these kinds, as far as they fit."""


class GrammarSentences:
    """All sentences the grammar can make, but for those of judges."""

    def __init__(self, size: LexiconSize) -> None:
        self._material = GrammarMaterial(size)
        self.description = f"sentences of the generator's grammar, {size} lexicon"

    def sample(self, rng: random.Random, kinds: Sequence[str]) -> Example:
        """Draw until a sentence is in the base's half."""
        while True:
            pair = self._material.grammar.sample(rng)
            if not reserved_for_judges(pair.source):
                candidate = self._material.corrupt(pair, kinds, rng)
                return Example(pair.source, pair.reference, candidate)


class RealSentences:
    """The pairs of a parallel corpus that are not reserved for judges."""

    def __init__(self, file: Path, max_words: int | None) -> None:
        pairs, _ = read_corpus(file, max_words, base=True)
        self._material = CorpusMaterial(pairs)
        self.description = f"{file.name}, sha256 {sha256_file(file)}, {len(pairs)} pairs"

    def sample(self, rng: random.Random, kinds: Sequence[str]) -> Example:
        """Draw one of the pairs."""
        pair = rng.choice(self._material.pairs)
        return Example(pair.source, pair.reference, self._material.corrupt(pair, kinds, rng))


def held_out(source: str) -> bool:
    """Whether a source is kept for measuring the base: never trained on, nor in judge data."""
    digest = hashlib.sha256(("held out " + source.casefold()).encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0
