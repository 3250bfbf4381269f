"""Errors put into real Portuguese sentences: no grammar, only what a corpus attests.

Every change is one that two attested forms or a closed table allow; a word that no rule covers,
a name, a number or a word with a hyphen is left as it is.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property

from pt_app.judge_data.generator.errors import (
    Candidate,
    Draft,
    asks_paraphrase,
    both_ways,
    strip_accents,
)
from pt_app.judge_data.generator.lexicon import pairs_table, table

_TOKEN = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)

FUNCTION_WORDS = frozenset(row["form"] for row in table("function_words"))
ARTICLES = ("o", "a", "os", "as", "um", "uma")
GENDERS = both_ways("o a, os as, um uma, do da, dos das, no na, nos nas, pelo pela, ao à")
PLURALS = both_ways("o os, a as, do dos, da das, no nos, na nas, pelo pelos, pela pelas")
TENSES = both_ways(
    "é foi, são foram, está estava, estão estavam, tem tinha, têm tinham, pode podia, "
    "podem podiam, deve devia, devem deviam, há havia"
)
# Endings and what takes their place; the first that fits decides.
_PAST = (("ou", "a"), ("aram", "am"), ("eu", "e"), ("eram", "em"), ("iu", "e"), ("iram", "em"))
_ADJECTIVES = [
    (own + plural, other + plural)
    for own, other in both_ways(
        "ado ada, ido ida, ico ica, ivo iva, oso osa, ário ária, ino ina, imo ima, ano ana, "
        "eiro eira, ório ória, eto eta"
    ).items()
    for plural in ("", "s")
]
_FEMININE = ("a", "ão", "ade", "gem", "as", "ões", "ades", "gens")


class Vocabulary:
    """What a corpus attests: counts of Portuguese words, and which English word goes with which.

    Only words written in lower case count, so that names stay out.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.counts: Counter[str] = Counter()
        self._english: dict[str, set[int]] = defaultdict(set)
        self._portuguese: dict[str, set[int]] = defaultdict(set)
        self._sentences: list[list[str]] = []
        for number, (source, target) in enumerate(pairs):
            words = [core for _, core, _ in tokens(target)]
            self._sentences.append(words)
            self.counts.update(word for word in words if _plain(word))
            for word in words:
                self._portuguese[word.lower()].add(number)
            for _, core, _ in tokens(source):
                self._english[core.lower()].add(number)

    @cached_property
    def _bands(self) -> dict[tuple[str, int], list[str]]:
        """Content words by ending and rough frequency: neighbours are swapped for each other."""
        bands: dict[tuple[str, int], list[str]] = defaultdict(list)
        for word in sorted(self.counts):
            if content(word):
                bands[self._band(word)].append(word)
        return bands

    def _band(self, word: str) -> tuple[str, int]:
        return word[-3:], self.counts[word].bit_length()

    def neighbours(self, word: str) -> list[str]:
        """List other content words as frequent, with the same ending and another beginning."""
        if not content(word):
            return []
        return [w for w in self._bands.get(self._band(word), []) if w[:3] != word[:3]]

    def attested(self, word: str) -> bool:
        """Return whether the corpus has the word at least twice."""
        return self.counts[word] >= 2

    def translation(self, word: str, source: str) -> str:
        """Find the word of `source` that most often occurs together with `word`, or "".

        Counted by the Dice coefficient over sentences: at least 0.3, and two sentences with both.
        Words that are Portuguese too are passed over.
        """
        here = self._portuguese.get(word, set())
        best, best_dice = "", 0.3
        for _, core, _ in tokens(source):
            if not _plain(core) or len(core) <= 3 or core in self.counts:
                continue
            there = self._english.get(core, set())
            both = len(here & there)
            dice = 2 * both / max(1, len(here) + len(there))
            if both > 1 and dice > best_dice:
                best, best_dice = core, dice
        return best

    def snippet(self, rng: random.Random) -> str:
        """Draw one to three neighbouring words of some sentence; "" where it has none to give."""
        words = self._sentences[rng.randrange(len(self._sentences))]
        count = rng.randint(1, 3)
        spans = [words[i : i + count] for i in range(len(words) - count + 1)]
        spans = [span for span in spans if all(map(_plain, span)) and content(span[-1])]
        return " ".join(rng.choice(spans)) if spans else ""


def tokens(text: str) -> list[tuple[str, str, str]]:
    """Split each space-separated piece into punctuation before, word, punctuation after."""
    matches = map(_TOKEN.fullmatch, text.split())
    return [(match[1], match[2], match[3]) for match in matches if match]


def _plain(word: str) -> bool:
    return word.isalpha() and word.islower()


def content(word: str) -> bool:
    """Return whether a word carries meaning: lower case, four letters or more, no function word."""
    return _plain(word) and len(word) > 3 and word not in FUNCTION_WORDS


def corrupt_text(
    source: str, reference: str, kinds: Sequence[str], vocabulary: Vocabulary, rng: random.Random
) -> Candidate:
    """Put one error of each of these kinds into a translation, as `errors.corrupt` does it.

    A kind that finds no word it may change is left out. ["paraphrase"] swaps one word for a
    listed synonym. Raises ValueError for paraphrase among errors.
    """
    paraphrase = asks_paraphrase(kinds)
    draft = _draft(reference, vocabulary, rng)
    if paraphrase:
        return _paraphrase(draft, reference)
    for kind in kinds:
        followed = list(zip(draft.texts, [*draft.texts[1:], ""], strict=True))
        if kind == "article":
            places = [
                i for i, words in enumerate(followed) if words[0] in ARTICLES and _agrees(*words)
            ]
            draft.drop(kind, [[i] for i in places if draft.affix[i] == ("", "")])
        elif kind == "omission":
            draft.drop(kind, _omissible(draft))
        elif kind == "addition":
            _add(draft, vocabulary)
        else:
            options = _OPTIONS[kind]
            draft.replace(kind, [options(*words, source, vocabulary) for words in followed])
    return draft.candidate()


def _draft(reference: str, vocabulary: Vocabulary, rng: random.Random) -> Draft:
    """Split a sentence into words; only plain lower-case ones are free, an opening one lowered."""
    parts = tokens(reference)
    texts = [core for _, core, _ in parts]
    capital = texts[0][:1].isupper() and not parts[0][0]
    lowered = texts[0][:1].lower() + texts[0][1:]
    if capital and (vocabulary.attested(lowered) or lowered in FUNCTION_WORDS):
        texts[0] = lowered
    free = {i for i, text in enumerate(texts) if _plain(text)}
    return Draft(rng, texts, [(before, after) for before, _, after in parts], free, capital)


def _paraphrase(draft: Draft, reference: str) -> Candidate:
    synonyms = pairs_table("rewordings")
    if places := draft.positions(lambda i: draft.texts[i] in synonyms):
        at = draft.rng.choice(places)
        draft.texts[at] = synonyms[draft.texts[at]]
    text = draft.render()
    return Candidate(text, paraphrased=text != reference)


Options = Callable[[str, str, str, Vocabulary], list[str]]
"""What may take the place of a word, by it, the next word, the source and the vocabulary."""


def _gender(word: str, after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in GENDERS:
        return [GENDERS[word]] if _agrees(word, after) else []
    new = _other_ending(word, _ADJECTIVES)
    return [new] if vocabulary.attested(new) else []


def _number(word: str, after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in PLURALS:
        return [PLURALS[word]] if _agrees(word, after) else []
    other = word.removesuffix("s") if word.endswith("s") else word + "s"
    stem = min(word, other, key=len)
    if content(word) and len(stem) > 4 and stem[-1] in "aeo" and vocabulary.attested(other):
        return [other]
    return []


def _tense(word: str, _after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in TENSES:
        return [TENSES[word]]
    new = _other_ending(word, _PAST, min_stem=3)
    return [new] if vocabulary.attested(new) and new not in FUNCTION_WORDS else []


def _other_ending(word: str, endings: Sequence[tuple[str, str]], min_stem: int = 0) -> str:
    """Replace the first of the endings that a content word has; "" where it has none."""
    for ending, other in endings if content(word) else ():
        if word.endswith(ending) and len(word) >= len(ending) + min_stem:
            return word.removesuffix(ending) + other
    return ""


def _is_article(word: str, after: str) -> bool:
    return word in ARTICLES and _agrees(word, after)


def _agrees(article: str, noun: str) -> bool:
    """Return whether this can be the article of the next word, judged by the word's ending.

    Tells the article "a" from the preposition, at the price of leaving out rarer nouns.
    """
    feminine = article.rstrip("s").endswith(("a", "à"))
    plural = article.endswith("s")
    fits = noun.endswith(_FEMININE) == feminine and noun.endswith("s") == plural
    return fits and content(noun)


def _omissible(draft: Draft) -> list[range]:
    """List one to three neighbouring words that end in a content word, across no punctuation."""
    spans = []
    for start in range(1, len(draft.texts)):
        for end in range(start + 1, min(start + 3, len(draft.texts)) + 1):
            *first, last = span = range(start, end)
            bare = all(draft.affix[i] == ("", "") for i in first) and not draft.affix[last][0]
            if bare and content(draft.texts[last]):
                spans.append(span)
    return spans


def _add(draft: Draft, vocabulary: Vocabulary) -> None:
    """Put words of another sentence behind a content word."""
    places = draft.positions(lambda i: content(draft.texts[i]))
    text = vocabulary.snippet(draft.rng)
    if places and text and text not in " ".join(draft.texts):
        draft.insert("addition", draft.rng.choice(places), text)


_OPTIONS: dict[str, Options] = {
    "wrong_word": lambda word, _after, _source, vocabulary: vocabulary.neighbours(word),
    "untranslated": lambda word, _after, source, vocabulary: (
        [vocabulary.translation(word, source)] if content(word) else []
    ),
    # Three letters or more: "é" without its accent is another word, and no slip.
    "diacritic": lambda word, *_: [strip_accents(word)] if len(word) > 2 else [],
    "gender": _gender,
    "number": _number,
    "tense": _tense,
}
