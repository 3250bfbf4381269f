"""Near duplicates: what is one, that one is always found, and what a split must keep together."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import DisjointSet

from pt_app.core.errors import UserError
from pt_app.core.leaks import find_leaks, input_text
from pt_app.core.records import JudgeExample, Label
from pt_app.core.words import normalised, words_of
from pt_app.judge_data.duplicates import links, near_edges, near_pairs
from pt_app.judge_data.generator.grammar import Grammar


def example(source: str, candidate: str = "sim", **own: object) -> JudgeExample:
    return JudgeExample.model_validate(
        {"source": source, "candidate": candidate, "label": Label(verdict=1), **own}
    )


def some_words(rng: random.Random, count: int) -> list[str]:
    return [f"word{rng.randrange(5000)}" for _ in range(count)]


@settings(deadline=None, max_examples=200)
@given(st.integers(20, 60), st.integers(0, 2**32))
def test_one_word_in_twenty_changed_is_always_found(count: int, seed: int) -> None:
    rng = random.Random(seed)
    words = some_words(rng, count)
    changed = list(words)
    changed[rng.randrange(count)] = "another"
    others = [" ".join(some_words(rng, count)) for _ in range(5)]
    keys = [" ".join(words), *others, " ".join(changed)]
    assert [(a, b) for a, b, _ in near_edges(keys, 0.9)] == [(0, len(keys) - 1)]


def test_a_thousand_unrelated_rows_have_no_near_duplicates() -> None:
    rng = random.Random(0)
    rows = [
        example(" ".join(some_words(rng, 25)), " ".join(some_words(rng, 25))) for _ in "x" * 1000
    ]
    assert near_pairs(rows) == []
    assert links(rows) == []


def test_generated_sentences_are_no_near_duplicates_of_each_other() -> None:
    grammar = Grammar()
    rng = random.Random(1)
    sources = {normalised(grammar.pick(rng).source) for _ in range(2000)}
    assert list(near_edges(sorted(sources), 0.9)) == []


def test_a_text_without_spaces_is_compared_by_its_characters() -> None:
    text = "在食用受污染宠物食品后死亡的宠物的尿样中均发现了氰尿酸和三聚氰胺"
    other = text.replace("死", "活")
    assert len(words_of(text)) == len(text)
    assert [(a, b) for a, b, _ in near_edges([text, other], 0.9)] == [(0, 1)]


def test_the_pairs_are_the_same_whatever_the_order_of_the_rows() -> None:
    rng = random.Random(3)
    rows = [example(" ".join(some_words(rng, 30))) for _ in range(40)]
    rows += [example(row.source + " more", row.candidate or "") for row in rows[:10] if row.source]
    shuffled = rng.sample(rows, len(rows))

    def found(examples: list[JudgeExample]) -> set[frozenset[str]]:
        return {
            frozenset((input_text(examples[p.a]), input_text(examples[p.b])))
            for p in near_pairs(examples)
        }

    assert len(found(rows)) == 10
    assert found(rows) == found(shuffled)


def test_thousands_of_variants_of_one_text_end_in_one_cluster() -> None:
    rng = random.Random(4)
    words = some_words(rng, 40)
    keys = sorted({" ".join([*words[:20], f"order{i}", *words[21:]]) for i in range(2000)})
    clusters = DisjointSet(range(len(keys)))
    for a, b, _ in near_edges(keys, 0.9):
        assert clusters.merge(a, b), "a pair that joins nothing was told"
    assert len({clusters[i] for i in range(len(keys))}) == 1


def test_rows_that_share_a_long_candidate_stay_together_unless_it_is_boilerplate() -> None:
    long = "esta é uma frase bem longa que ninguém escreve duas vezes"
    refusal = "as an assistant I cannot answer this question for you today"
    rows = [example("first", long), example("second", long.upper()), example("third", "curta")]
    rows += [example(f"input {i}", refusal) for i in range(4)]
    rows += [example("fourth", "curta")]
    assert links(rows) == [(0, 1)]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_rows_split_along_their_links_show_no_leak(data: st.DataObject) -> None:
    """The split and the check must call the same things a leak."""
    texts = [
        "a b c d e f g h",
        "A b, c d e f g h",
        "é um",
        "E um",
        "x",
        "uma frase de oito palavras com mais uma",
    ]
    rows = [
        example(data.draw(st.sampled_from(texts)), data.draw(st.sampled_from(texts)), id=str(i))
        for i in range(12)
    ]
    units = DisjointSet(range(len(rows)))
    for a, b in links(rows):
        units.merge(a, b)
    sides = {unit: data.draw(st.booleans()) for unit in {units[i] for i in range(len(rows))}}
    splits = {
        name: [row for i, row in enumerate(rows) if sides[units[i]] is side]
        for name, side in (("train", True), ("test", False))
    }
    assert find_leaks(splits) == []


def test_a_share_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match=r"--near is 0\.2: choose"):
        near_pairs([example("a")], near=0.2)
