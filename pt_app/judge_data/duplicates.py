"""Near duplicates among inputs and candidates, and the rows that a split must keep together.

Two texts are near duplicates if their words, without case, accents and punctuation, are alike by
Levenshtein in a share of at least `near`. MinHash LSH proposes the pairs, each is then verified.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from pt_app.core.errors import UserError
from pt_app.core.leaks import (
    MAX_INPUTS,
    Field,
    boilerplate_of,
    input_text,
    is_telling,
    texts_of,
)
from pt_app.core.records import JudgeExample
from pt_app.core.words import normalised, words_of
from pt_app.judge_data.options import NEAR

# 16 bands of 4 hashes over words and pairs of words: of two texts of 20 words of which one differs
# (Jaccard 0.86) it misses 4 in a million; of two differing (0.73), half a per cent.
BANDS, HASHES = 16, 4
# In a cluster this large a further text is compared with those members and not indexed itself:
# thousands of variants of one text would cost the square of their number.
MAX_INDEXED = 50


@dataclass(frozen=True)
class NearPair:
    """Two rows, by their places, whose texts of a field are near duplicates."""

    field: Field
    a: int
    b: int
    text: str
    similarity: float


class Union:
    """Clusters of things by number, joined pair by pair."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """Give the cluster's representative."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, a: int, b: int) -> bool:
        """Join two clusters; False where they were one already."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)
        return a != b


def near_edges(
    keys: Sequence[str], near: float, progress: bool = False, what: str = "texts"
) -> Iterator[tuple[int, int, float]]:
    """Give pairs of near duplicates among different normalised texts, with their similarity.

    The pairs are the edges of a forest: each joins two clusters, so that every near duplicate is
    in the cluster of its like, and no cluster is told twice. `near` 1 finds none.
    """
    from datasketch import MinHashLSH
    from rapidfuzz.distance import Levenshtein

    # A text with fewer words than this cannot differ from another and still be near it.
    least = 1 / (1 - near) - 1e-9 if near < 1 else float("inf")
    index = MinHashLSH(num_perm=BANDS * HASHES, params=(BANDS, HASHES))
    sketch = _Sketch()
    clusters = Union(len(keys))
    indexed: dict[int, int] = defaultdict(int)
    for i, key in enumerate(
        tqdm(keys, desc=f"near duplicates: {what}", disable=not progress, delay=2)
    ):
        words = words_of(key)
        if len(words) < least:
            continue
        signature = sketch(words)
        for j in sorted(index.query(signature)):
            if clusters.find(i) == clusters.find(j):
                continue
            similarity = Levenshtein.normalized_similarity(
                words, words_of(keys[j]), score_cutoff=near
            )
            if similarity >= near:
                size = indexed[clusters.find(i)] + indexed[clusters.find(j)]
                clusters.join(i, j)
                indexed[clusters.find(i)] = size
                yield j, i, similarity
        if indexed[clusters.find(i)] < MAX_INDEXED:
            index.insert(i, signature, check_duplication=False)
            indexed[clusters.find(i)] += 1


class _Sketch:
    """MinHash signatures of word lists, over words and pairs of neighbours."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._first = MinHash(num_perm=BANDS * HASHES, scheme="affine32", hashfunc=int)
        self._hash: dict[str, int] = {}

    def __call__(self, words: Sequence[str]) -> Any:
        import numpy as np
        from datasketch import MinHash

        known = self._hash
        for word in words:
            if word not in known:
                known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        one = np.array([known[word] for word in words], dtype=np.uint32)
        # Odd multipliers mix the two words of a pair; products wrap around at 2^32.
        two = one[:-1] * np.uint32(0x9E3779B1) + one[1:] * np.uint32(0x85EBCA77)
        signature = MinHash(
            num_perm=BANDS * HASHES,
            permutations=self._first.permutations,
            scheme="affine32",
            hashfunc=int,
        )
        signature.update_batch(np.concatenate([one, two]).tolist())
        return signature


def near_pairs(
    examples: Sequence[JudgeExample], near: float = NEAR, progress: bool = False
) -> list[NearPair]:
    """Find rows whose inputs, or whose long candidates, are near duplicates but not equal.

    Candidates of a cluster that stands under more than MAX_INPUTS inputs are boilerplate, and
    not told. Raises UserError for a `near` that is not above 0.5 and at most 1.
    """
    if not 0.5 < near <= 1:
        raise UserError(f"--near is {near}: choose a share of words above 0.5 and at most 1")
    pairs = _field_pairs(examples, "source", near, progress)
    return pairs + _field_pairs(examples, "candidate", near, progress)


def _field_pairs(
    examples: Sequence[JudgeExample], field: Field, near: float, progress: bool
) -> list[NearPair]:
    rows: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        for text in texts_of(example, field):
            rows.setdefault(normalised(text), []).append(row)
    if field == "candidate":
        rows = {key: at for key, at in rows.items() if is_telling(key)}
    keys = sorted(rows)  # the pairs found do not hang on the rows' order
    edges = list(near_edges(keys, near, progress, f"{field}s"))
    if field == "candidate":
        edges = _without_boilerplate(edges, [rows[key] for key in keys], examples)
    return [NearPair(field, rows[keys[a]][0], rows[keys[b]][0], keys[b], s) for a, b, s in edges]


def _without_boilerplate(
    edges: list[tuple[int, int, float]],
    rows: Sequence[Sequence[int]],
    examples: Sequence[JudgeExample],
) -> list[tuple[int, int, float]]:
    clusters = Union(len(rows))
    for a, b, _ in edges:
        clusters.join(a, b)
    inputs: dict[int, set[str]] = defaultdict(set)
    for key in {end for a, b, _ in edges for end in (a, b)}:
        inputs[clusters.find(key)] |= {normalised(input_text(examples[r])) for r in rows[key]}
    return [edge for edge in edges if len(inputs[clusters.find(edge[0])]) <= MAX_INPUTS]


def links(
    examples: Sequence[JudgeExample], near: float = NEAR, progress: bool = False
) -> list[tuple[int, int]]:
    """Give pairs of rows that must be in one split, since a check would call them a leak.

    They share an input or a long candidate, but for case, accents, punctuation or a few words.
    """
    boilerplate = boilerplate_of(examples)
    pairs: list[tuple[int, int]] = []
    for field in ("source", "candidate"):
        first: dict[str, int] = {}
        for row, example in enumerate(examples):
            for text in texts_of(example, field):
                key = normalised(text)
                told = field == "source" or (is_telling(key) and key not in boilerplate)
                if key and told and first.setdefault(key, row) != row:
                    pairs.append((first[key], row))
    return pairs + [(pair.a, pair.b) for pair in near_pairs(examples, near, progress)]
