"""Sentences in English and Portuguese, drawn together from one lexicon, and errors in them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from pt_app.judge_data.generator.errors import Candidate, Draft, Pair, strip_accents
from pt_app.judge_data.generator.lexicon import (
    NUMBERS,
    ROLES,
    TENSES,
    Number,
    Row,
    Word,
    load_lexicon,
    synonyms,
)
from pt_app.judge_data.options import LexiconSize

MAX_WORDS = 9
DETERMINER_WEIGHTS = {"definite": 8, "indefinite": 4, "my": 1, "our": 1, "this": 1, "that": 1}
WITH = Word("preposition", {"portuguese": "com", "english": "with"}, "company")
# Classes of nouns that are fluent as the object of a verb, where it is not the verb's own class.
OBJECTS = {"any": ("animate", "thing", "food", "place"), "thing": ("thing", "food"), "none": ("",)}
_OPPOSITES = (("singular", "plural"), ("masculine", "feminine"), ("present", "past"))
OTHER = {value: other for pair in _OPPOSITES for value, other in (pair, pair[::-1])}


class Grammar:
    """Draws sentences of 3 to 9 Portuguese words, and puts errors into them."""

    def __init__(self, size: LexiconSize = "full") -> None:
        self.lexicon = load_lexicon(size)
        self.determiners = {row["kind"]: row for row in self.lexicon["determiner"]}
        self._nouns: dict[str, list[Row]] = defaultdict(list)
        for noun in self.lexicon["noun"]:
            self._nouns[noun["class"]].append(noun)

    def pick(self, rng: Random) -> Pair:
        """Draw one sentence; all randomness comes from `rng`."""
        while True:
            words = self._clause(rng)
            if len(words) <= MAX_WORDS:
                portuguese = " ".join(word.text for word in words)
                return Pair(_sentence(_english(words)), _sentence(portuguese), tuple(words))

    def draw(self, rng: Random) -> Iterator[Pair]:
        """Yield sentences without end; the same one may come again."""
        while True:
            yield self.pick(rng)

    def corrupt(self, pair: Pair, kinds: Sequence[str], rng: Random) -> Candidate:
        """Translate `pair` with errors of these kinds: see `Draft.corrupt`."""
        return GrammarDraft(pair, self, rng).corrupt(kinds)

    def adjectives(self, category: str) -> list[Row]:
        """List the adjectives that may describe a noun of this class."""
        fits = ("any", "animate" if category == "animate" else "thing")
        return [row for row in self.lexicon["adjective"] if row["fits"] in fits]

    def adverbs(self, tense: str) -> list[Row]:
        """List the adverbs that are fluent with a tense."""
        return [row for row in self.lexicon["adverb"] if row["tense"] in ("any", tense)]

    def _clause(self, rng: Random) -> list[Word]:
        number, tense = rng.choice(NUMBERS), rng.choice(TENSES)
        verb = rng.choice(self.lexicon["verb"])
        takes = "" if verb["object"] == "none" else rng.choice(objects(verb))
        words = self._noun_phrase("subject", "animate", rng, number)
        words.append(Word("verb", verb, "verb", number, tense=tense, takes=takes))
        if takes:
            words += self._noun_phrase("object", takes, rng)
        if rng.random() < 0.35:
            words.append(Word("adverb", rng.choice(self.adverbs(tense)), "adverb", tense=tense))
        if rng.random() < 0.3:
            if rng.random() < 0.7:
                words += self._noun_phrase("place", "place", rng, kind="at_the")
            else:
                words += [WITH, *self._noun_phrase("company", "animate", rng)]
        return words

    def _noun_phrase(
        self, phrase: str, category: str, rng: Random, number: Number | None = None, kind: str = ""
    ) -> list[Word]:
        """Draw determiner, noun and at times an adjective; number and determiner may be given."""
        noun = rng.choice(self._nouns[category])
        agreed = rng.choice(NUMBERS) if number is None else number
        weights = DETERMINER_WEIGHTS
        determiner = self.determiners[kind or rng.choices(list(weights), list(weights.values()))[0]]
        rows = {"determiner": determiner, "noun": noun}
        if rng.random() < 0.35:
            rows["adjective"] = rng.choice(self.adjectives(category))
        return [Word(role, row, phrase, agreed, noun["gender"]) for role, row in rows.items()]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _english(words: Sequence[Word]) -> str:
    english: list[str] = []
    for word in words:  # an English adjective stands before its noun
        english.insert(len(english) - (word.role == "adjective"), word.english)
    # No word of the lexicon is an exception to the spelling rule of "an".
    return re.sub(r"\ba(?= [aeiou])", "an", " ".join(english))


def objects(verb: Row) -> Sequence[str]:
    """List the classes of fluent objects of a verb; "" stands for no object."""
    return OBJECTS.get(verb["object"], (verb["object"],))


class GrammarDraft(Draft):
    """A sentence of the grammar while errors are put into it."""

    def __init__(self, pair: Pair, grammar: Grammar, rng: Random) -> None:
        super().__init__(pair.reference, rng)
        self.words, self.grammar = pair.words, grammar
        self.texts[0] = self.words[0].text  # without the opening capital

    def _phrase(self, *names: str) -> list[int]:
        return [at for at, word in enumerate(self.words) if word.phrase in names]

    def spans(self, kind: str) -> list[list[int]]:
        """List the articles; or each adjective, an adverb, an object, a place and company."""
        if kind == "article":
            kinds = ("definite", "indefinite")
            return [[at] for at, word in enumerate(self.words) if word.row.get("kind") in kinds]
        adjectives = [[at] for at, word in enumerate(self.words) if word.role == "adjective"]
        phrases = ("object", "adverb", "place", "company")
        return adjectives + [self._phrase(name) for name in phrases]

    def options(self, kind: str, at: int) -> Sequence[str]:
        """List other forms of a word, or other words that agree and are as fluent here."""
        word = self.words[at]
        if kind == "wrong_word":
            return [word.form(row) for row in self._as_fluent(word)]
        if kind == "diacritic":
            return [strip_accents(word.text)]
        if kind == "untranslated":
            return [word.english] if word.role in ("noun", "verb", "adjective", "adverb") else []
        if kind not in ROLES[word.role]["portuguese"]:  # the word is not inflected in this feature
            return []
        return [word.form(**{kind: OTHER[getattr(word, kind)]})]

    def _as_fluent(self, word: Word) -> list[Row]:
        own, rows = word.row, self.grammar.lexicon.get(word.role, ())
        if word.role == "noun":
            alike = (own["gender"], own["class"])
            return [row for row in rows if (row["gender"], row["class"]) == alike]
        if word.role == "verb":
            return [row for row in rows if word.takes in objects(row)]
        if word.role == "adjective":
            return [row for row in rows if row["fits"] in ("any", own["fits"])]
        return self.grammar.adverbs(word.tense) if word.role == "adverb" else []

    def add(self) -> None:
        """Add an adjective to a noun that has none, or an adverb to a clause that has none."""
        roles = [*(word.role for word in self.words), ""]
        free = sorted(self.free)
        places = [at for at in free if roles[at] == "noun" and roles[at + 1] != "adjective"]
        end = self._phrase("verb", "object")[-1]
        if "adverb" not in roles and end in self.free and end not in places:
            places.append(end)
        if not places:
            return
        at = self.rng.choice(places)
        word = self.words[at]
        if word.role == "noun":
            row = self.rng.choice(self.grammar.adjectives(word.row["class"]))
            text = row[f"{word.gender}_{word.number}"]
        else:
            tense = self.words[roles.index("verb")].tense
            text = self.rng.choice(self.grammar.adverbs(tense))["portuguese"]
        self.insert(at, text)

    def reword(self) -> None:
        """Use a synonym or an article before a possessive, open with an adverb or a place, or both.

        The words alone are moved: the full stop stays at the end.
        """
        places = [at for at, word in enumerate(self.words) if self._rewordings(word)]
        fronted = [at for at, word in enumerate(self.words) if word.row.get("may_lead") == "yes"]
        leads = [span for span in (self._phrase("place"), fronted) if span]
        rng = self.rng
        lead = rng.choice(leads) if leads and (not places or rng.random() < 0.5) else []
        if places and (not lead or rng.random() < 0.5):
            at = rng.choice(places)
            self.texts[at] = rng.choice(self._rewordings(self.words[at]))
        rest = [text for at, text in enumerate(self.texts) if at not in lead]
        self.texts = [*(self.texts[at] for at in lead), *rest]

    def _rewordings(self, word: Word) -> list[str]:
        options = [other] if (other := synonyms("synonyms").get(word.text)) else []
        if word.row.get("kind") in ("my", "our"):
            options.append(f"{word.form(self.grammar.determiners['definite'])} {word.text}")
        return options
