"""The frozen probe: states that are those of the plain model, their cache, and what is learned."""

import json
import os
import random
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pt_app.core.dataset import read_dataset
from pt_app.core.metrics import FloatArray
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.results import Comparison, JudgeResults, Metric, Prediction, Results
from pt_app.core.verdicts import Scale, Verdict
from pt_app.eval_model import evaluation
from pt_app.evidence.baselines import Baseline, Labelled
from pt_app.evidence.probe import fit_probe
from pt_app.evidence.results import JudgeRows, results_of
from pt_app.models import bases
from pt_app.report import terminal_table
from pt_app.report.page import sentences
from pt_app.scoring import base_states
from pt_app.scoring.base_states import BaseStates, end_states
from tests.tiny_models import make_model_folder

FIVE, PASS_FAIL = Scale.from_name("1-5"), Scale.from_name("pass_fail")
ROWS, TRAIN = 240, 160


def some_rows(count: int) -> list[JudgeExample]:
    rng = random.Random(0)
    words = ["o", "casa", "velho", "mesa", "branca", "the", "house"]
    return [
        JudgeExample(
            source=f"the house {i // 2}", candidate=" ".join(rng.choices(words, k=1 + i % 7))
        )
        for i in range(count)
    ]


def states_of(folder: Path, max_seq_length: int = 512) -> BaseStates:
    source = bases.resolve_model(str(folder))
    template = Template.load("translation")
    tokenizer = bases.load_tokenizer(source)
    return BaseStates(source, PromptEncoder(tokenizer, template, FIVE, max_seq_length))


@pytest.fixture(scope="module")
def states(base: Path) -> FloatArray:
    return states_of(base).of(some_rows(ROWS))


def by_rule(states: FloatArray, scale: Scale) -> list[Verdict]:
    """Labels that a linear rule on the states gives, each value of the scale equally often."""
    values = states @ np.random.default_rng(0).normal(size=states.shape[1])
    places = values.argsort().argsort() * len(scale.values) // len(values)
    return [scale.values[place] for place in places]


def probe(states: FloatArray, labels: list[Verdict], scale: Scale) -> Baseline:
    rows = [JudgeExample(group=str(i // 2)) for i in range(ROWS)]
    train = Labelled.of(rows[:TRAIN], labels[:TRAIN], [row.group for row in rows[:TRAIN]], scale)
    return fit_probe(train, states[:TRAIN], states[TRAIN:], scale, TRAIN)


@pytest.mark.parametrize("scale", [FIVE, PASS_FAIL], ids=lambda scale: scale.name)
def test_a_linear_rule_on_the_states_is_learned_and_chance_is_not(
    states: FloatArray, scale: Scale
) -> None:
    labels = by_rule(states, scale)
    found = probe(states, labels, scale)
    assert found.fitted == "the training rows"
    right = np.mean([a == b for a, b in zip(found.verdicts, labels[TRAIN:], strict=True)])
    assert right > 1 / len(scale.values) + 0.3  # a constant reaches 1 / K
    shuffled = list(np.random.default_rng(1).permutation(np.array(labels, dtype=object)))
    chance = probe(states, shuffled, scale)
    agreed = np.mean([a == b for a, b in zip(chance.verdicts, shuffled[TRAIN:], strict=True)])
    assert agreed < right - 0.3


def test_a_pair_is_the_difference_of_its_two_orders(base: Path, tmp_path: Path) -> None:
    """What both orders have in common says nothing of the winner."""
    words = ["o", "casa", "velho", "mesa", "branca"]
    rng = random.Random(0)

    def pair(i: int) -> dict[str, Any]:
        return {"id": str(i), "source": f"the house {i}", "candidates": rng.sample(words, 2)}

    train = [pair(i) | {"label": {"verdict": "AB"[i % 2]}} for i in range(20)]
    one = pair(20) | {"label": {"verdict": "A"}}
    other = one | {"id": "21", "candidates": one["candidates"][::-1]}
    (tmp_path / "dataset.json").write_text('{"task": "pairwise"}')
    (tmp_path / "judge_train.json").write_text(json.dumps(train))
    (tmp_path / "judge_test.json").write_text(json.dumps([one, other]))
    data, of_base = read_dataset(tmp_path), states_of(base)
    features = evaluation._features(of_base, data.test, pairs=True)
    np.testing.assert_allclose(features[0], -features[1], atol=1e-5)
    assert np.abs(features[0]).max() > 0.1
    probe = evaluation.probed(of_base.source, of_base.encoder, data, data.test, 2000)[""]
    assert probe.fitted == "the training rows"
    assert len(probe.verdicts) == 2


def test_states_are_those_of_the_plain_model_before_the_verdict(
    base: Path, states: FloatArray
) -> None:
    of_base, rows = states_of(base), some_rows(ROWS)[:12]
    model, five = bases.load_model(of_base.source), of_base.encoder.answer_ids("Score: 5/5\n")
    before_digit = five[: five.index(of_base.encoder.tokenizer.convert_tokens_to_ids("5"))]
    for row, state in zip(rows, states, strict=False):
        ids = torch.tensor([of_base.encoder.prompt_ids(row) + before_digit])
        with torch.inference_mode():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(state, hidden[0, -1].numpy(), atol=2e-5)
    assert np.unique(states, axis=0).shape[0] > ROWS / 2


def test_a_model_that_takes_no_tree_is_read_row_by_row(
    base: Path, states: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_base = states_of(base)
    prompts = [of_base.encoder.prompt_ids(row) + of_base.lead(FIVE) for row in some_rows(ROWS)[:8]]
    monkeypatch.setattr(base_states, "why_no_tree", lambda *_: "it is told so")
    model = bases.load_model(of_base.source)
    np.testing.assert_allclose(end_states(model, prompts), states[:8], atol=2e-5)


def test_cached_states_are_read_without_the_base_and_belong_to_it(
    base: Path, states: FloatArray, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries() -> set[Path]:
        return set((cache / "states").iterdir())

    rows, before = some_rows(ROWS), entries()
    other = make_model_folder(tmp_path / "other", seed=1, hidden_size=64, intermediate_size=128)
    of_other = states_of(other).of(rows)
    assert len(entries() - before) == 1
    assert np.abs(of_other - states).max() > 0.1
    states_of(base).of(rows[:5])
    assert len(entries() - before) == 2  # other prompts, another entry
    edited = shutil.copytree(base, tmp_path / base.name)  # the same name, weights and tokenizer
    config = json.loads((edited / "config.json").read_text()) | {"rms_norm_eps": 0.5}
    (edited / "config.json").write_text(json.dumps(config))
    assert np.abs(states_of(edited).of(rows[:5]) - states[:5]).max() > 0.01
    monkeypatch.setattr(bases, "load_model", lambda *_: pytest.fail("the base was loaded"))
    np.testing.assert_array_equal(states_of(base).of(rows), states)
    np.testing.assert_array_equal(states_of(other).of(rows), of_other)


def test_a_damaged_entry_is_computed_again_and_a_full_disk_does_not_matter(
    base: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_CACHE", str(cache / "own"))
    rows = some_rows(4)
    first = states_of(base).of(rows)
    (entry,) = (cache / "own" / "states").iterdir()
    for left in (200, 0):
        caplog.clear()
        entry.write_bytes(entry.read_bytes()[:left])
        np.testing.assert_array_equal(states_of(base).of(rows), first)
        assert "computed again" in caplog.text
    (cache / "file").write_text("")
    monkeypatch.setenv("JUDGE_CACHE", str(cache / "file"))
    np.testing.assert_array_equal(states_of(base).of(rows), first)
    assert "not cached" in caplog.text


def test_the_least_recently_used_entries_go_when_the_cache_is_full(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path))
    folder, own, rows = tmp_path / "states", states_of(base), some_rows(4)
    kept: list[Path] = []
    for count in (1, 2, 3):
        own.of(rows[:count])
        (entry,) = set(folder.iterdir()) - set(kept)
        kept.append(entry)
        os.utime(entry, (count, count))  # seconds, since each is written within one
    own.of(rows[:1])
    size = sum(entry.stat().st_size for entry in (kept[0], kept[2]))
    last = own.of(rows)
    (entry,) = set(folder.iterdir()) - set(kept)
    entry.unlink()
    monkeypatch.setattr(base_states, "MAX_CACHED", size + last.size * 4 + 128)
    own.of(rows)
    assert set(folder.iterdir()) == {kept[0], kept[2], entry}


def test_a_row_without_a_state_trains_nothing_and_gets_a_verdict(base: Path) -> None:
    rows = [*some_rows(5), JudgeExample(source="a", candidate="casa " * 600)]
    found = states_of(base).of(rows)
    assert np.isnan(found[5]).all()
    assert np.isfinite(found[:5]).all()
    train = Labelled.of(rows, [1, 2, 3, 4, 5, 1], list("aabbcc"), FIVE)
    probe = fit_probe(train, found, found, FIVE, 30)
    assert probe.fitted == "5 of the 30 training rows"
    assert len(probe.verdicts) == 6
    one_source = fit_probe(train.take(np.arange(2)), found[:2], found, FIVE, 2)
    assert "two groups" in one_source.missing


def compared(low: float, high: float, name: str = "adapter") -> Results:
    kappa = {"kappa_quadratic": Metric(value=0.5, low=0.4, high=0.6, n=40)}
    own = kappa | {"kappa_quadratic_strict": kappa["kappa_quadratic"]}
    judge = JudgeResults(name=name, metrics=kappa, greedy=own)
    baseline: Any = {"name": "frozen probe", "metrics": kappa}
    between = Comparison(a=name, b="frozen probe", value=(low + high) / 2, low=low, high=high)
    return Results(models=[judge], baselines=[baseline], comparisons=[between], task="score")


def sentence(low: float, high: float, name: str = "adapter") -> str:
    results = compared(low, high, name)
    judge = results.models[0]
    return sentences("probe", results=results, judge=judge, head="kappa_quadratic")


def test_the_report_says_only_what_the_interval_of_the_difference_shows() -> None:
    assert "the adapter beats it." in sentence(0.01, 0.2)
    assert "not shown to beat it, nor to have been worth training." in sentence(-0.01, 0.2)
    assert "not shown to beat it" in sentence(0.0, 0.2)
    assert "the probe agrees better, and this adapter was not worth training." in sentence(
        -0.2, -0.01
    )
    assert sentence(0.01, 0.2, "gpt").endswith("is 0.105 [0.010, 0.200].")


def test_the_table_of_a_terminal_ends_with_the_probe() -> None:
    console = Console(width=80, record=True, file=StringIO())
    console.print(terminal_table(compared(0.01, 0.2, "[gpt]")))
    text = " ".join(console.export_text().split())
    assert text.endswith(
        "(the frozen probe) reaches 0.500 [0.400, 0.600] (n = 40); "
        "\\[gpt\\] - probe is 0.105 [0.010, 0.200]."
    )


def test_the_probe_is_a_baseline_of_its_own_and_never_the_best_one() -> None:
    rows = [{"label": i % 5 + 1, "group": str(i), "verdict": 3} for i in range(40)]
    labels = [row["label"] for row in rows]
    judge = JudgeRows("adapter", "adapter", [Prediction.model_validate(row) for row in rows])
    baselines = [Baseline("mean", [3] * 40), Baseline("frozen probe", labels, "the training rows")]
    results = results_of([judge], FIVE, {}, baselines, (), {})
    best = results.best_baseline()
    assert best
    assert best.name == "mean"
    assert [own.name for own in results.must_beat()] == ["mean", "frozen probe"]
    assert [one.b for one in results.comparisons] == ["mean", "frozen probe"]
