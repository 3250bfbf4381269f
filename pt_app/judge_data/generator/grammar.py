"""Sentences in English and Portuguese, drawn together from one lexicon."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pt_app.judge_data.generator.lexicon import (
    GENDERS,
    NUMBERS,
    TENSES,
    Lexicon,
    Number,
    Row,
    Tense,
    english_verb,
    suits,
)

Role = Literal["det", "noun", "adj", "verb", "adv", "prep"]
MAX_WORDS = 9
DETERMINERS = ("definite", "indefinite", "my", "our", "this", "that")
DETERMINER_WEIGHTS = (8, 4, 1, 1, 1, 1)
CONTRACTION = "at_the"


@dataclass(frozen=True)
class Word:
    """A Portuguese word and what an error needs to know about it.

    `lemma` indexes the lexicon's table for the role (-1: none); `phrase` is one of subject,
    verb, object, adverb, place, company; a verb's `takes` is the class of its object.
    """

    text: str
    role: Role
    english: str
    phrase: str
    lemma: int = -1
    number: Number = "singular"
    gender: str = "masculine"
    tense: Tense = "present"
    takes: str | None = None


@dataclass(frozen=True)
class Pair:
    """An English sentence and its reference translation; of the grammar's, also its `words`."""

    source: str
    reference: str
    words: tuple[Word, ...] = ()


Phrase = tuple[list[Word], list[str]]
"""Words in Portuguese, and in English."""


def sentence(words: Sequence[str]) -> str:
    """Join words to a sentence: a capital at the start, a full stop at the end."""
    text = " ".join(words)
    return text[:1].upper() + text[1:] + "."


def reserved_for_judges(source: str) -> bool:
    """Return whether a source belongs to judge data: a hash of its text gives half of all to it.

    The other half is for the text a base is trained on, so no base ever saw a source of any
    judge set, whatever the seed. Case and spacing do not count.
    """
    key = " ".join(source.casefold().split())
    return hashlib.sha256(key.encode()).digest()[0] % 2 == 0


class Grammar:
    """Draws sentences of 3 to 9 Portuguese words."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._by_category: dict[str, list[int]] = {}
        for index, noun in enumerate(lexicon.nouns):
            self._by_category.setdefault(noun["class"], []).append(index)

    def sample(self, rng: random.Random) -> Pair:
        """Draw one pair; all randomness comes from `rng`."""
        while True:
            words, english = self._clause(rng)
            if len(words) <= MAX_WORDS:
                portuguese = sentence([word.text for word in words])
                return Pair(sentence(english), portuguese, tuple(words))

    def _clause(self, rng: random.Random) -> Phrase:
        number, tense = rng.choice(NUMBERS), rng.choice(TENSES)
        lemma = rng.randrange(len(self.lexicon.verbs))
        verb = self.lexicon.verbs[lemma]
        takes = self._object_category(verb["object"], rng)
        english, text = english_verb(verb, tense, number), verb[f"{tense}_{number}"]
        word = Word(text, "verb", english, "verb", lemma, number, tense=tense, takes=takes)
        parts = [self._noun_phrase("subject", "animate", rng, number), ([word], [english])]
        if takes:
            parts.append(self._noun_phrase("object", takes, rng))
        if rng.random() < 0.35:
            parts.append(self._adverb(tense, rng))
        if rng.random() < 0.3:
            parts.append(self._prepositional(rng))
        return [w for words, _ in parts for w in words], [e for _, words in parts for e in words]

    def _object_category(self, takes: str, rng: random.Random) -> str | None:
        if takes == "none":
            return None
        choices = {"any": ["animate", "thing", "food", "place"], "thing": ["thing", "food"]}
        return rng.choice(choices.get(takes, [takes]))

    def _noun_phrase(
        self,
        phrase: str,
        category: str,
        rng: random.Random,
        fixed_number: Number | None = None,
        kind: str = "",
    ) -> Phrase:
        """Draw determiner, noun and at times an adjective; number and determiner may be given."""
        lemma = rng.choice(self._by_category[category])
        noun = self.lexicon.nouns[lemma]
        number = fixed_number if fixed_number else rng.choice(NUMBERS)
        position, row = self.lexicon.determiner(
            kind or rng.choices(DETERMINERS, DETERMINER_WEIGHTS)[0]
        )
        gender, gloss = GENDERS[noun["gender"]], row[f"english_{number}"]
        det, english = row[f"{gender}_{number}"], [noun[f"english_{number}"]]
        words = [
            Word(det, "det", gloss, phrase, position, number, gender),
            Word(noun[number], "noun", english[0], phrase, lemma, number, gender),
        ]
        if rng.random() < 0.35:
            words.append(self._adjective(noun, number, phrase, rng))
            english.insert(0, words[-1].english)
        # No word of the lexicon is an exception to the spelling rule of "an".
        article = "an" if gloss == "a" and english[0][0] in "aeiou" else gloss
        return words, [article, *english]

    def _adjective(self, noun: Row, number: Number, phrase: str, rng: random.Random) -> Word:
        rows, gender = self.lexicon.adjectives, GENDERS[noun["gender"]]
        lemma = rng.choice([i for i, row in enumerate(rows) if suits(row, noun["class"])])
        row = rows[lemma]
        text = row[f"{gender}_{number}"]
        return Word(text, "adj", row["english"], phrase, lemma, number, gender)

    def _adverb(self, tense: Tense, rng: random.Random) -> Phrase:
        rows = self.lexicon.adverbs
        lemma = rng.choice([i for i, row in enumerate(rows) if row["tense"] in ("any", tense)])
        text, english = rows[lemma]["portuguese"], rows[lemma]["english"]
        return [Word(text, "adv", english, "adverb", lemma, tense=tense)], [english]

    def _prepositional(self, rng: random.Random) -> Phrase:
        if rng.random() < 0.7:
            return self._noun_phrase("place", "place", rng, kind=CONTRACTION)
        words, english = self._noun_phrase("company", "animate", rng)
        return [Word("com", "prep", "with", "company"), *words], ["with", *english]
