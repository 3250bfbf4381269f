"""Lines of verdicts that are read only as far as they say something about a row."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pt_app.core.settings import SAMPLE
from pt_app.scoring import branches
from pt_app.scoring.branches import MARGIN, TOLERANCE, chosen_lines, shortened
from pt_app.scoring.scorer import JudgeScorer
from pt_app.scoring.verdict_trie import VerdictTrie
from tests.question_rows import questions
from tests.test_scoring import encoder_of, examples
from tests.tiny_models import make_model, make_tokenizer

# Numbers of two digits, then a terminator and a tail of two tokens: 0 to 99.
LINES = [[*map(int, str(number)), 10, 11, 12] for number in range(0, 100, 7)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def steps_of(trie, rows, seed, spread):
    """Random steps; behind the token that tells a line apart they differ by row by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    steps = -3 * torch.rand(rows, len(trie.steps), generator=generator, dtype=torch.float64)
    for fork, columns in zip(trie.forks, trie.columns, strict=True):
        size = rows, len(columns) - fork
        usual = -torch.rand(1, size[1], generator=generator, dtype=torch.float64)
        own = torch.randn(size, generator=generator, dtype=torch.float64)
        steps[:, columns[fork:]] = usual + spread * own
    return steps


def read(trie, steps, cut):
    """Probabilities as a scorer reads them, from the whole lines and from the cut ones."""
    whole = torch.stack([steps[:, columns].sum(1) for columns in trie.columns], 1)
    kept = [len(path) for path in cut.paths]
    parts = [steps[:, columns[:n]].sum(1) for columns, n in zip(trie.columns, kept, strict=True)]
    return whole.softmax(1), (torch.stack(parts, 1) + torch.tensor(cut.tails)).softmax(1)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_tails_that_are_alike_on_all_rows_are_cut_and_change_nothing(seed: int, rows: int) -> None:
    trie = VerdictTrie.build(LINES)
    steps = steps_of(trie, rows, seed, spread=0)
    cut = shortened(trie, steps)
    assert [len(path) for path in cut.paths] == [fork + 1 for fork in trie.forks]
    whole, parts = read(trie, steps, cut)
    assert torch.allclose(whole, parts, atol=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([1e-5, 1e-3, 0.1, 3]))
def test_tails_that_differ_are_kept_until_they_change_little(
    seed: int, rows: int, spread: float
) -> None:
    trie = VerdictTrie.build(LINES)
    steps = steps_of(trie, rows, seed, spread)
    cut = shortened(trie, steps)
    whole, parts = read(trie, steps, cut)
    # The shares move by at most MARGIN each, their sum by that of all.
    assert (whole - parts).abs().max() <= MARGIN * (len(LINES) + 1) * 1.01


@pytest.mark.parametrize("seed", range(20))
def test_lines_whose_tails_differ_much_are_read_whole(seed: int) -> None:
    # Nine rows: the tails of two may differ little by chance, where it matters.
    trie = VerdictTrie.build(LINES)
    assert 0.0 in shortened(trie, steps_of(trie, 9, seed, spread=3)).tails


def test_a_line_is_told_from_all_others_by_its_fork() -> None:
    trie = VerdictTrie.build([[5, 1, 9, 8], [5, 1, 0, 9, 8], [5, 2, 9, 8]])
    assert trie.forks == [3, 3, 2]
    assert [len(path) for path in trie.cut(trie.forks, [0, 0, 0]).paths] == [3, 3, 2]


def test_cut_lines_are_read_as_the_same_tokens_of_whole_ones(tokenizer) -> None:
    encoder, model, rows = encoder_of(tokenizer, "0-10:0.5"), make_model(tokenizer), examples(5)
    scorer = branches._Steps(model, encoder, progress=False)
    scorer.score(rows)
    steps, trie = torch.cat(scorer.read), scorer.trie
    counts = [
        fork + extra % (len(path) - fork + 1)
        for fork, path, extra in zip(trie.forks, trie.paths, itertools.count(), strict=False)
    ]
    tails = [-0.1 * place for place in range(len(counts))]
    tries = {encoder.scale: trie.cut(counts, tails)}
    cut = branches._Steps(model, encoder, progress=False, tries=tries)
    scored = cut.score(rows)
    _, expected = read(trie, steps, cut.trie)
    # Both read the prompts in the same, sorted, order.
    found = sorted(result.probabilities for result in scored)
    for own, other in zip(found, sorted(map(tuple, expected.tolist())), strict=True):
        assert own == pytest.approx(other, abs=1e-5)


def test_reading_branches_is_within_its_tolerance_of_whole_lines(tokenizer, caplog) -> None:
    caplog.set_level("INFO")
    encoder, model = encoder_of(tokenizer, "0-10:0.5"), make_model(tokenizer, initializer_range=0.1)
    rows = examples(SAMPLE + 20)
    tries, change = chosen_lines(model, "branches", rows, encoder)
    assert tries, caplog.text
    cut = tries[encoder.scale]
    assert change is not None
    assert change.n == SAMPLE / 2
    assert change.probability <= TOLERANCE
    whole = JudgeScorer(model, encoder, progress=False)
    assert len(cut.tokens) < len(whole.trie.tokens)
    fast = JudgeScorer(model, encoder, progress=False, tries=tries)
    for one, other in zip(whole.score(rows), fast.score(rows), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=TOLERANCE)
        assert one.verdict_mass == pytest.approx(other.verdict_mass, rel=0.05)
    assert f"{len(cut.tokens)} of the {len(whole.trie.tokens)} tokens" in caplog.text


def test_whole_lines_are_read_where_cut_ones_differ_and_the_log_says_so(
    tokenizer, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(branches, "MARGIN", 1)
    encoder, model = encoder_of(tokenizer, "0-10:0.5"), make_model(tokenizer)
    assert chosen_lines(model, "branches", examples(SAMPLE), encoder) == ({}, None)
    assert "reading: whole lines: reading" in caplog.text
    assert "more than 0.001" in caplog.text


@pytest.mark.parametrize(
    ("mode", "scale", "rows", "said"),
    [
        ("exact", "0-100", SAMPLE, ""),
        ("auto", "0-10", SAMPLE, ""),
        ("auto", "0-100", SAMPLE - 1, "99 rows are too few to compare on; 100 are needed"),
        ("branches", "0-10", 3, "3 rows are too few to compare on"),
    ],
)
def test_whole_lines_are_read_unless_there_is_something_to_gain(
    tokenizer, caplog, mode, scale, rows, said
) -> None:
    caplog.set_level("INFO")
    model = make_model(tokenizer)
    assert chosen_lines(model, mode, examples(rows), encoder_of(tokenizer, scale)) == ({}, None)
    assert said in caplog.text
    assert bool(said) == ("whole lines" in caplog.text)


def test_lines_of_questions_are_read_whole_and_the_log_says_so(tokenizer, caplog) -> None:
    caplog.set_level("INFO")
    encoder = encoder_of(tokenizer).about(*questions())
    assert chosen_lines(make_model(tokenizer), "branches", [], encoder) == ({}, None)
    assert "whole lines: those of questions are not cut" in caplog.text


def test_auto_cuts_lines_of_many_verdicts(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(branches, "SAMPLE", 8)
    model = make_model(tokenizer, initializer_range=0.02)
    tries, change = chosen_lines(model, "auto", examples(8), encoder_of(tokenizer, "0-100"))
    (cut,) = tries.values()
    assert change is not None
    assert len(cut.paths) == 101


def test_model_whose_attention_forbids_trees_is_read_in_whole_lines(tokenizer, caplog) -> None:
    caplog.set_level("INFO")
    model = make_model(tokenizer, use_sliding_window=True, sliding_window=32, max_window_layers=0)
    rows = examples(SAMPLE)
    assert chosen_lines(model, "branches", rows, encoder_of(tokenizer)) == ({}, None)
    assert "whole lines: its attention window has 32 tokens" in caplog.text
