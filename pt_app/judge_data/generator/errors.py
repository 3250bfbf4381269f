"""Sentence pairs, and known errors put into a translation; score and comments follow from them.

score = max(0, 10 - the sum of the penalties). Errors of one candidate touch disjoint words.
"""

import hashlib
import random
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pt_app.judge_data.generator.lexicon import Word, table

PARAPHRASE = "paraphrase"
_TOKEN = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


@dataclass(frozen=True)
class ErrorKind:
    """A kind of error: what it costs on the scale of 0 to 10, and how feedback names it."""

    penalty: int
    remark: str


# The heaviest kind comes first.
KINDS = {row["kind"]: ErrorKind(int(row["penalty"]), row["remark"]) for row in table("kinds")}
ERRORS: tuple[str, ...] = tuple(name for name in KINDS if name != PARAPHRASE)


@dataclass(frozen=True)
class Pair:
    """An English sentence and its reference translation; of the grammar's, also its `words`."""

    source: str
    reference: str
    words: tuple[Word, ...] = ()


def reserved_for_judges(source: str) -> bool:
    """Return whether a source belongs to judge data: a hash of its text gives half of all to it.

    The other half is for the text a base is trained on, so no base ever saw a source of any
    judge set, whatever the seed. Case and spacing do not count.
    """
    key = " ".join(source.casefold().split())
    return hashlib.sha256(key.encode()).digest()[0] % 2 == 0


@dataclass(frozen=True)
class Issue:
    """One error: the words in the candidate and in the reference ("" where there are none)."""

    kind: str
    wrong: str
    right: str

    @property
    def text(self) -> str:
        """The error as the answer names it: `gender "o" -> "a"`, `omission "na praia"`."""
        words = [f'"{words}"' for words in (self.wrong, self.right) if words]
        return f"{self.kind} {' -> '.join(words)}"


@dataclass(frozen=True)
class Candidate:
    """A translation and the errors in it."""

    text: str
    issues: tuple[Issue, ...] = ()
    paraphrased: bool = False

    @property
    def score(self) -> int:
        """10 less the penalties, at least 0."""
        return max(0, 10 - sum(KINDS[issue.kind].penalty for issue in self.issues))

    @property
    def feedback(self) -> str:
        """One sentence that names the two heaviest kinds of error."""
        if not self.issues:
            return "No errors, another wording." if self.paraphrased else "No errors."
        kinds = {issue.kind for issue in self.issues}
        remarks = [kind.remark for name, kind in KINDS.items() if name in kinds]
        text = " and ".join(remarks[:2])
        return text[0].upper() + text[1:] + "."


def tokens(text: str) -> list[tuple[str, str, str]]:
    """Split each space-separated piece into punctuation before, word, punctuation after."""
    matches = map(_TOKEN.fullmatch, text.split())
    return [(match[1], match[2], match[3]) for match in matches if match]


def strip_accents(text: str) -> str:
    """Remove the diacritics: "lição" becomes "licao"."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


class Draft(ABC):
    """A translation while errors are put into it, at places that `rng` chooses.

    Attributes:
        texts: The words, without punctuation; "" once dropped, two or more where some were added.
        free: The positions that may still be changed.
        capital: Whether the text opens with a capital letter.
    """

    def __init__(self, reference: str, rng: random.Random) -> None:
        parts = tokens(reference)
        self.reference, self.rng = reference, rng
        self.texts = [word for _, word, _ in parts]
        self.affixes = [(before, after) for before, _, after in parts]
        self.free = set(range(len(parts)))
        self.capital = self.texts[0][:1].isupper() and not parts[0][0]
        self._dropped: set[int] = set()
        self._issues: list[Issue] = []

    @abstractmethod
    def spans(self, kind: str) -> Sequence[Sequence[int]]:
        """List the spans of neighbouring places whose words an article or omission may drop."""

    @abstractmethod
    def options(self, kind: str, at: int) -> Sequence[str]:
        """List what an error of this kind may put in place of a word."""

    @abstractmethod
    def add(self) -> None:
        """Insert words that the source does not have, if they fit anywhere."""

    @abstractmethod
    def reword(self) -> None:
        """Change the wording and not the meaning, if there is another wording."""

    def corrupt(self, kinds: Sequence[str]) -> Candidate:
        """Put in one error of each of these kinds, in this order, and return the candidate.

        A kind for which no free word is left is left out: `issues` says what the candidate holds.
        No kinds: the reference itself. ["paraphrase"], alone: another correct wording, with no
        issues, or the reference where there is none. Raises ValueError for paraphrase among errors.
        """
        paraphrase = PARAPHRASE in kinds
        if paraphrase and len(kinds) > 1:
            raise ValueError("a paraphrase holds no errors: ask for it alone")
        for kind in kinds:
            if paraphrase:
                self.reword()
            elif kind == "addition":
                self.add()
            elif kind in ("article", "omission"):
                self._drop(kind)
            else:
                self._replace(kind)
        text = self._render()
        return Candidate(text, tuple(self._issues), paraphrase and text != self.reference)

    def insert(self, after: int, text: str) -> None:
        """Add words behind this place."""
        self.texts[after] += f" {text}"
        self._note(Issue("addition", text, ""), [after])

    def _replace(self, kind: str) -> None:
        options = {
            at: [text for text in self.options(kind, at) if text not in ("", self.texts[at])]
            for at in sorted(self.free)
        }
        if places := [at for at, texts in options.items() if texts]:
            at = self.rng.choice(places)
            right, self.texts[at] = self.texts[at], self.rng.choice(options[at])
            self._note(Issue(kind, self.texts[at], right), [at])

    def _drop(self, kind: str) -> None:
        spans = [span for span in self.spans(kind) if span and self.free.issuperset(span)]
        if not spans:
            return
        span = self.rng.choice(spans)
        right = " ".join(self.texts[at] for at in span)
        self._dropped.update(span)
        for at in span:
            self.texts[at] = ""
        self._note(Issue(kind, "", right), span)

    def _note(self, issue: Issue, span: Sequence[int]) -> None:
        self._issues.append(issue)
        self.free -= set(span)

    def _render(self) -> str:
        """Write the text; punctuation of a dropped word stays, and so does the opening capital."""
        pieces: list[str] = []
        for at, (text, (before, after)) in enumerate(zip(self.texts, self.affixes, strict=True)):
            if pieces and at in self._dropped:
                pieces[-1] += before + after
            else:
                pieces.append(before + text + after)
        text = " ".join(piece for piece in pieces if piece)
        return text[:1].upper() + text[1:] if self.capital else text
