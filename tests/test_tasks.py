"""The three tasks through both recipes, leaks that are allowed, and folds."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.results import JudgeResults, PrecisionChange, Prediction, Results, read_results
from pt_app.core.settings import RECIPES
from pt_app.core.verdicts import Scale
from pt_app.eval_model import dispatch, folds
from pt_app.eval_model.folds import join_evaluations
from pt_app.evidence.baselines import Baseline
from pt_app.evidence.results import JudgeRows, results_of, write_evaluation
from pt_app.judge import Judge
from pt_app.judge_data.folder import split_folder
from pt_app.judge_data.options import SplitPlan
from tests.real_data import real
from tests.test_recipes import flags, main

WORDS = ["o", "a", "casa", "velho", "mesa", "é"]
TASKS = {"score": "1-5", "pairwise": "pairwise", "pass_fail": "pass_fail"}
VERDICTS: dict[str, list[Any]] = {
    "score": [1, 2, 3, 4, 5],
    "pairwise": ["A", "B", "tie"],
    "pass_fail": ["PASS", "FAIL"],
}


def write_task(folder: Path, task: str, sizes: tuple[int, int, int] = (8, 2, 6)) -> Path:
    """Write a dataset folder of random rows of a task."""
    folder.mkdir(parents=True)
    for split, count in zip(("train", "val", "test"), sizes, strict=True):
        rng = random.Random(split)
        lines = []
        for i in range(count):
            texts = [" ".join(rng.sample(WORDS, 3)) for _ in "ab"]
            candidate = {"candidates": texts} if task == "pairwise" else {"candidate": texts[0]}
            label = {"verdict": rng.choice(VERDICTS[task]), "feedback": "A casa."}
            row = {"id": f"{split}-{i}", "source": f"the house {split} {i}", "label": label}
            lines.append(json.dumps(row | candidate, ensure_ascii=False))
        (folder / f"judge_{split}.json").write_text("\n".join(lines), encoding="utf-8")
    card = {
        "task": task,
        "scale": TASKS[task],
        "template": "response",
        "rubric": "Be {verdict_form}.",
    }
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def trained(recipe: str, base: Path, data: Path, out: Path, *more: str) -> Path:
    main(recipe, flags(base, data, out, "--tracking=off", "--eval_steps=1", *more))
    (adapter,) = out.glob("*_final")
    return adapter


def results(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / "evaluation" / "results.json").read_text("utf-8"))
    return found


def predictions(adapter: Path) -> list[dict[str, Any]]:
    lines = (adapter / "evaluation" / "predictions.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def assert_order_does_not_matter(adapter: Path, base: Path, rows: list[dict[str, Any]]) -> None:
    """Judge pairs as they are and swapped: winners flip, and so do their probabilities."""
    names = ("id", "source", "conversation", "context", "reference", "candidates")
    pairs = [{name: row[name] for name in names if row.get(name)} for row in rows]
    swapped = [pair | {"candidates": pair["candidates"][::-1]} for pair in pairs]
    judge = Judge.load(adapter, base=str(base))
    judged, again = judge.score(pairs), judge.score(swapped)
    for row, one, other in zip(rows, judged, again, strict=True):
        flip = {"A": "B", "B": "A", "tie": "tie"}
        assert (one.verdict, one.greedy) == (row["verdict"], row["greedy"])
        assert other.verdict == flip[str(one.verdict)]
        assert one.consistent == other.consistent == (row["as_given"] == flip[row["swapped"]])
        chances, others = one.probabilities or {}, other.probabilities or {}
        assert [others[flip[name]] for name in chances] == pytest.approx(
            list(chances.values()), abs=1e-5
        )
        assert row["probabilities"] == pytest.approx(list(chances.values()), abs=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_trained_and_evaluated_by_each_recipe(
    task: str, recipe: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_task(tmp_path / "data", task)
    adapter = trained(recipe, base, data, tmp_path / "out")
    found = results(adapter)
    assert (found["task"], found["scale"]) == (task, TASKS[task])
    assert found["leaks"] == {"n": 0, "examples": []}
    rows = predictions(adapter)
    assert {row["verdict"] for row in rows} <= set(VERDICTS[task])
    assert all(len(row["probabilities"]) == len(VERDICTS[task]) for row in rows)
    model = found["models"][0]
    both = task == "pairwise"
    assert ("order_consistency" in model["metrics"]) is both
    assert ("swapped" in rows[0]) is both
    if both:
        number = model["metrics"]["order_consistency"]
        assert number["n"] == 6
        flip = {"A": "B", "B": "A", "tie": "tie"}
        own = [row for row in rows if row["model"] == "adapter"]
        same = [flip[row["swapped"]] == row["as_given"] for row in own]
        assert number["value"] == pytest.approx(sum(same) / len(same))
        assert_order_does_not_matter(adapter, base, own)
        assert "training: 8 pairs in both orders" in capsys.readouterr().out
        report = (adapter / "evaluation" / "report.md").read_text("utf-8")
        assert "same in both orders" in report
    template = json.dumps(json.loads((adapter / "judge.json").read_text("utf-8")))
    assert "Be {verdict_form}." in template, "the adapter carries the dataset's rubric"


def test_a_leak_stops_training_and_when_allowed_stands_in_every_first_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_task(tmp_path / "data", "pass_fail")
    path = data / "judge_test.json"
    row = json.loads((data / "judge_train.json").read_text("utf-8").split("\n")[0])
    leaked = row | {"id": "leaked", "source": "The  house, TRAIN 0"}
    path.write_text(path.read_text("utf-8") + "\n" + json.dumps(leaked), encoding="utf-8")
    with pytest.raises(UserError, match=r"leak: source .*judge data split .*--allow_leaks"):
        main("mps", flags(base, data, tmp_path / "out", "--tracking=off"))
    assert not (tmp_path / "out").exists()
    adapter = trained("mps", base, data, tmp_path / "out", "--allow_leaks")
    assert results(adapter)["leaks"]["n"] == 1
    assert list(results(adapter))[:2] == ["schema", "leaks"]
    told = results(adapter)["leaks"]["examples"][0]
    assert told.startswith("source leaked is in train (judge_train.json:1)")
    assert "house" not in told, "results.json goes to the tracker, texts do not"
    report = (adapter / "evaluation" / "report.md").read_text("utf-8")
    assert report.startswith("**LEAKS: 1 texts")
    card = (adapter / "README.md").read_text("utf-8")
    assert card.split("---\n")[2].strip().startswith("**LEAKS: 1 texts")
    assert "LEAKS: 1 texts are in" in capsys.readouterr().out


def test_a_folder_that_was_split_by_row_needs_leaks_to_be_allowed(
    base: Path, tmp_path: Path
) -> None:
    data = write_task(tmp_path / "data", "score")
    split_folder(data, SplitPlan(by="row"))
    with pytest.raises(UserError, match="was split by row"):
        main("mps", flags(base, data, tmp_path / "out", "--tracking=off"))


def test_folds_are_trained_one_by_one_and_joined_with_every_row_once(
    base: Path, tmp_path: Path
) -> None:
    data = write_task(tmp_path / "data", "pairwise")
    split_folder(data, SplitPlan(folds=2))
    argv = flags(base, data / "folds", tmp_path / "out", "--tracking=off")
    with pytest.raises(UserError, match=r"holds folds: train them all with `judge train"):
        main("mps", argv)
    dispatch.train_here(argv)
    root = tmp_path / "out" / "folds-of-data"
    joined = json.loads((root / "evaluation" / "results.json").read_text("utf-8"))
    assert joined["data"]["n"] == 16
    assert [one["verdict_rule"] for one in joined["models"]] == ["mode", "mode"]
    assert {one["order"] for one in joined["models"]} == {"both"}
    assert (root / "evaluation" / "report.md").exists()
    rows = (root / "evaluation" / "predictions.jsonl").read_text("utf-8").split("\n")
    ids = [json.loads(row)["id"] for row in rows if row]
    assert sorted(ids) == sorted([*set(ids)] * 2), "each row once for each judge"
    adapters = sorted(root.glob("fold-*/*_final"))
    with pytest.raises(UserError, match="in the test part of two"):
        join_evaluations([adapters[0], adapters[0]], tmp_path / "twice")
    with pytest.raises(UserError, match="one adapter is no set of folds"):
        join_evaluations(adapters[:1], tmp_path / "one")


def test_evaluations_of_another_training_are_not_joined() -> None:
    judge = JudgeResults(name="adapter", grid="0-9")
    first = Results(models=[judge])
    for other, what in (
        (Results(task="pairwise"), "task"),
        (Results(), "set of judges"),
        (Results(models=[judge.model_copy(update={"grid": None})]), "grid, verdict rule or order"),
    ):
        with pytest.raises(UserError, match=f"^b has another {what} than a: join adapters of one"):
            folds._check_same([first, other], [Path("a"), Path("b")])


def test_baselines_of_joined_folds_keep_their_scores_and_judges_how_they_judged(
    tmp_path: Path,
) -> None:
    scale, adapters = Scale.from_name("1-5"), [tmp_path / "a", tmp_path / "b"]
    int8 = PrecisionChange(n=12, verdicts=1, probability=0.02)
    # The other fold's lines could not be cut.
    cuts = [PrecisionChange(n=50, verdicts=0, probability=1e-5), None]
    for adapter, cut in zip(adapters, cuts, strict=True):
        rows = [
            Prediction.model_validate(
                {
                    "model": "adapter",
                    "status": "ok",
                    "id": f"{adapter.name}{i}",
                    "group": f"{adapter.name}{i}",
                    "label": 1 + i % 5,
                    "verdict": 1 + i % 4,
                }
            )
            for i in range(20)
        ]
        how: dict[str, Any] = {
            "grid": "1-3",
            "rule": "median",
            "order": None,
            "change": int8,
            "cut": cut,
        }
        judge = JudgeRows("adapter", adapter.name, rows, precision="int8", **how)
        values = np.array([1.4 + i % 5 / 2 for i in range(20)])
        baselines = [Baseline.of("TF-IDF", values, scale, "the training rows")]
        about = results_of([judge], scale, {"path": "d"}, baselines, (), {})
        write_evaluation(adapter / "evaluation", [judge], about, baselines)
    join_evaluations(adapters, tmp_path / "out")
    joined = read_results(tmp_path / "out")
    (baseline,), (model,) = joined.baselines, joined.models
    assert baseline.metrics["pearson"].value == pytest.approx(1)
    assert (model.grid, model.verdict_rule, model.order) == ("1-3", "median", None)
    assert model.precision_change == PrecisionChange(n=24, verdicts=2, probability=0.02)
    assert model.reading_change == cuts[0]


REAL = {
    "score": ("mlqe-pe", "mlqe-pe/ro-en-dev.tar.gz"),
    "pairwise": ("pandalm", "pandalm/testset-v1.json"),
    "pass_fail": (
        "paracrawl-human",
        "paracrawl-en-pt-human/paracrawl-v3-validation-data.sorted.en-pt.tsv",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", REAL)
def test_both_recipes_train_on_what_people_labelled(task: str, tmp_path: Path) -> None:
    layout, name = REAL[task]
    command = ["data", "import", str(real(name)), "--format", layout]
    imported = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "data")])
    assert imported.exit_code == 0, imported.output
    for recipe in RECIPES:
        out = tmp_path / recipe
        more = ["--epochs=1", "--max_samples=8", "--test_samples=8", "--max_seq_length=2048"]
        more += ["--tracking=off", "--eval_steps=0"]
        main(recipe, flags(Path("tiny"), tmp_path / "data", out, *more))
        (adapter,) = out.glob("*_final")
        evaluation = results(adapter)
        assert evaluation["task"] == task
        assert evaluation["data"]["n"] == 8, "no row was left out"
