"""Count the evaluation rows whose words occur in the text that a model was trained on."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from os.path import commonprefix

import numpy as np
from numpy.typing import NDArray

from pt_app.pretrain.tasks import TASKS, Bundle

WORDS = 13  # in sequence, as Brown et al. 2020 (arXiv:2005.14165, appendix C) took them
_WORD = re.compile(r"\w+")
# Odd, so that no information is lost modulo 2**64; the multiplier of Knuth's MMIX generator.
_FACTOR = 6364136223846793005
Codes = NDArray[np.uint64]


class Overlap:
    """Looks for the sequences of words of evaluation rows in a text that is read in pieces."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Take the rows' texts by task; a row of fewer than `WORDS` words cannot be checked."""
        self.rows = {task: [sequences(text) for text in own] for task, own in texts.items()}
        parts = [codes for own in self.rows.values() for codes in own]
        self.known = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
        self.found = np.zeros(len(self.known), bool)

    def read(self, text: str) -> None:
        """Note what occurs in a piece of text."""
        codes = sequences(text)
        if len(self.known) and len(codes):
            places = np.minimum(np.searchsorted(self.known, codes), len(self.known) - 1)
            self.found[places[self.known[places] == codes]] = True

    def counts(self) -> dict[str, dict[str, int]]:
        """Return by task the number of rows, of those checked, and of those found in the text."""
        counted = {}
        for task, own in self.rows.items():
            hits = [bool(self.found[np.searchsorted(self.known, codes)].any()) for codes in own]
            checked = sum(len(codes) > 0 for codes in own)
            counted[task] = {"rows": len(own), "checked": checked, "found": sum(hits)}
        return counted


def sequences(text: str) -> Codes:
    """Return a number for each `WORDS` words in sequence, whatever stands between them."""
    codes = np.array([_code(word) for word in _WORD.findall(text.lower())], np.uint64)
    number = max(0, len(codes) - WORDS + 1)
    total = np.zeros(number, np.uint64)
    with np.errstate(over="ignore"):
        for shift in range(WORDS):
            total = total * np.uint64(_FACTOR) + codes[shift : shift + number]
    return total


@cache
def _code(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest())


def texts_of(bundle: Bundle) -> dict[str, list[str]]:
    """Return what each row of each task asks, with its answer; worked examples left out."""
    texts = {}
    for task in TASKS["core"]:
        pairs = [row.pairs[row.gold] for row in bundle.rows(task)]
        common = commonprefix([str(context) for context, _ in pairs])  # noqa: RUF071  (of texts)
        start = common.rfind("\n\n") + 1
        texts[task] = [f"{context}{answer}"[start:] for context, answer in pairs]
    asked = bundle.questions("mmlu")
    texts["mmlu"] = [f"{each.text} {each.choices[each.gold]}" for each in asked]
    for task in ("gsm8k", "humaneval"):
        texts[task] = [problem.text for problem in bundle.problems(task)]
    return texts
