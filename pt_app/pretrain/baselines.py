"""What a model from scratch has to beat: an n-gram and two compressors, in bits per byte."""

import bz2
import lzma
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ORDER = 5
LIMIT = 2**23  # bytes of training text that are enough; xz then takes some 10 s
Codes = NDArray[np.uint64]


def baselines(train: bytes, val: bytes) -> dict[str, float]:
    """Return the bits per byte of `val` given `train`, by name.

    Returns:
        "5-gram" (of bytes, which are characters in ASCII; Witten-Bell), "bz2" and "xz": by how much
        the compressed text grows where `val` follows `train`.
    """
    return {
        f"{ORDER}-gram": ngram_bits_per_byte(train, val),
        "bz2": _compressed(lambda text: bz2.compress(text, 9), train, val),
        "xz": _compressed(lambda text: lzma.compress(text, preset=9), train, val),
    }


def _compressed(compress: Callable[[bytes], bytes], train: bytes, val: bytes) -> float:
    return 8 * (len(compress(train + val)) - len(compress(train))) / max(len(val), 1)


def ngram_bits_per_byte(train: bytes, val: bytes, order: int = ORDER) -> float:
    """Return the bits per byte of an n-gram model of bytes with Witten-Bell smoothing.

    p(c | h) = (n(h, c) + t(h) p(c | h')) / (n(h) + t(h)), where t(h) is the number of distinct
    bytes after h, h' is h without its first byte, and the shortest p is 1/256 (Witten and Bell
    1991, method C).
    """
    chance = np.full(len(val), 1 / 256)
    for length in range(order):
        grams, counts = np.unique(_grams(train, length + 1), return_counts=True)
        histories, first = np.unique(grams >> np.uint64(8), return_index=True)
        seen = np.add.reduceat(counts, first) if len(first) else counts
        kinds = np.diff(np.append(first, len(grams)))
        wanted = _grams(val, length + 1)
        count = _looked_up(grams, counts, wanted)
        total = _looked_up(histories, seen, wanted >> np.uint64(8))
        distinct = _looked_up(histories, kinds, wanted >> np.uint64(8))
        # The first bytes of the text have shorter histories.
        known = np.zeros(len(val), dtype=bool)
        known[length:] = total > 0
        backed_off = chance[known]
        of = total > 0
        chance[known] = (count[of] + distinct[of] * backed_off) / (total[of] + distinct[of])
    return float(-np.log2(chance).sum() / max(len(val), 1))


def _grams(text: bytes, length: int) -> Codes:
    """Return each `length` bytes of a text as one number, the last byte lowest."""
    values = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    number = max(len(values) - length + 1, 0)
    grams: Codes = np.zeros(number, dtype=np.uint64)
    for shift in range(length):
        grams = (grams << np.uint64(8)) | values[shift : shift + number]
    return grams


def _looked_up(keys: Codes, values: NDArray[np.int64], wanted: Codes) -> NDArray[np.int64]:
    """Return the value of each wanted key, 0 for one that is not there."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
