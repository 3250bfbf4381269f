"""Near duplicates among inputs and candidates, and the rows that a split must keep together.

Two texts are near duplicates if the Levenshtein similarity of their words, without case, accents
and punctuation, is at least `near`. MinHash LSH proposes pairs; each of them is then verified.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pt_app.core.errors import UserError
from pt_app.core.leaks import MAX_INPUTS, Field, boilerplate_of, input_text, is_telling, texts_of
from pt_app.core.records import JudgeExample
from pt_app.core.words import normalised, words_of
from pt_app.judge_data.options import NEAR

FIELDS: tuple[Field, ...] = ("source", "candidate")
# 16 bands of 4 hashes over words and pairs of words: LSH misses two texts of 20 words that differ
# in one word (Jaccard 0.86) 4 times in a million, and in two words (0.73) in half a per cent.
BANDS, HASHES = 16, 4
# In a cluster this large a further text is compared with the indexed members and not indexed
# itself: otherwise thousands of variants of one text would cost the square of their number.
MAX_INDEXED = 50
Edge = tuple[int, int, float]


class NearPair(NamedTuple):
    """Two rows, by their positions, whose texts in one field are near duplicates."""

    field: Field
    a: int
    b: int
    text: str
    similarity: float


def near_edges(keys: Sequence[str], near: float, what: str = "texts") -> Iterator[Edge]:
    """Yield pairs of near duplicates among different normalised texts, with their similarity.

    The pairs are the edges of a forest: each one joins two clusters, so every text ends up in the
    cluster of its near duplicates, and no cluster is reported twice. With `near` 1 there are none.
    """
    from datasketch import MinHash, MinHashLSH
    from rapidfuzz.distance import Levenshtein
    from scipy.cluster.hierarchy import DisjointSet

    # A text with fewer words than this cannot differ from another text and still be near it.
    min_words = 1 / (1 - near) - 1e-9 if near < 1 else float("inf")
    blank = MinHash(num_perm=BANDS * HASHES, hashfunc=int)  # copied: its permutations are slow
    index = MinHashLSH(num_perm=BANDS * HASHES, params=(BANDS, HASHES))
    clusters = DisjointSet(range(len(keys)))
    indexed = Counter[int]()  # by the root of a cluster
    for i, key in enumerate(tqdm(keys, desc=f"near duplicates: {what}", delay=2)):
        words = words_of(key)
        if len(words) < min_words:
            continue
        signature = blank.copy()
        signature.update_batch(_hashes(words))
        for j in sorted(index.query(signature)):
            if clusters.connected(i, j):
                continue
            other = words_of(keys[j])
            similarity = Levenshtein.normalized_similarity(words, other, score_cutoff=near)
            if similarity >= near:
                size = indexed[clusters[i]] + indexed[clusters[j]]
                clusters.merge(i, j)
                indexed[clusters[i]] = size
                yield j, i, similarity
        if indexed[clusters[i]] < MAX_INDEXED:
            index.insert(i, signature, check_duplication=False)
            indexed[clusters[i]] += 1


def _hashes(words: Sequence[str]) -> list[int]:
    """Hash the words of a text, and its pairs of neighbouring words."""
    hashes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    single = np.array(hashes, dtype=np.uint32)
    # Odd multipliers mix the two words of a pair; the arithmetic wraps around at 2^32.
    pairs = single[:-1] * np.uint32(0x9E3779B1) + single[1:] * np.uint32(0x85EBCA77)
    return [*single.tolist(), *pairs.tolist()]


def near_pairs(examples: Sequence[JudgeExample], near: float = NEAR) -> list[NearPair]:
    """Find rows whose inputs, or whose long candidates, are near duplicates but not equal.

    Candidates whose cluster occurs with more than MAX_INPUTS inputs are boilerplate, and left
    out. Raises UserError for a `near` that is not above 0.5 and at most 1.
    """
    if not 0.5 < near <= 1:
        raise UserError(f"--near is {near}: choose a share of words above 0.5 and at most 1")
    pairs: list[NearPair] = []
    for field in FIELDS:
        rows = _rows_by_text(examples, field)
        keys = sorted(rows)  # so that the pairs do not depend on the order of the rows
        edges = list(near_edges(keys, near, f"{field}s"))
        if field == "candidate":
            edges = _without_boilerplate(edges, [rows[key] for key in keys], examples)
        for a, b, similarity in edges:
            pairs.append(NearPair(field, rows[keys[a]][0], rows[keys[b]][0], keys[b], similarity))
    return pairs


def _rows_by_text(examples: Sequence[JudgeExample], field: Field) -> dict[str, list[int]]:
    """Map the normalised texts of a field to their rows; short candidates are left out."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        for text in texts_of(example, field):
            key = normalised(text)
            if key and (field == "source" or is_telling(key)):
                rows[key].append(row)
    return rows


def _without_boilerplate(
    edges: Sequence[Edge], rows: Sequence[Sequence[int]], examples: Sequence[JudgeExample]
) -> list[Edge]:
    """Drop the edges of clusters that occur with many inputs; `rows` are those of each text."""
    from scipy.cluster.hierarchy import DisjointSet

    clusters = DisjointSet(range(len(rows)))
    for a, b, _ in edges:
        clusters.merge(a, b)
    inputs: dict[int, set[str]] = defaultdict(set)
    for key in {end for a, b, _ in edges for end in (a, b)}:
        inputs[clusters[key]] |= {normalised(input_text(examples[row])) for row in rows[key]}
    return [edge for edge in edges if len(inputs[clusters[edge[0]]]) <= MAX_INPUTS]


def links(examples: Sequence[JudgeExample], near: float = NEAR) -> list[tuple[int, int]]:
    """List pairs of rows that must be in one split, since a check would call them a leak.

    They share an input or a long candidate, exactly or but for case, accents, punctuation or a few
    words.
    """
    boilerplate = boilerplate_of(examples)
    pairs: list[tuple[int, int]] = []
    for field in FIELDS:
        for key, (first, *others) in _rows_by_text(examples, field).items():
            if field == "source" or key not in boilerplate:
                pairs += [(first, row) for row in others if row != first]
    return pairs + [(pair.a, pair.b) for pair in near_pairs(examples, near)]
