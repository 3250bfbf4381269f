"""The generated judge data: sentences, errors, and the folder that is written."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.judge_data.generator.errors import ERRORS, KINDS, Pair, reserved_for_judges
from pt_app.judge_data.generator.generate import generate
from pt_app.judge_data.generator.grammar import Grammar
from pt_app.judge_data.generator.lexicon import NUMBERS, TENSES, Row, load_lexicon, synonyms
from pt_app.judge_data.options import GenerateOptions

GRAMMAR = Grammar("full")
FULL = GRAMMAR.lexicon
SMALL = {"rows": 60, "val_rows": 20, "test_rows": 30}
COMMITTED = Path(__file__).parent.parent / "datasets" / "judge_eval"


def _pair(seed: int) -> Pair:
    return GRAMMAR.pick(random.Random(seed))


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    text = (folder / f"judge_{split}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in ("train", "val", "test") for row in _rows(folder, split)]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "demo"
    generate(out, GenerateOptions(rows=1200, val_rows=100, test_rows=330, seed=3))
    return out


@pytest.mark.parametrize(
    ("size", "counts"), [("full", (150, 60, 40, 12)), ("small", (40, 12, 12, 6))]
)
def test_the_lexicon_has_its_size(size: Any, counts: tuple[int, ...]) -> None:
    lexicon = load_lexicon(size)
    roles = ("noun", "verb", "adjective", "adverb")
    assert tuple(len(lexicon[role]) for role in roles) == counts


GENDERS = ("masculine", "feminine")
FORMS = {
    "noun": NUMBERS,
    "verb": [f"{tense}_{number}" for tense in TENSES for number in NUMBERS],
    "adjective": [f"{gender}_{number}" for gender in GENDERS for number in NUMBERS],
    "adverb": ["portuguese"],
}
FORMS["determiner"] = FORMS["adjective"]


def _forms(role: str, row: Row) -> set[str]:
    return {row[name] for name in FORMS[role]}


def _own_words(english: bool) -> list[str]:
    """Every form of every entry once; an entry may use one form twice (o lápis, os lápis)."""
    groups: list[set[str]] = []
    for role in FORMS:
        for row in FULL[role]:
            names = {cell for name, cell in row.items() if name.startswith("english")}
            groups.append(names if english else _forms(role, row))
    return [word for group in groups for word in group]


@pytest.mark.parametrize("english", [True, False])
def test_no_word_of_the_lexicon_has_two_meanings(english: bool) -> None:
    assert [word for word, n in Counter(_own_words(english)).items() if n > 1] == []


def test_no_synonym_is_the_translation_of_another_word() -> None:
    words = set(_own_words(english=False))
    table = synonyms("synonyms")
    assert table.keys() <= words
    assert not words & set(table.values())


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_words_of_a_noun_phrase_agree_and_so_does_the_verb(seed: int) -> None:
    pair = _pair(seed)
    assert 3 <= len(pair.words) <= 9
    nouns = {w.phrase: w.row for w in pair.words if w.role == "noun"}
    numbers = {w.phrase: w.number for w in pair.words if w.role == "noun"}
    for word in pair.words:
        if word.role in ("determiner", "adjective"):
            gender = nouns[word.phrase]["gender"]
            assert word.text == word.row[f"{gender}_{numbers[word.phrase]}"]
        if word.role == "verb":
            assert word.text == word.row[f"{word.tense}_{numbers['subject']}"]


def test_articles_of_some_nouns_are_those_a_speaker_uses() -> None:
    by_noun = {noun["singular"]: noun for noun in FULL["noun"]}
    article, place = GRAMMAR.determiners["definite"], GRAMMAR.determiners["at_the"]
    said = {"pão": "o", "mapa": "o", "lição": "a", "criança": "a", "árvore": "a"}
    for noun, expected in said.items():
        assert article[f"{by_noun[noun]['gender']}_singular"] == expected
    assert [place[name] for name in FORMS["determiner"]] == ["no", "nos", "na", "nas"]
    plurals = [by_noun[noun]["plural"] for noun in ("pão", "irmão", "lição")]
    assert plurals == ["pães", "irmãos", "lições"]


def test_a_seed_gives_one_sequence_of_sentences() -> None:
    def draw(seed: int) -> list[Pair]:
        rng = random.Random(seed)
        return [GRAMMAR.pick(rng) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_about_half_of_all_sources_are_reserved_for_judges() -> None:
    sources = {_pair(seed).source for seed in range(2000)}
    share = sum(map(reserved_for_judges, sources)) / len(sources)
    assert 0.46 < share < 0.54


def test_case_and_spaces_do_not_change_who_owns_a_source() -> None:
    for seed in range(20):
        source = _pair(seed).source
        assert reserved_for_judges(source) == reserved_for_judges(f" {source.upper()}  ")


@given(st.integers(0, 2**32), st.lists(st.sampled_from(ERRORS), max_size=4))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_score_follows_from_errors_that_are_really_there(seed: int, kinds: list[str]) -> None:
    pair = _pair(seed)
    candidate = GRAMMAR.corrupt(pair, kinds, random.Random(seed))
    penalty = sum(KINDS[issue.kind].penalty for issue in candidate.issues)
    assert candidate.score == max(0, 10 - penalty)
    assert (candidate.text == pair.reference) == (not candidate.issues)
    for issue in candidate.issues:
        assert issue.wrong.lower() in candidate.text.lower()
        assert issue.right.lower() in pair.reference.lower()
        assert issue.wrong != issue.right


@pytest.mark.parametrize("kind", ERRORS)
def test_each_kind_of_error_changes_what_its_name_says(kind: str) -> None:
    found = 0
    for seed in range(60):
        pair = _pair(seed)
        for issue in GRAMMAR.corrupt(pair, [kind], random.Random(seed)).issues:
            found += 1
            assert CHANGES[kind](issue.wrong, issue.right, pair), (issue, pair)
    assert found > 20


def _same_root(wrong: str, right: str, _pair: Pair) -> bool:
    """Both are forms of one entry."""
    roles = ("noun", "verb", "adjective", "determiner")
    return any({wrong, right} <= _forms(role, row) for role in roles for row in FULL[role])


CHANGES: dict[str, Callable[[str, str, Pair], bool]] = {
    "wrong_word": lambda wrong, right, pair: not _same_root(wrong, right, pair),
    "gender": _same_root,
    "number": _same_root,
    "tense": _same_root,
    "diacritic": lambda wrong, right, _: wrong.isascii() and len(wrong) == len(right),
    "untranslated": lambda wrong, _, pair: wrong in pair.source.lower(),
    "article": lambda wrong, right, _: (
        not wrong and right in ("o", "a", "os", "as", "um", "uma", "alguns", "algumas")
    ),
    "omission": lambda wrong, right, _: not wrong and bool(right),
    "addition": lambda wrong, right, _: not right and bool(wrong),
}


def test_a_paraphrase_has_full_score_and_another_text() -> None:
    found = [GRAMMAR.corrupt(_pair(s), ["paraphrase"], random.Random(s)) for s in range(200)]
    other = [c for s, c in enumerate(found) if c.text != _pair(s).reference]
    assert len(other) > 80
    assert all(c.paraphrased and c.score == 10 and c.issues == () for c in other)
    assert {c.feedback for c in other} == {"No errors, another wording."}


def test_a_paraphrase_among_errors_is_refused() -> None:
    with pytest.raises(ValueError, match="alone"):
        GRAMMAR.corrupt(_pair(0), ["paraphrase", "tense"], random.Random(0))


def test_feedback_names_the_two_heaviest_errors() -> None:
    candidate = GRAMMAR.corrupt(_pair(1), ["number", "tense", "untranslated"], random.Random(1))
    assert [issue.kind for issue in candidate.issues] == ["number", "tense", "untranslated"]
    assert candidate.feedback == "A word stays in English and the tense is wrong."


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate(tmp_path / name, GenerateOptions(**SMALL, seed=4))
    generate(tmp_path / "c", GenerateOptions(**SMALL, seed=5))
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert _bytes(tmp_path / "a") != _bytes(tmp_path / "c")


def test_more_training_rows_leave_the_test_rows_as_they_are(tmp_path: Path) -> None:
    generate(tmp_path / "a", GenerateOptions(**SMALL))
    generate(tmp_path / "b", GenerateOptions(**(SMALL | {"rows": 90})))
    assert _rows(tmp_path / "a", "test") == _rows(tmp_path / "b", "test")
    assert _rows(tmp_path / "a", "train") == _rows(tmp_path / "b", "train")[:60]


def test_splits_share_no_source_and_none_belongs_to_a_base(folder: Path) -> None:
    sources = {s: {row["source"] for row in _rows(folder, s)} for s in ("train", "val", "test")}
    assert len(sources["test"]) == 330
    assert not sources["train"] & sources["test"]
    assert not sources["val"] & (sources["train"] | sources["test"])
    assert all(map(reserved_for_judges, set().union(*sources.values())))


def test_splits_json_places_the_group_of_every_row(folder: Path) -> None:
    placed = json.loads((folder / "splits.json").read_text())
    for split in ("train", "val", "test"):
        assert {placed[row["group"]] for row in _rows(folder, split)} == {split}
    assert set(placed) == {row["group"] for row in _all_rows(folder)}


def test_rows_have_unique_ids_and_candidates_of_a_source_differ(folder: Path) -> None:
    rows = _all_rows(folder)
    assert len({row["id"] for row in rows}) == len(rows) == 1630
    assert len({(row["source"], row["candidate"]) for row in rows}) == len(rows)
    assert set(Counter(row["group"] for row in _rows(folder, "train")).values()) == {4}


def test_the_score_of_a_row_follows_from_its_errors(folder: Path) -> None:
    for row in _all_rows(folder):
        penalty = sum(KINDS[kind].penalty for kind in row["errors"])
        assert row["label"]["verdict"] == max(0, 10 - penalty)
        assert [issue.split()[0] for issue in row["label"]["issues"]] == [
            kind for kind in row["errors"] if kind != "paraphrase"
        ]


def test_every_score_and_every_kind_of_error_occurs(folder: Path) -> None:
    rows = _all_rows(folder)
    scores = Counter(row["label"]["verdict"] for row in rows)
    assert min(scores[score] for score in range(11)) >= 10
    assert max(scores.values()) < 0.3 * len(rows)
    assert {kind for row in rows for kind in row["errors"]} == set(KINDS)


def test_hard_negatives_are_attacked_copies_beside_the_rows_as_they_were(tmp_path: Path) -> None:
    counts = {"rows": 80, "val_rows": 5, "test_rows": 5}
    generate(tmp_path / "plain", GenerateOptions(**counts))
    generate(tmp_path / "hard", GenerateOptions(**counts, hard_negatives=0.5))
    plain, hard = (
        [json.loads(line) for line in (tmp_path / name / "judge_train.json").open()]
        for name in ("plain", "hard")
    )
    assert hard[:80] == plain
    added, by_id = hard[80:], {row["id"]: row for row in plain}
    assert 30 <= len(added) <= 40
    lowest = 0
    for row in added:
        clean = by_id[row["id"].removesuffix("-attacked")]
        assert row["group"] == clean["group"]
        assert row["candidate"] != clean["candidate"]
        if row["candidate"].startswith(clean["candidate"]):
            assert row["label"] == clean["label"]  # flattery changes no label
        else:
            assert row["label"]["verdict"] == 0
            lowest += 1
    assert 0 < lowest < len(added)
    for name in ("judge_val.json", "judge_test.json"):
        assert (tmp_path / "hard" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert "--hard_negatives 0.5" in (tmp_path / "hard" / "dataset.json").read_text()
    read_dataset(tmp_path / "hard")  # no leak, no row of one text twice


def test_a_second_call_finds_its_files_and_writes_nothing(tmp_path: Path) -> None:
    assert generate(tmp_path, GenerateOptions(**SMALL)).written
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert not generate(tmp_path, GenerateOptions(**SMALL)).written
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_run_that_was_killed_halfway_is_completed(tmp_path: Path) -> None:
    generate(tmp_path / "whole", GenerateOptions(**SMALL))
    generate(tmp_path / "cut", GenerateOptions(**SMALL))
    (tmp_path / "cut" / "dataset.json").unlink()
    assert generate(tmp_path / "cut", GenerateOptions(**SMALL)).written
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 9}, {"val_rows": 0}, {"rows": 61}])
def test_a_folder_of_another_command_is_left_alone(tmp_path: Path, change: dict[str, int]) -> None:
    generate(tmp_path, GenerateOptions(**SMALL))
    before = _bytes(tmp_path)
    with pytest.raises(UserError, match=r"another command.*--out"):
        generate(tmp_path, GenerateOptions(**(SMALL | change)))
    assert _bytes(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        generate(tmp_path / "out", GenerateOptions(**SMALL))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "--rows 0: must be a number at least 1"),
        ({"hard_negatives": 1.5}, "--hard_negatives 1.5: must be a number"),
        ({"rows": -5}, "--rows -5"),
        ({"val_rows": -1}, "--val_rows -1"),
        ({"test_rows": 0}, "--test_rows 0"),
        ({"seed": -1}, "--seed -1"),
        ({"variants": 17}, "--variants 17"),
        ({"max_words": 10}, "--max_words filters a corpus"),
        ({"lexicon": "huge"}, "--lexicon 'huge': must be one of full"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", GenerateOptions(**(SMALL | arguments)))
    assert not (tmp_path / "out").exists()


def test_the_small_lexicon_gives_small_lexicon_words(tmp_path: Path) -> None:
    generate(tmp_path, GenerateOptions(**SMALL, lexicon="small"))
    words = {word for row in _all_rows(tmp_path) for word in row["reference"][:-1].lower().split()}
    assert "tubarão" not in words
    assert "menina" in words or "meninas" in words


def test_the_folder_names_its_command_and_hashes(folder: Path) -> None:
    card = json.loads((folder / "dataset.json").read_text())
    assert (card["task"], card["scale"], card["licence"]) == ("score", "0-10", "Apache-2.0")
    readme = (folder / "README.md").read_text()
    assert "--rows 1200 --val_rows 100 --test_rows 330 --seed 3" in readme
    assert all(digest in readme for digest in card["sha256"].values())


def test_the_committed_set_is_what_its_command_writes(tmp_path: Path) -> None:
    generate(tmp_path, GenerateOptions(rows=1200, val_rows=100, test_rows=200, seed=1))
    assert _bytes(tmp_path) == _bytes(COMMITTED)


def test_a_generated_folder_is_read_back_without_a_note(folder: Path) -> None:
    from pt_app.core.dataset import read_dataset

    data = read_dataset(folder)
    assert (len(data.train), len(data.val), len(data.test)) == (1200, 100, 330)
    assert data.notes == ()
    assert {example.group for example in data.test} == {r["group"] for r in _rows(folder, "test")}
