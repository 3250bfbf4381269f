"""Known errors put into a translation; score, issues and feedback follow from them.

score = max(0, 10 - the sum of the penalties). Errors of one candidate touch disjoint words.
"""

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pt_app.judge_data.generator.grammar import Pair, Word, sentence
from pt_app.judge_data.generator.lexicon import Lexicon, Row, accepts, suits

PARAPHRASE = "paraphrase"


@dataclass(frozen=True)
class ErrorKind:
    """A kind of error: what it costs on the scale of 0 to 10, and how feedback names it."""

    penalty: int
    remark: str


KINDS = {
    "wrong_word": ErrorKind(5, "a word has another meaning"),
    "omission": ErrorKind(4, "something is left out"),
    "untranslated": ErrorKind(3, "a word stays in English"),
    "tense": ErrorKind(3, "the tense is wrong"),
    "addition": ErrorKind(3, "something is added"),
    "article": ErrorKind(2, "an article is missing"),
    "gender": ErrorKind(2, "the gender is wrong"),
    "number": ErrorKind(2, "the number is wrong"),
    "diacritic": ErrorKind(1, "an accent is missing"),
    PARAPHRASE: ErrorKind(0, "another wording"),
}
ERRORS: tuple[str, ...] = tuple(name for name in KINDS if name != PARAPHRASE)


@dataclass(frozen=True)
class Issue:
    """One error: the words in the candidate and in the reference ("" where there are none)."""

    kind: str
    wrong: str
    right: str

    @property
    def text(self) -> str:
        """The error as the answer names it: `gender "o" -> "a"`, `omission "na praia"`."""
        if self.wrong and self.right:
            return f'{self.kind} "{self.wrong}" -> "{self.right}"'
        return f'{self.kind} "{self.wrong or self.right}"'


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
        kinds = sorted({issue.kind for issue in self.issues}, key=list(KINDS).index)
        text = " and ".join(KINDS[kind].remark for kind in kinds[:2])
        return text[0].upper() + text[1:] + "."


def strip_accents(text: str) -> str:
    """Remove the diacritics: "lição" becomes "licao"."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@dataclass
class Draft:
    """A translation while errors are put into it, at places that `rng` chooses.

    `texts` are its words ("" once dropped), `affix` the punctuation on both sides of each word,
    `free` the positions that may still be changed, `capital` whether the text opens with a capital
    letter, `added` the words put behind a position.
    """

    rng: random.Random
    texts: list[str]
    affix: list[tuple[str, str]]
    free: set[int]
    capital: bool = True
    added: dict[int, str] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    _dropped: set[int] = field(default_factory=set)

    def positions(self, accept: Callable[[int], bool]) -> list[int]:
        """List the free positions that `accept` takes, in order."""
        return [i for i in range(len(self.texts)) if i in self.free and accept(i)]

    def replace(self, kind: str, options: Sequence[Sequence[str]]) -> None:
        """Replace one free word by one of its own options, if any has some that differ from it."""
        new = [
            [option for option in own if option and option != text]
            for text, own in zip(self.texts, options, strict=True)
        ]
        if places := self.positions(lambda i: bool(new[i])):
            at = self.rng.choice(places)
            right, self.texts[at] = self.texts[at], self.rng.choice(new[at])
            self._note(Issue(kind, self.texts[at], right), [at])

    def drop(self, kind: str, spans: Sequence[Sequence[int]]) -> None:
        """Drop the words of one of these spans of neighbouring places, if any is free."""
        spans = [span for span in spans if span and self.free.issuperset(span)]
        if not spans:
            return
        span = self.rng.choice(spans)
        right = " ".join(self.texts[i] for i in span)
        self._dropped.update(span)
        for i in span:
            self.texts[i] = ""
        self._note(Issue(kind, "", right), span)

    def insert(self, kind: str, after: int, text: str) -> None:
        """Put more words behind this place."""
        self.added[after] = text
        self._note(Issue(kind, text, ""), [after])

    def _note(self, issue: Issue, span: Sequence[int]) -> None:
        self.issues.append(issue)
        self.free -= set(span)

    def render(self) -> str:
        """Write the text; punctuation of a dropped word stays, and so does the opening capital."""
        pieces: list[str] = []
        for i, (text, (before, after)) in enumerate(zip(self.texts, self.affix, strict=True)):
            inner = " ".join(part for part in (text, self.added.get(i, "")) if part)
            if pieces and i in self._dropped:
                pieces[-1] += before + after
            else:
                pieces.append(before + inner + after)
        text = " ".join(piece for piece in pieces if piece)
        return text[:1].upper() + text[1:] if self.capital else text

    def candidate(self) -> Candidate:
        """Return the finished translation with its errors."""
        return Candidate(self.render(), tuple(self.issues))


def corrupt(pair: Pair, kinds: Sequence[str], lexicon: Lexicon, rng: random.Random) -> Candidate:
    """Translate `pair` with one error of each of these kinds, in this order.

    A kind for which no free word is left is left out: `issues` says what the candidate holds.
    No kinds: the reference itself. ["paraphrase"], alone: another correct wording, with no
    issues, or the reference where there is none. Raises ValueError for paraphrase among errors.
    """
    if asks_paraphrase(kinds):
        return _paraphrase(pair, lexicon, rng)
    affix = [("", "")] * (len(pair.words) - 1) + [("", ".")]
    draft = Draft(rng, [word.text for word in pair.words], affix, set(range(len(pair.words))))
    for kind in kinds:
        if kind == "article":
            draft.drop(kind, _articles(pair.words, lexicon))
        elif kind == "omission":
            draft.drop(kind, _omissible(pair.words))
        elif kind == "addition":
            _add(draft, pair.words, lexicon)
        else:
            draft.replace(kind, [_OPTIONS[kind](word, lexicon) for word in pair.words])
    return draft.candidate()


def asks_paraphrase(kinds: Sequence[str]) -> bool:
    """Return whether a paraphrase is asked for; raises ValueError where errors are too."""
    if PARAPHRASE in kinds and len(kinds) > 1:
        raise ValueError("a paraphrase holds no errors: ask for it alone")
    return PARAPHRASE in kinds


Words = tuple[Word, ...]
TRANSLATED = ("noun", "verb", "adj", "adv")
Options = Callable[[Word, Lexicon], list[str]]
_FEATURES = {
    "noun": ("number",),
    "verb": ("tense", "number"),
    "adj": ("gender", "number"),
    "det": ("gender", "number"),
}
"""The features in which the words of a role are inflected; their values name a form's column."""


def both_ways(pairs: str) -> dict[str, str]:
    """Read pairs of words, "a b, c d", as a table from each word to the other of its pair."""
    split = [(first, second) for first, second in map(str.split, pairs.split(","))]
    return dict(split) | {second: first for first, second in split}


_OTHER = both_ways("singular plural, masculine feminine, present past")


def _form(row: Row, word: Word, changed: str = "") -> str:
    """Return the form of a row that agrees with `word` in all features but the one `changed`."""
    values = [(name, getattr(word, name)) for name in _FEATURES[word.role]]
    return row["_".join(_OTHER[value] if name == changed else value for name, value in values)]


def _inflected(feature: str) -> Options:
    """Make the options of an error in one feature: the word with the feature's other value."""

    def options(word: Word, lexicon: Lexicon) -> list[str]:
        if feature not in _FEATURES.get(word.role, ()):
            return []
        return [_form(lexicon.rows(word.role)[word.lemma], word, feature)]

    return options


def _other_words(word: Word, lexicon: Lexicon) -> list[str]:
    """List the words of the same role that agree and are as fluent here."""
    if word.role == "adv":
        return [row["portuguese"] for row in lexicon.adverbs if row["tense"] in ("any", word.tense)]
    if word.role not in ("noun", "verb", "adj"):
        return []
    rows = lexicon.rows(word.role)
    own = rows[word.lemma]
    fluent: dict[str, Callable[[Row], bool]] = {
        "noun": lambda row: (row["gender"], row["class"]) == (own["gender"], own["class"]),
        "verb": lambda row: accepts(row, word.takes),
        "adj": lambda row: row["fits"] in ("any", own["fits"]),
    }
    return [_form(row, word) for row in filter(fluent[word.role], rows)]


def _articles(words: Words, lexicon: Lexicon) -> list[list[int]]:
    articles = [lexicon.determiner(kind)[0] for kind in ("definite", "indefinite")]
    return [[i] for i, word in enumerate(words) if word.role == "det" and word.lemma in articles]


def _omissible(words: Words) -> list[list[int]]:
    """List the places of each adjective, of an adverb, an object, a place and company."""
    spans = [[i] for i, word in enumerate(words) if word.role == "adj"]
    for phrase in ("object", "adverb", "place", "company"):
        spans.append([i for i, word in enumerate(words) if word.phrase == phrase])
    return spans


def _add(draft: Draft, words: Words, lexicon: Lexicon) -> None:
    """Add an adjective to a noun that has none, or an adverb to a clause that has none."""
    roles = [word.role for word in words] + [None]
    places = draft.positions(lambda i: roles[i] == "noun" and roles[i + 1] != "adj")
    core = [i for i, word in enumerate(words) if word.phrase in ("verb", "object")]
    if "adv" not in roles and core[-1] in draft.free and core[-1] not in places:
        places.append(core[-1])
    if not places:
        return
    at = draft.rng.choice(places)
    word = words[at]
    if word.role == "noun":
        category = lexicon.nouns[word.lemma]["class"]
        row = draft.rng.choice([row for row in lexicon.adjectives if suits(row, category)])
        text = row[f"{word.gender}_{word.number}"]
    else:
        tense = next(word.tense for word in words if word.role == "verb")
        rows = [row for row in lexicon.adverbs if row["tense"] in ("any", tense)]
        text = draft.rng.choice(rows)["portuguese"]
    draft.insert("addition", at, text)


def _paraphrase(pair: Pair, lexicon: Lexicon, rng: random.Random) -> Candidate:
    """Use a synonym or an article before a possessive, open with an adverb or a place, or both."""
    reworded = [_rewordings(word, lexicon) for word in pair.words]
    places = [i for i, options in enumerate(reworded) if options]
    leads = _leading(pair, lexicon)
    texts = [word.text for word in pair.words]
    lead = rng.choice(leads) if leads and (not places or rng.random() < 0.5) else []
    if places and (not lead or rng.random() < 0.5):
        at = rng.choice(places)
        texts[at] = rng.choice(reworded[at])
    order = [*lead, *(i for i in range(len(texts)) if i not in lead)]
    text = sentence([texts[i] for i in order])
    return Candidate(text, paraphrased=text != pair.reference)


def _rewordings(word: Word, lexicon: Lexicon) -> list[str]:
    options = [lexicon.synonyms[word.text]] if word.text in lexicon.synonyms else []
    if word.role == "det" and lexicon.determiners[word.lemma]["kind"] in ("my", "our"):
        article = lexicon.determiner("definite")[1][f"{word.gender}_{word.number}"]
        options.append(f"{article} {word.text}")
    return options


def _leading(pair: Pair, lexicon: Lexicon) -> list[list[int]]:
    """List the positions of each adverb or place that may also open the sentence."""
    place = [i for i, word in enumerate(pair.words) if word.phrase == "place"]
    adverbs = [(i, word.lemma) for i, word in enumerate(pair.words) if word.role == "adv"]
    adverb = [i for i, lemma in adverbs if lexicon.adverbs[lemma]["may_lead"] == "yes"]
    return [span for span in (place, adverb) if span]


_OPTIONS: dict[str, Options] = {
    "wrong_word": _other_words,
    "gender": _inflected("gender"),
    "number": _inflected("number"),
    "tense": _inflected("tense"),
    "diacritic": lambda word, _: [strip_accents(word.text)],
    "untranslated": lambda word, _: [word.english] if word.role in TRANSLATED else [],
}
