"""Real sentence pairs from a parallel corpus, TMX or TSV, English and Portuguese."""

import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.judge_data.generator.corpus_errors import Vocabulary, corrupt_text
from pt_app.judge_data.generator.errors import Candidate
from pt_app.judge_data.generator.grammar import Pair, reserved_for_judges

MIN_WORDS = 3
LANG = "{http://www.w3.org/XML/1998/namespace}lang"


class CorpusMaterial:
    """The sentence pairs of a corpus; errors are made without a lexicon of its words."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.vocabulary = Vocabulary([(p.source, p.reference) for p in self.pairs])

    def pick(self, rng: random.Random) -> Pair:
        """Draw any of the pairs."""
        return rng.choice(self.pairs)

    def draw(self, rng: random.Random) -> Iterator[Pair]:
        """Yield every pair once, in random order."""
        yield from rng.sample(self.pairs, len(self.pairs))

    def corrupt(self, pair: Pair, kinds: Sequence[str], rng: random.Random) -> Candidate:
        """See `corpus_errors.corrupt_text`."""
        return corrupt_text(pair.source, pair.reference, kinds, self.vocabulary, rng)


def read_corpus(
    path: Path, max_words: int | None = None, base: bool = False
) -> tuple[list[Pair], dict[str, int]]:
    """Read the pairs reserved for judges (`base`: the others), and count the rest by reason.

    Pairs longer than `max_words` on either side are left out, as are those under 3 words and
    repeated sources; spaces are collapsed. Raises UserError for a file that is missing, neither
    TMX nor TSV, not well-formed (file and line), not UTF-8 (byte), of a row without two columns,
    or without a usable pair.
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
    """Say why a pair is left out, or ""; its source is added to `seen`."""
    if not pair.source or not pair.reference:
        return "one side missing"
    lengths = [len(text.split()) for text in (pair.source, pair.reference)]
    if min(lengths) < MIN_WORDS:
        return f"under {MIN_WORDS} words"
    if max_words is not None and max(lengths) > max_words:
        return f"over {max_words} words"
    key = pair.source.casefold()
    if key in seen:
        return "source repeated"
    seen.add(key)
    if pair.source == pair.reference:
        return "not translated"
    if reserved_for_judges(pair.source) == base:
        return "reserved for judges" if base else "reserved for a base"
    return ""


def _read_tsv(path: Path) -> Iterator[tuple[str, str]]:
    """Yield English and Portuguese, with a tab between, of each line; empty lines are skipped."""
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, byte {error.start}: not UTF-8: convert it") from error
    # Only "\n" ends a row: a text may hold U+2028 and its like, where splitlines would cut.
    for row, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 2:
            raise UserError(
                f"{path}, row {row}: {len(columns)} columns where there must be 2, "
                "English and Portuguese with a tab between: correct it"
            )
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
    except ET.ParseError as error:
        line = error.position[0]
        raise UserError(
            f"{path}, line {line}: not well-formed XML ({error}): correct it"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"{path}: {error}: convert it to UTF-8") from error


def _unit(unit: ET.Element) -> tuple[str, str]:
    """Return the first English and Portuguese text of a unit, Brazilian before other Portuguese."""
    texts: dict[str, str] = {}
    for variant in unit.iterfind("{*}tuv"):
        language = (variant.get(LANG) or variant.get("lang") or "").lower().replace("_", "-")
        text = "".join("".join(seg.itertext()) for seg in variant.iterfind("{*}seg"))
        name = language if language == "pt-br" else language.split("-")[0]
        texts[name] = texts.get(name) or text
    return texts.get("en", ""), texts.get("pt-br") or texts.get("pt", "")
