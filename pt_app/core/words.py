"""What a word is: one normaliser and one splitter for leaks, duplicates, ROUGE-L and cuts.

Texts are compared in Unicode's compatibility form (NFKC: full-width digits and half-width kana are
the usual ones), without case. A script without blanks is split into its characters, each
with its marks.
"""

import re
import unicodedata
from functools import lru_cache

import regex

# A check looks at each text several times; 200 words take about a kilobyte.
KEPT_KEYS = 1 << 18
# Longer runs without a blank (an address, base64) are cut inside.
LONGEST_UNIT = 40

# Marks on other letters carry meaning: without its vowel signs a Hindi word is another word.
_ACCENTED = re.compile(r"([A-Za-z\u0370-\u03ff\u0400-\u04ff])[\u0300-\u036f]+")
# Thai to Tibetan, Myanmar, Khmer, Tai and Javanese scripts, kana, Bopomofo, Han, half-width kana.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u1aaf\u3005-\u3007\u3040-\u312f\u31f0-\u31ff"
    "\u3400-\u9fff\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_ONE_UNSPACED = re.compile(f"[{_UNSPACED}]")
_SPACELESS = re.compile(r"\S+")
_ZERO_WIDTH_SPACE = 0x200B
# A character as it is read, roughly a grapheme cluster of Unicode. Two letters make a flag. To the
# one before it belong marks, joiners, the vowels am of Thai and Lao, colours of skin, the letters
# of a region's flag, and what follows a joiner or a sign that stacks consonants (Khmer, Myanmar,
# Tai Tham).
_ONE = r"(?:[\U0001f1e6-\U0001f1ff]{2}|.)"
_JOINED = r"[\p{M}\u200c\u200d\u0e33\u0eb3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
_STACKED = rf"(?<=[\u200d\u17d2\u1039\u1a60]){_ONE}"
_CHARACTER = regex.compile(rf"(?s){_ONE}(?:{_JOINED}|{_STACKED})*")


class _Plain(dict[int, int | None]):
    """A table for str.translate: letters, numbers and marks stay, all else becomes a space.

    Signs that are not shown (soft hyphens, joiners, directions, variants) vanish; the one that
    parts words of a script without blanks is a space.
    """

    def __missing__(self, code: int) -> int | None:
        kind = unicodedata.category(chr(code))
        hidden = kind == "Cf" and code != _ZERO_WIDTH_SPACE
        hidden = hidden or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
        self[code] = None if hidden else code if kind[0] in "LNM" else 32
        return self[code]


_PLAIN = _Plain()


@lru_cache(maxsize=KEPT_KEYS)
def normalised(text: str) -> str:
    """Give `text` without case, accents and punctuation, its words joined by single spaces.

    A text of nothing but punctuation is itself, so that "?" and "!" stay two texts.
    """
    return _folded(text, accents=False) or text.strip()


def words_of(key: str) -> list[str]:
    """Split a normalised text into words; in a script without blanks each character is one."""
    if not _ONE_UNSPACED.search(key):
        return key.split()
    return [run[start:end] for run in key.split() for start, end in _pieces(run)]


def words(text: str) -> list[str]:
    """Return the words of a text as ROUGE-L compares them: without case, accents kept."""
    return words_of(_folded(text, accents=True))


def units(text: str) -> list[tuple[int, int]]:
    """Give start and end of what a cut may keep or drop: words, or characters without blanks.

    No unit ends within a character as it is read: a letter keeps its marks, an emoji its parts. A
    run longer than LONGEST_UNIT is several units.
    """
    spans: list[tuple[int, int]] = []
    for match in _SPACELESS.finditer(text):
        run, start = match[0], match.start()
        if len(run) <= LONGEST_UNIT and not _ONE_UNSPACED.search(run):
            spans.append(match.span())
            continue
        spans += [(start + a, start + b) for a, b in _pieces(run, LONGEST_UNIT)]
    return spans


def _folded(text: str, accents: bool) -> str:
    plain = text.casefold()
    if not text.isascii():
        # Some letters have a case only once they are decomposed, and the other way round.
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", plain).casefold())
        plain = plain if accents else _ACCENTED.sub(r"\1", plain)
        plain = unicodedata.normalize("NFC", plain)
    return " ".join(plain.translate(_PLAIN).split())


def _pieces(run: str, longest: int = 1 << 30) -> list[tuple[int, int]]:
    """Split a run without blanks: each character of a script without them, the rest together."""
    spans: list[tuple[int, int]] = []
    whole = True  # whether the last piece takes no more
    for start, end in (match.span() for match in _CHARACTER.finditer(run)):
        alone = _ONE_UNSPACED.match(run[start]) is not None
        if alone or whole or end - spans[-1][0] > longest:
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
        whole = alone
    return spans


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
