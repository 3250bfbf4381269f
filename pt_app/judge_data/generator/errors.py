"""Known errors put into a translation; score, issues and feedback follow from them.

score = max(0, 10 - the sum of the penalties). Errors of one candidate touch disjoint words.
"""

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pt_app.judge_data.generator.grammar import Pair, Word, sentence
from pt_app.judge_data.generator.lexicon import OTHER_GENDER, OTHER_NUMBER, OTHER_TENSE, Lexicon

PARAPHRASE = "paraphrase"


@dataclass(frozen=True)
class ErrorKind:
    """A kind of error: what it costs on the scale of 0 to 10, and how feedback names it."""

    name: str
    penalty: int
    remark: str


KINDS: dict[str, ErrorKind] = {
    kind.name: kind
    for kind in (
        ErrorKind("wrong_word", 5, "a word has another meaning"),
        ErrorKind("omission", 4, "something is left out"),
        ErrorKind("untranslated", 3, "a word stays in English"),
        ErrorKind("tense", 3, "the tense is wrong"),
        ErrorKind("addition", 3, "something is added"),
        ErrorKind("article", 2, "an article is missing"),
        ErrorKind("gender", 2, "the gender is wrong"),
        ErrorKind("number", 2, "the number is wrong"),
        ErrorKind("diacritic", 1, "an accent is missing"),
        ErrorKind(PARAPHRASE, 0, "another wording"),
    )
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
    """A translation, the errors in it and the score that follows from them (0 to 10)."""

    text: str
    issues: tuple[Issue, ...]
    score: int
    paraphrased: bool = False

    @property
    def feedback(self) -> str:
        """One sentence that names the two heaviest kinds of error."""
        if not self.issues:
            return "No errors, another wording." if self.paraphrased else "No errors."
        found = sorted({issue.kind for issue in self.issues}, key=list(KINDS).index)
        text = " and ".join(KINDS[kind].remark for kind in found[:2])
        return text[0].upper() + text[1:] + "."


def score_of(issues: Sequence[Issue]) -> int:
    """10 less the penalties, at least 0."""
    return max(0, 10 - sum(KINDS[issue.kind].penalty for issue in issues))


def strip_accents(text: str) -> str:
    """The letters without their diacritics: "lição" becomes "licao"."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


@dataclass
class Draft:
    """A translation while errors are put into it.

    `texts` are its words ("" once dropped), `added` the words put behind a position, `free` the
    positions no error has touched, `affix` the punctuation on both sides of each word,
    `capital` whether the text opens with a capital letter.
    """

    texts: list[str]
    affix: list[tuple[str, str]]
    capital: bool = True
    free: set[int] = field(init=False)
    _dropped: set[int] = field(init=False, default_factory=set)
    added: dict[int, str] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = set(range(len(self.texts)))

    def positions(self, accept: Callable[[int], bool]) -> list[int]:
        """The free positions that `accept` takes, in order."""
        return [i for i in range(len(self.texts)) if i in self.free and accept(i)]

    def replace(self, kind: str, at: int, text: str) -> None:
        """Another word in this place, as an error of this kind."""
        right, self.texts[at] = self.texts[at], text
        self._note(Issue(kind, text, right), [at])

    def drop(self, kind: str, span: Sequence[int]) -> None:
        """No word in these neighbouring places."""
        right = " ".join(self.texts[i] for i in span)
        self._dropped.update(span)
        for i in span:
            self.texts[i] = ""
        self._note(Issue(kind, "", right), span)

    def insert(self, kind: str, after: int, text: str) -> None:
        """More words behind this place."""
        self.added[after] = text
        self._note(Issue(kind, text, ""), [after])

    def _note(self, issue: Issue, span: Sequence[int]) -> None:
        self.issues.append(issue)
        self.free -= set(span)

    def render(self) -> str:
        """The text; what stood behind a dropped word stays, and so does the opening capital."""
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
        """The finished translation with its score."""
        return Candidate(self.render(), tuple(self.issues), score_of(self.issues))


def corrupt(pair: Pair, kinds: Sequence[str], lexicon: Lexicon, rng: random.Random) -> Candidate:
    """A translation of `pair` with one error of each of these kinds, in this order.

    A kind for which no free word is left is left out: `issues` says what the candidate holds.
    No kinds: the reference itself. ["paraphrase"], alone: another correct wording, with no
    issues, or the reference where there is none. Raises ValueError for paraphrase among errors.
    """
    if PARAPHRASE in kinds:
        if len(kinds) > 1:
            raise ValueError("a paraphrase holds no errors: ask for it alone")
        return _paraphrase(pair, lexicon, rng)
    affix = [("", "")] * (len(pair.words) - 1) + [("", ".")]
    draft = Draft([word.text for word in pair.words], affix)
    for kind in kinds:
        _MAKERS[kind](draft, pair.words, lexicon, rng)
    return draft.candidate()


Words = tuple[Word, ...]
Options = Callable[[Word, Lexicon], list[str]]


def _replacing(kind: str, options: Options) -> Callable[..., None]:
    """A maker that puts one of `options` in the place of a word that has any."""

    def make(draft: Draft, words: Words, lexicon: Lexicon, rng: random.Random) -> None:
        found = [options(word, lexicon) for word in words]
        if places := draft.positions(lambda i: bool(found[i])):
            at = rng.choice(places)
            draft.replace(kind, at, rng.choice(found[at]))

    return make


def _unlike(text: str, options: list[str]) -> list[str]:
    return [option for option in options if option != text]


def _other_words(word: Word, lexicon: Lexicon) -> list[str]:
    """Words of the same role that agree and are as fluent here."""
    number, tense = word.number, word.tense
    match word.role:
        case "noun":
            own = lexicon.nouns[word.lemma]
            kin = [n for n in lexicon.nouns if (n.gender, n.category) == (own.gender, own.category)]
            return _unlike(word.text, [noun.forms[number] for noun in kin])
        case "verb":
            verbs = [verb for verb in lexicon.verbs if verb.accepts(word.takes)]
            return _unlike(word.text, [verb.forms[tense, number] for verb in verbs])
        case "adj":
            fits = lexicon.adjectives[word.lemma].fits
            rows = [row for row in lexicon.adjectives if row.fits in ("any", fits)]
            return _unlike(word.text, [row.forms[word.gender, number] for row in rows])
        case "adv":
            adverbs = [row for row in lexicon.adverbs if row.tense in ("any", tense)]
            return _unlike(word.text, [row.form for row in adverbs])
    return []


def _other_gender(word: Word, lexicon: Lexicon) -> list[str]:
    if word.role not in ("det", "adj"):
        return []
    table = lexicon.determiners if word.role == "det" else lexicon.adjectives
    return _unlike(word.text, [table[word.lemma].forms[OTHER_GENDER[word.gender], word.number]])


def _other_number(word: Word, lexicon: Lexicon) -> list[str]:
    number = OTHER_NUMBER[word.number]
    match word.role:
        case "det":
            form = lexicon.determiners[word.lemma].forms[word.gender, number]
        case "adj":
            form = lexicon.adjectives[word.lemma].forms[word.gender, number]
        case "noun":
            form = lexicon.nouns[word.lemma].forms[number]
        case "verb":
            form = lexicon.verbs[word.lemma].forms[word.tense, number]
        case _:
            return []
    return _unlike(word.text, [form])


def _other_tense(word: Word, lexicon: Lexicon) -> list[str]:
    if word.role != "verb":
        return []
    return [lexicon.verbs[word.lemma].forms[OTHER_TENSE[word.tense], word.number]]


def _article(draft: Draft, words: Words, lexicon: Lexicon, rng: random.Random) -> None:
    articles = [lexicon.determiner(kind)[0] for kind in ("definite", "indefinite")]
    accept = [word.role == "det" and word.lemma in articles for word in words]
    if places := draft.positions(accept.__getitem__):
        draft.drop("article", [rng.choice(places)])


def _omission(draft: Draft, words: Words, lexicon: Lexicon, rng: random.Random) -> None:
    """Drop an adjective, an adverb, an object or a phrase of place or company."""
    spans = [[i] for i, word in enumerate(words) if word.role == "adj"]
    for phrase in ("object", "adverb", "place", "company"):
        spans.append([i for i, word in enumerate(words) if word.phrase == phrase])
    if free := [span for span in spans if span and draft.free.issuperset(span)]:
        draft.drop("omission", rng.choice(free))


def _addition(draft: Draft, words: Words, lexicon: Lexicon, rng: random.Random) -> None:
    """Add an adjective to a noun that has none, or an adverb to a clause that has none."""
    roles = [word.role for word in words] + [None]
    places = draft.positions(lambda i: roles[i] == "noun" and roles[i + 1] != "adj")
    core = [i for i, word in enumerate(words) if word.phrase in ("verb", "object")]
    if "adv" not in roles and core[-1] in draft.free and core[-1] not in places:
        places.append(core[-1])
    if not places:
        return
    at = rng.choice(places)
    word = words[at]
    if word.role == "noun":
        noun = lexicon.nouns[word.lemma]
        rows = [row for row in lexicon.adjectives if row.suits(noun.category)]
        text = rng.choice(rows).forms[noun.gender, word.number]
    else:
        tense = next(word.tense for word in words if word.role == "verb")
        text = rng.choice([a.form for a in lexicon.adverbs if a.tense in ("any", tense)])
    draft.insert("addition", at, text)


def _paraphrase(pair: Pair, lexicon: Lexicon, rng: random.Random) -> Candidate:
    """A synonym or an article before a possessive, an adverb or a place that leads, or both."""
    reworded = {i: _rewordings(word, lexicon) for i, word in enumerate(pair.words)}
    places = [i for i, options in reworded.items() if options]
    leads = _leading(pair, lexicon)
    texts = [word.text for word in pair.words]
    lead = rng.choice(leads) if leads and (not places or rng.random() < 0.5) else []
    if places and (not lead or rng.random() < 0.5):
        at = rng.choice(places)
        texts[at] = rng.choice(reworded[at])
    order = [*lead, *(i for i in range(len(texts)) if i not in lead)]
    text = sentence([texts[i] for i in order])
    return Candidate(text, (), 10, paraphrased=text != pair.reference)


def _rewordings(word: Word, lexicon: Lexicon) -> list[str]:
    options = [lexicon.synonyms[word.text]] if word.text in lexicon.synonyms else []
    if word.role == "det" and lexicon.determiners[word.lemma].kind in ("my", "our"):
        article = lexicon.determiner("definite")[1].forms[word.gender, word.number]
        options.append(f"{article} {word.text}")
    return options


def _leading(pair: Pair, lexicon: Lexicon) -> list[list[int]]:
    """The positions of each adverb or place that may also open the sentence."""
    place = [i for i, word in enumerate(pair.words) if word.phrase == "place"]
    adverb = [
        i
        for i, word in enumerate(pair.words)
        if word.role == "adv" and lexicon.adverbs[word.lemma].leads
    ]
    return [span for span in (place, adverb) if span]


_MAKERS: dict[str, Callable[..., None]] = {
    "wrong_word": _replacing("wrong_word", _other_words),
    "gender": _replacing("gender", _other_gender),
    "number": _replacing("number", _other_number),
    "tense": _replacing("tense", _other_tense),
    "diacritic": _replacing(
        "diacritic", lambda word, _: _unlike(word.text, [strip_accents(word.text)])
    ),
    "untranslated": _replacing(
        "untranslated",
        lambda word, _: [word.english] if word.role in ("noun", "verb", "adj", "adv") else [],
    ),
    "article": _article,
    "omission": _omission,
    "addition": _addition,
}
