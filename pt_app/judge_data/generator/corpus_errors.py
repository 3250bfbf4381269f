"""Errors put into real Portuguese sentences: no grammar, only what a corpus attests.

Every change is one that two attested forms or a closed table allow; a word that no rule knows,
a name, a number or a word with a hyphen is left as it is.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

from pt_app.judge_data.generator.errors import PARAPHRASE, Candidate, Draft, strip_accents
from pt_app.judge_data.generator.lexicon import pairs_table, table

_TOKEN = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)

FUNCTION_WORDS = frozenset(row["form"] for row in table("function_words"))
ARTICLES = ("o", "a", "os", "as", "um", "uma")
_FLIPS = ("o a", "os as", "um uma", "do da", "dos das", "no na", "nos nas", "pelo pela", "ao à")
_PLURALS = ("o os", "a as", "do dos", "da das", "no nos", "na nas", "pelo pelos", "pela pelas")
_ADJECTIVES = (
    "ado",
    "ido",
    "ico",
    "ivo",
    "oso",
    "ário",
    "ino",
    "imo",
    "ano",
    "eiro",
    "ório",
    "eto",
)
_TENSES: tuple[str, ...] = (
    "é foi",
    "são foram",
    "está estava",
    "estão estavam",
    "tem tinha",
    "têm tinham",
)
_TENSES += ("pode podia", "podem podiam", "deve devia", "devem deviam", "há havia")
_PAST = (("ou", "a"), ("aram", "am"), ("eu", "e"), ("eram", "em"), ("iu", "e"), ("iram", "em"))
_FEMININE = ("a", "ão", "ade", "gem", "as", "ões", "ades", "gens")


def _both_ways(pairs: Sequence[str]) -> dict[str, str]:
    split = [(first, second) for first, second in map(str.split, pairs)]
    return dict(split) | {b: a for a, b in split}


GENDERS = _both_ways(_FLIPS)
PLURALS = _both_ways(_PLURALS)
TENSES = _both_ways(_TENSES)


class Vocabulary:
    """What a corpus attests: counts of Portuguese words, and which English word goes with which.

    Only words written in lower case count, so that names stay out.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.counts: Counter[str] = Counter()
        self._english: dict[str, set[int]] = {}
        self._portuguese: dict[str, set[int]] = {}
        self._sentences: list[list[str]] = []
        for number, (source, target) in enumerate(pairs):
            words = [core for _, core, _ in tokens(target)]
            self._sentences.append(words)
            self.counts.update(word for word in words if _plain(word))
            for word in words:
                self._portuguese.setdefault(word.lower(), set()).add(number)
            for _, core, _ in tokens(source):
                self._english.setdefault(core.lower(), set()).add(number)

    @cached_property
    def _bands(self) -> dict[tuple[str, int], list[str]]:
        """Content words by ending and rough frequency: neighbours are swapped for each other."""
        bands: dict[tuple[str, int], list[str]] = {}
        for word in sorted(self.counts):
            if content(word):
                bands.setdefault(self._band(word), []).append(word)
        return bands

    def _band(self, word: str) -> tuple[str, int]:
        return word[-3:], self.counts[word].bit_length()

    def neighbours(self, word: str) -> list[str]:
        """Other content words as frequent, with the same ending and another beginning."""
        if not content(word):
            return []
        return [w for w in self._bands.get(self._band(word), []) if w[:3] != word[:3]]

    def attested(self, word: str, least: int = 2) -> bool:
        """Whether the corpus has the word at least so often."""
        return self.counts[word] >= least

    def translation(self, word: str, source: str) -> str:
        """The word of `source` that most often stands beside `word`, or "".

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
        """One to three neighbouring words of some sentence, "" where it has none to give."""
        words = self._sentences[rng.randrange(len(self._sentences))]
        count = rng.randint(1, 3)
        starts = [i for i in range(len(words) - count + 1) if _snippet(words[i : i + count])]
        if not starts:
            return ""
        at = rng.choice(starts)
        return " ".join(words[at : at + count])


def _snippet(words: Sequence[str]) -> bool:
    return all(map(_plain, words)) and content(words[-1])


def tokens(text: str) -> list[tuple[str, str, str]]:
    """Each space-separated piece as punctuation before, word, punctuation after."""
    return [match.groups() for piece in text.split() if (match := _TOKEN.fullmatch(piece))]  # type: ignore[misc]


def _plain(word: str) -> bool:
    return word.isalpha() and word.islower()


def content(word: str) -> bool:
    """Whether a word carries meaning: lower case, four letters or more, no function word."""
    return _plain(word) and len(word) > 3 and word not in FUNCTION_WORDS


def corrupt_text(
    source: str,
    reference: str,
    kinds: Sequence[str],
    vocabulary: Vocabulary,
    rng: random.Random,
) -> Candidate:
    """A translation with one error of each of these kinds, as `errors.corrupt` does it.

    A kind that finds no word it may change is left out. ["paraphrase"] swaps one word for a
    listed synonym. Raises ValueError for paraphrase among errors.
    """
    if PARAPHRASE in kinds and len(kinds) > 1:
        raise ValueError("a paraphrase holds no errors: ask for it alone")
    draft = _draft(reference, vocabulary)
    if list(kinds) == [PARAPHRASE]:
        return _paraphrase(draft, reference, rng)
    for kind in kinds:
        if kind in _REPLACEMENTS:
            _replace(draft, kind, source, vocabulary, rng)
        else:
            _SPANS[kind](draft, vocabulary, rng)
    return draft.candidate()


def _draft(reference: str, vocabulary: Vocabulary) -> Draft:
    """The words of a sentence; only plain lower-case ones are free, an opening one lowered."""
    parts = tokens(reference)
    texts = [core for _, core, _ in parts]
    capital = texts[0][:1].isupper() and not parts[0][0]
    lowered = texts[0][:1].lower() + texts[0][1:]
    if capital and (vocabulary.attested(lowered) or lowered in FUNCTION_WORDS):
        texts[0] = lowered
    draft = Draft(texts, [(before, after) for before, _, after in parts], capital)
    draft.free = {i for i, text in enumerate(texts) if _plain(text)}
    return draft


def _paraphrase(draft: Draft, reference: str, rng: random.Random) -> Candidate:
    synonyms = pairs_table("rewordings")
    places = draft.positions(lambda i: draft.texts[i] in synonyms)
    if places:
        at = rng.choice(places)
        draft.texts[at] = synonyms[draft.texts[at]]
    text = draft.render()
    return Candidate(text, (), 10, paraphrased=text != reference)


def _replace(
    draft: Draft, kind: str, source: str, vocabulary: Vocabulary, rng: random.Random
) -> None:
    options = _REPLACEMENTS[kind]
    following = [*draft.texts[1:], ""]
    found = [
        [new for new in options(text, after, source, vocabulary) if new and new != text]
        for text, after in zip(draft.texts, following, strict=True)
    ]
    if places := draft.positions(lambda i: bool(found[i])):
        at = rng.choice(places)
        draft.replace(kind, at, rng.choice(found[at]))


Options = Callable[[str, str, str, Vocabulary], list[str]]


def _wrong_word(word: str, _after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    return vocabulary.neighbours(word)


def _untranslated(word: str, _after: str, source: str, vocabulary: Vocabulary) -> list[str]:
    return [vocabulary.translation(word, source)] if content(word) else []


def _diacritic(word: str, _after: str, _source: str, _vocabulary: Vocabulary) -> list[str]:
    """Three letters or more: "é" without its accent is another word, and no slip."""
    return [strip_accents(word)] if len(word) > 2 else []


def _gender(word: str, after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in GENDERS:
        return [GENDERS[word]] if content(after) and _agrees(word, after) else []
    for masculine in _ADJECTIVES:
        feminine = masculine[:-1] + "a"
        for own, other in ((masculine, feminine), (feminine, masculine)):
            for plural in ("", "s"):
                if content(word) and word.endswith(own + plural):
                    new = word.removesuffix(own + plural) + other + plural
                    return [new] if vocabulary.attested(new) else []
    return []


def _number(word: str, after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in PLURALS:
        return [PLURALS[word]] if content(after) and _agrees(word, after) else []
    other = word.removesuffix("s") if word.endswith("s") else word + "s"
    stem = min(word, other, key=len)
    if content(word) and len(stem) > 4 and stem[-1] in "aeo" and vocabulary.attested(other):
        return [other]
    return []


def _tense(word: str, _after: str, _source: str, vocabulary: Vocabulary) -> list[str]:
    if word in TENSES:
        return [TENSES[word]]
    for past, present in _PAST:
        if content(word) and word.endswith(past) and len(word) > len(past) + 2:
            new = word.removesuffix(past) + present
            return [new] if vocabulary.attested(new) and new not in FUNCTION_WORDS else []
    return []


def _agrees(article: str, noun: str) -> bool:
    """Whether this can be the article of the next word, judged by its ending.

    Tells the article "a" from the preposition, at the price of leaving out rarer nouns.
    """
    feminine = article.rstrip("s").endswith(("a", "à"))
    plural = article.endswith("s")
    return noun.endswith(_FEMININE) == feminine and noun.endswith("s") == plural


def _article(draft: Draft, _vocabulary: Vocabulary, rng: random.Random) -> None:
    texts = [*draft.texts, ""]

    def accept(i: int) -> bool:
        bare = draft.affix[i] == ("", "")
        return (
            bare and texts[i] in ARTICLES and content(texts[i + 1]) and _agrees(*texts[i : i + 2])
        )

    if places := draft.positions(accept):
        draft.drop("article", [rng.choice(places)])


def _omission(draft: Draft, _vocabulary: Vocabulary, rng: random.Random) -> None:
    """Drop one to three neighbouring words that end in a content word, across no punctuation."""
    spans = []
    for start in range(1, len(draft.texts)):
        for count in (1, 2, 3):
            span = list(range(start, min(start + count, len(draft.texts))))
            bare = (
                all(draft.affix[i] == ("", "") for i in span[:-1]) and not draft.affix[span[-1]][0]
            )
            if len(span) == count and bare and draft.free.issuperset(span):
                spans.append(span)
    spans = [span for span in spans if content(draft.texts[span[-1]])]
    if spans:
        draft.drop("omission", rng.choice(spans))


def _addition(draft: Draft, vocabulary: Vocabulary, rng: random.Random) -> None:
    """Put words of another sentence behind a content word."""
    places = draft.positions(lambda i: content(draft.texts[i]))
    text = vocabulary.snippet(rng)
    if places and text and text not in " ".join(draft.texts):
        draft.insert("addition", rng.choice(places), text)


_REPLACEMENTS: dict[str, Options] = {
    "wrong_word": _wrong_word,
    "untranslated": _untranslated,
    "diacritic": _diacritic,
    "gender": _gender,
    "number": _number,
    "tense": _tense,
}
_SPANS: dict[str, Callable[[Draft, Vocabulary, random.Random], None]] = {
    "article": _article,
    "omission": _omission,
    "addition": _addition,
}
