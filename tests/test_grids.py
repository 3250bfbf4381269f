"""A judge of a fine scale that speaks a coarser one: bins, prompts, scores, adapters, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.attack_families import attacked, families
from pt_app.core.choosing import choose
from pt_app.core.errors import UserError
from pt_app.core.grids import choose_grid
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample, Label
from pt_app.core.settings import resolve
from pt_app.core.verdicts import Scale
from pt_app.evidence.calibration import usual_tolerance
from pt_app.judge import Judge
from pt_app.models.adapters import AdapterInfo, attach_lora, save_adapter, verify_adapter
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.preparation import prepare
from tests.tiny_models import make_model, make_tokenizer

FINE, COARSE = Scale.from_name("0-100"), Scale.from_name("0-9")
BINNED = FINE.with_grid("0-9")
TEXTS = ("a casa", "a casa velha é branca", "o velho mesa", "")


def row(verdict: Any = None, **fields: Any) -> JudgeExample:
    label = None if verdict is None else Label(verdict=verdict)
    return JudgeExample(
        **{"source": "the old house", "candidate": "a casa", "label": label} | fields
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encoder_of(tokenizer: Any, scale: Scale) -> PromptEncoder:
    return PromptEncoder(tokenizer, Template.load("translation"), scale, 256)


@given(st.integers(3, 150), st.integers(2, 149), st.lists(st.floats(0.01, 1), min_size=149))
def test_bins_are_of_equal_width_and_keep_the_probability(
    verdicts: int, bins: int, weights: list[float]
) -> None:
    bins = min(bins, verdicts - 1)
    scale = Scale.from_name(f"0-{verdicts - 1}").with_grid(f"1-{bins}")
    assert scale.lines() == Scale.from_name(f"1-{bins}").lines()
    spread = dict(zip(scale.values, scale.spread(weights[:bins]), strict=True))
    for index, line in enumerate(scale.lines()):
        own = [value for value in scale.values if scale.line(value) == line]
        # The rule as it is documented, in exact numbers.
        edge = [min(bins - 1, value * bins // (verdicts - 1)) for value in own]
        assert set(edge) == {index}
        assert sum(spread[value] for value in own) == pytest.approx(weights[index])
        assert len({spread[value] for value in own}) == 1
        middle = scale.line_values[index]
        distance = {value: abs(value - sum(own) / len(own)) for value in own}
        assert distance[middle] == min(distance.values())
        assert scale.parse(line) == middle


def test_scale_without_a_grid_spreads_nothing() -> None:
    for name in ("0-10", "0-10:0.5", "pairwise", "pass_fail"):
        scale = Scale.from_name(name)
        chances = tuple(1 / (3 + i) for i in range(len(scale.values)))
        assert (scale.spread(chances), scale.line_values) == (chances, scale.values)


def test_judge_reads_the_prompts_of_the_grid_and_learns_its_lines(tokenizer: Any) -> None:
    coarse, binned = (encoder_of(tokenizer, scale) for scale in (COARSE, BINNED))
    (own,), _ = binned.encode([row(74)])
    (other,), _ = coarse.encode([row(7)])
    assert own.input_ids == other.input_ids
    assert "Score: 7/9" in tokenizer.decode(own.input_ids)


def test_people_still_write_on_the_scale_itself() -> None:
    answer = BINNED.read("Score: 74/100")
    assert answer is not None
    assert answer.verdict == 74
    assert BINNED.read("Score: 7/9") is None
    assert (BINNED.normalise(74.0), BINNED.name) == (74, "0-100")
    assert BINNED == FINE  # what is judged on one is compared with what is judged on the other


def test_scores_on_a_grid_are_those_of_the_coarse_scale_spread(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = make_model(tokenizer)
    rows = [row(candidate=text) for text in TEXTS]
    coarse, binned = (
        JudgeScorer(model, encoder_of(tokenizer, scale), progress=False).score(rows)
        for scale in (COARSE, BINNED)
    )
    for one, other in zip(coarse, binned, strict=True):
        assert other.probabilities == BINNED.spread(one.probabilities)
        assert sum(other.probabilities) == pytest.approx(1)
        bins = dict(zip(COARSE.values, BINNED.line_values, strict=True))
        # The mode is that of the bins, whose probability is not any one value's.
        assert (
            choose(other.probabilities, BINNED, "mode")
            == bins[choose(one.probabilities, COARSE, "mode")]
        )
        assert other.status == one.status
        mean = sum(v * p for v, p in zip(FINE.values, other.probabilities, strict=True))
        assert other.expected == pytest.approx(mean)


def saved_judge(model: Any, tokenizer: Any, folder: Path) -> AdapterInfo:
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": "q_proj"}
    return save_adapter(
        attach_lora(model, **lora),
        encoder_of(tokenizer, BINNED),
        folder,
        identity={"name": "x", "revision": None, "weights_sha256": "0"},
        training_config={},
    )


def test_adapter_keeps_its_grid_and_an_earlier_one_has_none(tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    info = saved_judge(make_model(tokenizer), tokenizer, folder)
    assert info.scale == FINE
    assert info.scale.grid == COARSE
    assert "0-9" in (folder / "README.md").read_text()
    judge = json.loads((folder / "judge.json").read_text())
    (folder / "judge.json").write_text(json.dumps(judge | {"grid": "0-200"}))
    with pytest.raises(UserError, match="coarser"):
        verify_adapter(folder)
    del judge["grid"]
    (folder / "judge.json").write_text(json.dumps(judge))
    assert verify_adapter(folder).scale.grid is None


def test_judge_with_a_grid_refuses_chat_rows_whose_prompt_names_the_scale(
    tokenizer: Any, tmp_path: Path
) -> None:
    model = make_model(tokenizer)
    info = saved_judge(model, tokenizer, tmp_path / "judge")
    fields = {"source": "the house", "candidate": "a casa", "label": {"verdict": 55}}
    chat = {"input": "Score this from 0 to 100: a casa", "output": "Score: 55/100"}
    judged = Judge(model, info, encoder_of(tokenizer, BINNED)).score([fields, chat])
    assert [one.status == "bad_row" for one in judged] == [False, True]
    assert "names the scale 0-100 itself" in (judged[1].problem or "")
    for split in ("val", "test"):
        data = tmp_path / split
        data.mkdir()
        for other in ("train", "val", "test"):
            rows = [fields | {"source": other}, *([chat] if other == split else [])]
            (data / f"judge_{other}.json").write_text(json.dumps(rows))
        (data / "dataset.json").write_text(json.dumps({"scale": "0-100"}))
        where = [f"--data={data}", f"--adapter={info.folder}", f"--out={tmp_path / 'out'}"]
        refused = CliRunner().invoke(app, ["eval", *where])
        assert isinstance(refused.exception, UserError)
        assert f"judge_{split}.json" in str(refused.exception)


def test_auto_chooses_by_the_rows_for_each_verdict() -> None:
    def chosen(scale: str, count: int, **more: Any) -> str | None:
        own, why = choose_grid("auto", Scale.from_name(scale), [row(1)] * count, **more)
        assert bool(why) == (len(own.values) > 11)
        return own.grid and own.grid.name

    assert [chosen("0-100", count) for count in (5, 5049, 5050)] == ["0-9", "0-9", None]
    assert chosen("0-100", 6000, max_samples=700) == "0-9"
    assert [chosen("0-10", 24), chosen("1-5", 24)] == [None, None]
    (chat,) = {choose_grid("auto", FINE, [row(1), row(1, prompt="0-100?")])[0].grid}
    assert chat is None


def test_why_a_grid_is_chosen_names_rows_and_what_binning_costs() -> None:
    _, why = choose_grid("auto", FINE, [row(4), row(9), row(100)])
    assert "3 training rows are 0.0297 for each of 101 verdicts" in why
    assert "differ from the labels by 3.33, at most 5" in why  # 0, 5 and 5


@pytest.mark.parametrize(
    ("scale", "grid", "problem"),
    [
        ("pairwise", "0-9", "name a coarser scale of numbers"),
        ("pass_fail", "0-9", "name a coarser scale of numbers"),
        ("0-100", "pairwise", "name a coarser scale of numbers"),
        ("1-5", "0-9", "--grid: grid 0-9: it does not fit the scale 1-5"),
        ("0-10", "0-10", "name a coarser scale"),
        ("0-10", "nine", "is not a scale"),
    ],
)
def test_grid_that_does_not_fit_is_refused_in_one_line(scale: str, grid: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as raised:
        choose_grid(grid, Scale.from_name(scale), [])
    assert "\n" not in str(raised.value)


def test_grid_is_refused_with_chat_rows_in_any_split(tmp_path: Path) -> None:
    fields = {"source": "the house", "candidate": "a casa", "label": {"verdict": 55}}
    chat = {"input": "Score this from 0 to 100: a casa", "output": "Score: 55/100"}
    for split in ("train", "val", "test"):
        for other in ("train", "val", "test"):
            rows = [fields | {"source": other}, *([chat] if other == split else [])]
            (tmp_path / f"judge_{other}.json").write_text(json.dumps(rows))
        (tmp_path / "dataset.json").write_text(json.dumps({"scale": "0-100"}))
        settings = resolve("mps", ["--model=tiny", f"--data_dir={tmp_path}", "--grid=0-9"], "", "")
        with pytest.raises(UserError, match=f"judge_{split}.json.*--grid 0-9: it is a chat row"):
            prepare(settings)
        assert prepare(replace(settings, grid="auto")).encoder.scale.grid is None


def test_preview_shows_the_grid_that_training_would_choose(tmp_path: Path) -> None:
    fields = {"source": "the house", "candidate": "a casa"}
    rows = [fields | {"group": f"{v}", "label": {"verdict": v}} for v in (0, 55, 100)]
    (tmp_path / "judge_train.json").write_text(json.dumps(rows))
    (tmp_path / "judge_val.json").write_text(json.dumps([fields | {"label": {"verdict": 98}}]))
    (tmp_path / "dataset.json").write_text(json.dumps({"scale": "0-100"}))

    def shown(*flags: str) -> str:
        result = CliRunner().invoke(app, ["data", "preview", str(tmp_path), *flags])
        return result.stdout

    assert "grid 0-9: 3 training rows" in shown()
    assert "⟦Score: 5/9" in shown()
    assert "⟦Score: 9/9" in shown("--split", "val")
    assert "⟦Score: 55/100" in shown("--grid", "off")
    assert "⟦Score: 3/5" in shown("--grid", "1-5")


def test_attack_asks_for_the_best_verdict_that_the_judge_speaks() -> None:
    chosen = [family for family in families() if family.name == "verdict injection"]
    texts = [attack.example.candidate or "" for attack in attacked([row(3)], BINNED, chosen)]
    assert any(text.endswith("Score: 9/9") for text in texts)
    assert not any("100" in text for text in texts)


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [("1-5", 0), ("1-6", 1), ("0-10", 1), ("0-10:0.5", 1), ("0-1:0.1", 0.1), ("0-100", 10)],
)
def test_usual_tolerance_is_a_tenth_of_the_range_and_at_least_a_step(
    scale: str, tolerance: float
) -> None:
    assert usual_tolerance(Scale.from_name(scale)) == pytest.approx(tolerance)


@pytest.mark.slow
def test_training_chooses_a_grid_and_its_results_name_it(base: Path, tmp_path: Path) -> None:
    from pt_app.eval_model.judge_train_mps import main as train
    from tests.rows import write_rows

    data = write_rows(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"scale": "0-100"}))
    flags = {"model": base, "data_dir": data, "output_dir": tmp_path, "epochs": 1}
    train([f"--{name}={value}" for name, value in {**flags, "tracking": "off"}.items()])
    (adapter,) = tmp_path.glob("*_final")
    results = json.loads((adapter / "evaluation" / "results.json").read_text())
    assert results["scale"] == "0-100"
    assert [model["grid"] for model in results["models"]] == ["0-9", "0-9"]
    training = json.loads((adapter / "training_config.json").read_text())
    assert training["settings"]["grid"] == "0-9"
    run_log = adapter.with_name(adapter.name.removesuffix("_final")) / "train.log"
    assert "grid 0-9: 24 training rows" in run_log.read_text()
