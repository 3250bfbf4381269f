"""Real sentence pairs from a parallel corpus, TMX or TSV, and errors put into them.

There is no grammar: every change is one that two attested forms or a closed table allow. A word
that no rule covers, a name, a number or a word with a hyphen is left as it is.
"""

import random
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import read_text
from pt_app.judge_data.generator.errors import (
    Candidate,
    Draft,
    Pair,
    reserved_for_judges,
    strip_accents,
    tokens,
)
from pt_app.judge_data.generator.lexicon import Row, synonyms, table

MIN_WORDS = 3
LANG = "{http://www.w3.org/XML/1998/namespace}lang"
FUNCTION_WORDS = frozenset(row["form"] for row in table("function_words"))
ARTICLES = ("o", "a", "os", "as", "um", "uma")
_FEMININE = ("a", "ão", "ade", "gem", "as", "ões", "ades", "gens")


@cache
def _inflections(kind: str) -> dict[str, Row]:
    """Read which form an error puts in place of another: of words, and of endings ("-ado").

    An ending is changed in words that are at least `min_stem` letters longer.
    """
    return {row["form"]: row for row in table("inflections") if row["kind"] == kind}


def _plain(word: str) -> bool:
    return word.isalpha() and word.islower()


def content(word: str) -> bool:
    """Return whether a word carries meaning: lower case, four letters or more, no function word."""
    return _plain(word) and len(word) > 3 and word not in FUNCTION_WORDS


class Vocabulary:
    """What a corpus attests: counts of Portuguese words, and which English word goes with which.

    Only words written in lower case count, so that names stay out.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.sentences = [[core for _, core, _ in tokens(pair.reference)] for pair in pairs]
        self.counts = Counter(word for words in self.sentences for word in words if _plain(word))
        self._english: dict[str, set[int]] = defaultdict(set)
        self._portuguese: dict[str, set[int]] = defaultdict(set)
        for number, (pair, words) in enumerate(zip(pairs, self.sentences, strict=True)):
            for word in words:
                self._portuguese[word.lower()].add(number)
            for _, core, _ in tokens(pair.source):
                self._english[core.lower()].add(number)

    @cached_property
    def _bands(self) -> dict[tuple[str, int], list[str]]:
        bands: dict[tuple[str, int], list[str]] = defaultdict(list)
        for word in filter(content, sorted(self.counts)):
            bands[self._band(word)].append(word)
        return bands

    def _band(self, word: str) -> tuple[str, int]:
        return word[-3:], self.counts[word].bit_length()

    def neighbours(self, word: str) -> list[str]:
        """List other content words about as frequent, with the same ending and another start."""
        return [other for other in self._bands[self._band(word)] if other[:3] != word[:3]]

    def attested(self, word: str) -> bool:
        """Return whether the corpus has the word at least twice."""
        return self.counts[word] >= 2

    def translation(self, word: str, source: str) -> str:
        """Find the word of `source` that most often occurs together with `word`, or "".

        Counted by the Dice coefficient over sentences: at least 0.3, and two sentences with both.
        Words that are Portuguese too are passed over.
        """
        here = self._portuguese[word]

        def dice(english: str) -> float:
            there = self._english[english]
            both = len(here & there)
            return 2 * both / (len(here) + len(there)) if both > 1 else 0.0

        words = [core for _, core, _ in tokens(source) if _plain(core) and len(core) > 3]
        best = max((core for core in words if core not in self.counts), key=dice, default="")
        return best if dice(best) > 0.3 else ""

    def snippet(self, rng: random.Random) -> str:
        """Draw one to three neighbouring words of some sentence; "" where it has none to give."""
        words = self.sentences[rng.randrange(len(self.sentences))]
        count = rng.randint(1, 3)
        spans = [words[i : i + count] for i in range(len(words) - count + 1)]
        spans = [span for span in spans if all(map(_plain, span)) and content(span[-1])]
        return " ".join(rng.choice(spans)) if spans else ""


class CorpusMaterial:
    """The sentence pairs of a corpus; errors are made without a lexicon of its words."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.vocabulary = Vocabulary(self.pairs)

    def pick(self, rng: random.Random) -> Pair:
        """Draw any of the pairs."""
        return rng.choice(self.pairs)

    def draw(self, rng: random.Random) -> Iterator[Pair]:
        """Yield every pair once, in random order."""
        yield from rng.sample(self.pairs, len(self.pairs))

    def corrupt(self, pair: Pair, kinds: Sequence[str], rng: random.Random) -> Candidate:
        """Translate `pair` with errors of these kinds: see `Draft.corrupt`."""
        return CorpusDraft(pair, self.vocabulary, rng).corrupt(kinds)


class CorpusDraft(Draft):
    """A real sentence while errors are put into it; only plain lower-case words are changed."""

    def __init__(self, pair: Pair, vocabulary: Vocabulary, rng: random.Random) -> None:
        super().__init__(pair.reference, rng)
        self.source, self.vocabulary = pair.source, vocabulary
        lowered = self.texts[0][:1].lower() + self.texts[0][1:]
        if self.capital and (vocabulary.attested(lowered) or lowered in FUNCTION_WORDS):
            self.texts[0] = lowered
        self.free = {at for at, text in enumerate(self.texts) if _plain(text)}

    def spans(self, kind: str) -> list[range]:
        """List the articles; or one to three words that end in a content word.

        No span crosses punctuation.
        """
        bare = [affix == ("", "") for affix in self.affixes]
        places = range(len(self.texts))
        if kind == "article":
            articles = [at for at in places if bare[at] and self.texts[at] in ARTICLES]
            return [range(at, at + 1) for at in articles if self._precedes_its_noun(at)]
        return [
            range(start, end)
            for start in places[1:]
            for end in range(start + 1, min(start + 3, len(places)) + 1)
            if all(bare[start : end - 1]) and not self.affixes[end - 1][0]
            if content(self.texts[end - 1])
        ]

    def _precedes_its_noun(self, at: int) -> bool:
        """Return whether a word can be the article of the next one, judged by that one's ending.

        Tells the article "a" from the preposition, at the price of leaving out rarer nouns.
        """
        article, noun = self.texts[at], "".join(self.texts[at + 1 : at + 2]).partition(" ")[0]
        feminine, plural = article.rstrip("s").endswith(("a", "à")), article.endswith("s")
        fits = noun.endswith(_FEMININE) == feminine and noun.endswith("s") == plural
        return fits and content(noun)

    def options(self, kind: str, at: int) -> Sequence[str]:
        """List other forms of a word or other words that the corpus or a table attests."""
        word = self.texts[at]
        if kind == "wrong_word":
            return self.vocabulary.neighbours(word) if content(word) else []
        if kind == "untranslated":
            return [self.vocabulary.translation(word, self.source)] if content(word) else []
        if kind == "diacritic":
            # Three letters or more: "é" without its accent is another word, and no slip.
            return [strip_accents(word)] if len(word) > 2 else []
        if row := _inflections(kind).get(word):
            return [row["other"]] if kind == "tense" or self._precedes_its_noun(at) else []
        return [self._other_ending(word, kind)] if content(word) else []

    def _other_ending(self, word: str, kind: str) -> str:
        """Inflect a content word by its ending; "" where the corpus does not attest the result."""
        for form, row in _inflections(kind).items():
            stem = word.removesuffix(form[1:])
            if form.startswith("-") and stem != word and len(stem) >= int(row["min_stem"]):
                other = stem + row["other"][1:]
                fits = kind != "tense" or other not in FUNCTION_WORDS
                return other if fits and self.vocabulary.attested(other) else ""
        return ""

    def add(self) -> None:
        """Put words of another sentence behind a content word."""
        places = [at for at in sorted(self.free) if content(self.texts[at])]
        text = self.vocabulary.snippet(self.rng)
        if places and text and text not in " ".join(self.texts):
            self.insert(self.rng.choice(places), text)

    def reword(self) -> None:
        """Swap one word for a listed synonym."""
        others = synonyms("rewordings")
        if places := [at for at in sorted(self.free) if self.texts[at] in others]:
            at = self.rng.choice(places)
            self.texts[at] = others[self.texts[at]]


def read_corpus(
    path: Path, max_words: int | None = None, base: bool = False
) -> tuple[list[Pair], dict[str, int]]:
    """Read the pairs reserved for judges (`base`: the others), and count the rest by reason.

    Pairs longer than `max_words` on either side are left out, as are those under 3 words and
    repeated sources; spaces are collapsed.

    Raises:
        UserError: The file is missing, neither TMX nor TSV, not well-formed XML, not UTF-8, has a
            row without two columns, or holds no usable pair.
    """
    readers = {".tmx": _read_tmx, ".tsv": _read_tsv}
    if path.suffix.lower() not in readers:
        raise UserError(f"corpus {path} is neither .tmx nor .tsv: convert it to one of them")
    if not path.is_file():
        raise UserError(f"corpus {path} is not there: name a TMX or TSV file with --corpus")
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for source, target in readers[path.suffix.lower()](path):
        pair = Pair(" ".join(source.split()), " ".join(target.split()))
        if reason := _reason(pair, seen, max_words, base):
            dropped[reason] += 1
        else:
            kept.append(pair)
    if not kept:
        counts = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items())) or "no rows"
        raise UserError(
            f"corpus {path} has no usable English-Portuguese pair ({counts}): see --max_words"
        )
    return kept, dict(sorted(dropped.items()))


def _reason(pair: Pair, seen: set[str], max_words: int | None, base: bool) -> str:
    """Say why a pair is left out, or ""; the source of a pair of fit length is added to `seen`."""
    sides = (pair.source, pair.reference)
    lengths = [len(text.split()) for text in sides]
    reasons = {
        "one side missing": not all(sides),
        f"under {MIN_WORDS} words": min(lengths) < MIN_WORDS,
        f"over {max_words} words": max_words is not None and max(lengths) > max_words,
    }
    if not any(reasons.values()):
        key = pair.source.casefold()
        reasons["source repeated"] = key in seen
        reasons["not translated"] = pair.source == pair.reference
        other = "reserved for judges" if base else "reserved for a base"
        reasons[other] = reserved_for_judges(pair.source) == base
        seen.add(key)
    return next((reason for reason, applies in reasons.items() if applies), "")


def _read_tsv(path: Path) -> Iterator[tuple[str, str]]:
    """Yield English and Portuguese, with a tab between, of each line; empty lines are skipped."""
    # Only "\n" ends a row: a text may hold U+2028 and its like, where splitlines would cut.
    for row, line in enumerate(read_text(path).replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 2:
            problem = f"{len(columns)} columns where there must be 2, English and Portuguese"
            raise UserError(f"{path}, row {row}: {problem}, with a tab between: correct it")
        yield columns[0], columns[1]


def _read_tmx(path: Path) -> Iterator[tuple[str, str]]:
    """Yield English and Portuguese of each unit, "" where it has none.

    Each unit is dropped from the tree once it is read, so that memory stays small.
    """
    try:
        events = ET.iterparse(path, events=("start", "end"))
        _, root = next(events)
        for event, element in events:
            if event == "end" and element.tag.rpartition("}")[2] == "tu":
                yield _unit(element)
                root.clear()
    except (ET.ParseError, LookupError, ValueError) as error:  # the latter two: its encoding
        raise UserError(
            f"{path} is not well-formed XML ({error}): correct it, or convert it to UTF-8"
        ) from error


def _unit(unit: ET.Element) -> tuple[str, str]:
    """Return the first English and Portuguese text of a unit, Brazilian before other Portuguese."""
    texts: dict[str, str] = {}
    for variant in unit.iterfind("{*}tuv"):
        language = (variant.get(LANG) or variant.get("lang") or "").lower().replace("_", "-")
        text = "".join("".join(seg.itertext()) for seg in variant.iterfind("{*}seg"))
        name = language if language == "pt-br" else language.split("-")[0]
        texts[name] = texts.get(name) or text
    return texts.get("en", ""), texts.get("pt-br") or texts.get("pt", "")
