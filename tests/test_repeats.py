"""`--seeds` and `--folds`: a training repeated, and what the repeats tell."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.core.settings import Settings, resolve
from pt_app.eval_model import demo, repeats
from pt_app.eval_model.judge_train_cuda import main as train_cuda
from pt_app.eval_model.judge_train_mps import main as train_mps
from tests.conftest import slow_case
from tests.rows import write_rows

TRAIN = {"mps": train_mps, "cuda": train_cuda}


def flags(base: Path, rows: Path, out: Path, *more: str) -> list[str]:
    given = {"model": base, "data_dir": rows, "output_dir": out, "epochs": 1, "tracking": "off"}
    return [*(f"--{name}={value}" for name, value in given.items()), "--eval_steps=0", *more]


def results(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / "evaluation" / "results.json").read_text())
    return found


@pytest.mark.parametrize("recipe", ["mps", slow_case("cuda")])
def test_the_spread_over_seeds_is_in_every_report(
    recipe: str, base: Path, rows: Path, tmp_path: Path
) -> None:
    TRAIN[recipe](flags(base, rows, tmp_path, "--seeds=2", "--seed=5", "--lr=0.01"))
    adapters = sorted(tmp_path.glob("*_final"))
    assert len(adapters) == 2
    found = [results(adapter) for adapter in adapters]
    assert {one["run"]["seed"] for one in found} == {5, 6}
    values = [one["models"][0]["metrics"]["kappa_quadratic"]["value"] for one in found]
    for adapter, one in zip(adapters, found, strict=True):
        spread = one["over_seeds"]
        assert spread["seeds"] == [5, 6]
        assert sorted(spread["values"]) == sorted(values)
        assert spread["sd"] == pytest.approx(statistics.stdev(values))
        assert "Over 2 training seeds" in (adapter / "evaluation" / "report.md").read_text()


@pytest.mark.slow
def test_over_folds_every_row_is_tested_once(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    train_mps(flags(base, rows, tmp_path / "out", "--folds=3"))
    root = tmp_path / "out" / "folds-of-rows"
    joined = json.loads((root / "evaluation" / "results.json").read_text())
    assert joined["data"]["n"] == 24 + 4 + 12
    lines = (root / "evaluation" / "predictions.jsonl").read_text().splitlines()
    ids = [row["id"] for row in map(json.loads, lines) if row["model"] == "adapter"]
    assert len(ids) == len(set(ids)) == 40
    assert len(list(root.glob("fold-*/*_final"))) == 3
    assert [one["name"] for one in joined["baselines"]][:2] == ["majority", "mean"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds=2", "--folds=3"], "choose one of them"),
        (["--seeds=2", "--skip_eval"], "leave out --skip_eval and --resume"),
        (["--folds=3", "--resume=newest"], "leave out --skip_eval and --resume"),
        (["--seeds=2", "--test_samples=5"], "leave out --test_samples"),
        (["--folds=1"], "--folds 1: choose 2 to"),
        (["--seeds=0"], "must be a number at least 1"),
    ],
)
def test_repeats_that_would_tell_nothing_are_refused(
    base: Path, rows: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        train_mps(flags(base, rows, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(adapter: Path, base: Path, rows: Path) -> Settings:
    """The settings of the adapter, which says which grid was chosen for them."""
    given = {"model": base, "data_dir": rows, "output_dir": adapter.parent, "epochs": 1}
    argv = [f"--{name}={value}" for name, value in given.items()]
    return resolve("mps", [*argv, "--tracking=off"], "", "")


def test_demo_shows_an_earlier_judge_only_if_it_has_the_same_settings(
    adapter: Path, trained: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Settings] = []

    def run(settings: Settings, _: repeats.Train) -> list[Path]:
        begun.append(settings)
        return [adapter]

    monkeypatch.setattr(demo.repeats, "run", run)
    monkeypatch.setattr(demo, "_generated", lambda *_: [])
    others = [{"lr": 0.5}, {"test_samples": 3}, {"verdict_rule": "mode"}, {"seed": 1}, {}]
    for changed in others:
        settings = replace(trained, **changed)
        monkeypatch.setattr(demo, "resolve", lambda *_, chosen=settings: chosen)
        assert demo.run_demo() == adapter / "evaluation" / "report.html"
    assert begun == [replace(trained, **changed) for changed in others if changed]


def test_judge_of_other_data_prompts_or_another_base_was_not_trained_before(
    adapter: Path, trained: Settings, tmp_path: Path
) -> None:
    assert repeats.trained_before(trained) == [adapter]
    assert repeats.trained_before(replace(trained, model="tiny")) == []
    other = write_rows(tmp_path / "rows")
    assert repeats.trained_before(replace(trained, data_dir=str(other))) == [adapter]  # the same
    card = {"task": "score", "scale": "0-10", "rubric": "Judge the style alone."}
    (other / "dataset.json").write_text(json.dumps(card))
    assert repeats.trained_before(replace(trained, data_dir=str(other))) == []
    (other / "dataset.json").write_text(json.dumps({"task": "score", "scale": "0-10"}))
    assert repeats.trained_before(replace(trained, data_dir=str(other))) == [adapter]
    (other / "judge_val.json").unlink()
    assert repeats.trained_before(replace(trained, data_dir=str(other))) == []
