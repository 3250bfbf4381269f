"""Judge data from real sentence pairs: reading TMX and TSV, and errors without a lexicon."""

import json
import os
import random
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.judge_data.generator.corpus import CorpusMaterial, read_corpus
from pt_app.judge_data.generator.errors import ERRORS, KINDS, Pair, reserved_for_judges
from pt_app.judge_data.generator.generate import generate
from pt_app.judge_data.generator.grammar import Grammar
from pt_app.judge_data.options import GenerateOptions

REAL = Path(os.environ.get("JUDGE_REAL_DATA", "../shared/data")) / "tico19-en-pt"
SMALL = {"rows": 60, "val_rows": 10, "test_rows": 10}


def _sentences(count: int) -> list[tuple[str, str]]:
    """Pairs of the grammar stand for a corpus: known, correct, and varied enough."""
    rng, grammar = random.Random(0), Grammar("small")
    return [(pair.source, pair.reference) for pair in (grammar.pick(rng) for _ in range(count))]


def _tsv(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return path


def _tmx(path: Path, units: str, head: str = '<tmx version="1.4">') -> Path:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<header/><body>\n{units}</body></tmx>\n'
    path.write_text(text, encoding="utf-8")
    return path


def _unit(english: str, portuguese: str, language: str = "pt-BR") -> str:
    return (
        f'<tu><tuv xml:lang="en"><seg>{english}</seg></tuv>'
        f'<tuv xml:lang="{language}"><seg>{portuguese}</seg></tuv></tu>\n'
    )


def _both_halves(path: Path, max_words: int | None = None) -> set[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for base in (False, True):
        try:
            found = read_corpus(path, max_words, base)[0]
        except UserError:
            continue
        pairs |= {(pair.source, pair.reference) for pair in found}
    return pairs


def test_tsv_and_tmx_give_the_same_pairs(tmp_path: Path) -> None:
    pairs = _sentences(50)
    tsv = _tsv(tmp_path / "a.tsv", pairs)
    tmx = _tmx(tmp_path / "a.tmx", "".join(_unit(a, b) for a, b in pairs))
    assert read_corpus(tsv) == read_corpus(tmx)
    assert _both_halves(tsv) == set(pairs)


def test_the_two_halves_of_a_corpus_share_no_source(tmp_path: Path) -> None:
    path = _tsv(tmp_path / "a.tsv", _sentences(200))
    judges, dropped = read_corpus(path)
    base, _ = read_corpus(path, base=True)
    assert not {p.source for p in judges} & {p.source for p in base}
    assert all(reserved_for_judges(pair.source) for pair in judges)
    assert dropped["reserved for a base"] == len(base)
    assert len(judges) > 60
    assert len(base) > 60


def test_tmx_with_a_namespace_inline_tags_and_old_lang_attributes_is_read(tmp_path: Path) -> None:
    unit = (
        '<tu><tuv lang="EN_us"><seg>the <bpt i="1"/>big  house</seg></tuv>'
        '<tuv lang="pt"><seg>a casa <ph>muito</ph> grande</seg></tuv></tu>'
    )
    path = _tmx(tmp_path / "a.tmx", unit, '<tmx xmlns="http://www.lisa.org/tmx14">')
    assert _both_halves(path) == {("the big house", "a casa muito grande")}


def test_brazilian_portuguese_is_preferred_to_other_portuguese(tmp_path: Path) -> None:
    unit = (
        '<tu><tuv xml:lang="pt-PT"><seg>o autocarro chegou cedo</seg></tuv>'
        '<tuv xml:lang="pt-BR"><seg>o ônibus chegou cedo</seg></tuv>'
        '<tuv xml:lang="en"><seg>the bus arrived early</seg></tuv></tu>'
    )
    path = _tmx(tmp_path / "a.tmx", unit)
    assert _both_halves(path) == {("the bus arrived early", "o ônibus chegou cedo")}


def test_pairs_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    pairs = _sentences(40)
    extra = [
        pairs[0],
        ("", "sem nada aqui"),
        ("one two", "um dois três"),
        ("a b c d e f g h i j k l", "um dois três"),
        ("the same same text", "the same same text"),
    ]
    _, dropped = read_corpus(_tsv(tmp_path / "a.tsv", pairs + extra), max_words=11)
    del dropped["reserved for a base"]
    assert dropped == {
        "one side missing": 1,
        "under 3 words": 1,
        "over 11 words": 1,
        "source repeated": 1,
        "not translated": 1,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"one two three\tum dois tr\xeas\n", r"a\.tsv is not UTF-8 at byte 24"),
        ("a.tsv", b"a b c\td e f\nonly one column\n", r"a\.tsv, row 2: 1 columns"),
        ("a.tsv", b"a b c\td e f\tg\n", r"a\.tsv, row 1: 3 columns"),
        ("a.tsv", b"", r"no usable .* \(no rows\)"),
        ("a.tsv", b"a b\tc d\n", r"no usable .* \(under 3 words 1\)"),
        ("a.tmx", b"<tmx><body>\n<tu>\n</body></tmx>", r"a\.tmx is not well-formed XML \(.*line 3"),
        ("a.tmx", b"", r"a\.tmx is not well-formed XML \(.*line 1"),
        ("a.tmx", b"English\tPortuguese\n", r"a\.tmx is not well-formed XML \(.*line 1"),
        ("a.tmx", b"<tmx>\n<seg>tr\xeas</seg></tmx>", r"a\.tmx is not well-formed XML \(.*line 2"),
        ("a.tmx", b'<?xml version="1.0" encoding="nonsense"?><tmx/>', r"a\.tmx.*encoding"),
        ("a.tmx", b"<tmx><body><tu/></body></tmx>", r"no usable .* \(one side missing 1\)"),
        ("a.csv", b"a,b\n", r"neither \.tmx nor \.tsv"),
    ],
)
def test_a_broken_corpus_is_named_with_its_place_and_nothing_is_written(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", GenerateOptions(**SMALL, corpus=tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tmx is not there"):
        read_corpus(tmp_path / "none.tmx")


def test_a_corpus_too_small_for_the_rows_says_how_many_it_gives(tmp_path: Path) -> None:
    path = _tsv(tmp_path / "a.tsv", _sentences(60))
    with pytest.raises(UserError, match=r"no more rows than \d+ train.*--rows.*--variants"):
        generate(tmp_path / "out", GenerateOptions(rows=500, val_rows=2, test_rows=2, corpus=path))
    assert not (tmp_path / "out").exists()


def test_a_corpus_gives_the_same_bytes_twice_and_disjoint_splits(tmp_path: Path) -> None:
    path = _tsv(tmp_path / "a.tsv", _sentences(200))
    for name in ("a", "b"):
        generate(tmp_path / name, GenerateOptions(**SMALL, corpus=path, max_words=20))
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    sources = []
    for split in ("train", "val", "test"):
        lines = (tmp_path / "a" / f"judge_{split}.json").read_text(encoding="utf-8").splitlines()
        sources.append({json.loads(line)["source"] for line in lines})
    assert len(set().union(*sources)) == sum(map(len, sources))
    card = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert card["licence"] == "that of the corpus"
    assert str(tmp_path) not in card["origin"]


TEXTS = [
    (
        "The doctor said (today) that the cases grew.",
        "O médico disse (hoje) que os casos cresceram.",
    ),
    ("Wash your hands - with soap, always!", "Lave as mãos - com sabão, sempre!"),
    ("SARS-CoV-2 is a virus; see Fig. 3.", "SARS-CoV-2 é um vírus; veja a Fig. 3."),
    ('"The school" is closed...', '"A escola" está fechada...'),
]


def _material() -> CorpusMaterial:
    return CorpusMaterial([Pair(a, b) for a, b in TEXTS + _sentences(300)])


def test_no_error_leaves_every_character_of_a_real_sentence() -> None:
    material = _material()
    for pair in material.pairs:
        assert material.corrupt(pair, [], random.Random(0)).text == pair.reference


def _check_candidates(material: CorpusMaterial, pairs: list[Pair]) -> dict[str, int]:
    """Checks what must hold of each; gives how many sentences took each kind of error."""
    found = dict.fromkeys(ERRORS, 0)
    for seed, pair in enumerate(pairs):
        for kind in ERRORS:
            candidate = material.corrupt(pair, [kind], random.Random(seed))
            found[kind] += len(candidate.issues)
            assert (candidate.text == pair.reference) == (not candidate.issues)
            for issue in candidate.issues:
                assert candidate.score == 10 - KINDS[kind].penalty
                assert issue.wrong.lower() in candidate.text.lower()
                assert issue.right.lower() in " ".join(pair.reference.lower().split())
        several = material.corrupt(pair, ERRORS, random.Random(seed))
        penalty = sum(KINDS[issue.kind].penalty for issue in several.issues)
        assert several.score == max(0, 10 - penalty)
    return found


def test_every_kind_of_error_can_be_put_into_sentences_of_a_corpus() -> None:
    material = _material()
    found = _check_candidates(material, material.pairs)
    assert min(found.values()) > 20, found


def test_names_numbers_and_joined_words_stay_as_they_are() -> None:
    material = _material()
    pair = Pair(*TEXTS[2])
    for seed in range(50):
        for kind in ERRORS:
            text = material.corrupt(pair, [kind], random.Random(seed)).text
            assert text.startswith("SARS-CoV-2")
            assert "3." in text


def test_an_opening_word_keeps_its_capital_when_it_is_changed_or_dropped() -> None:
    material = _material()
    pairs = [pair for pair in material.pairs if pair.reference.startswith(("O ", "A "))]
    for seed, pair in enumerate(pairs):
        for kind in ("article", "gender", "number"):
            assert material.corrupt(pair, [kind], random.Random(seed)).text[0].isupper()


def test_real_sentences_take_every_kind_of_error() -> None:
    path = REAL / "all.en-pt-BR.tmx"
    if not path.exists():
        pytest.skip(f"{path} is not there: set JUDGE_REAL_DATA to the folder of real data")
    pairs, dropped = read_corpus(path, max_words=40)
    base, _ = read_corpus(path, max_words=40, base=True)
    assert len(pairs) + len(base) + dropped["over 40 words"] + dropped["source repeated"] == 3071
    found = _check_candidates(CorpusMaterial(pairs), pairs[:400])
    assert min(found.values()) > 100, found
