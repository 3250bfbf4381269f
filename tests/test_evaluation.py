"""An evaluation of rows of both shapes: what is kept of each row, and what is counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.dataset import read_dataset
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import Place
from pt_app.core.state_rows import examples_of
from pt_app.eval_model.evaluation import evaluate, prediction
from pt_app.models import adapters, bases
from pt_app.scoring.scorer import Scored
from pt_app.training.preparation import Prepared
from tests.question_rows import questions

PAIR = {
    "id": "pair",
    "source": "the house " * 200,
    "conversation": [{"role": "user", "content": "Hello"}],
    "context": "a note",
    "candidates": ["a casa", "o casa"],
    "label": {"verdict": "A", "feedback": "B has the wrong gender."},
}
CHAT = {"id": "chat", "input": "Which is better?", "output": "Winner: B"}


@pytest.fixture(scope="module")
def evaluation(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tmp_path_factory.mktemp("pairs")
    (rows / "dataset.json").write_text('{"task": "pairwise"}')
    (rows / "judge_train.json").write_text(json.dumps(PAIR | {"id": "train", "source": "a cat"}))
    (rows / "judge_test.json").write_text(json.dumps([PAIR, CHAT]))
    data, source = read_dataset(rows), bases.resolve_model(str(base))
    encoder = PromptEncoder(
        bases.load_tokenizer(source), Template.load("translation"), data.scale, 512
    )
    judge = adapters.attach_lora(
        bases.load_model(source), r=2, alpha=4, dropout=0.0, targets="q_proj"
    )
    folder = tmp_path_factory.mktemp("adapters") / "judge"
    identity = bases.model_identity(source)
    adapters.save_adapter(judge, encoder, folder, identity=identity, training_config={})
    evaluate(Prepared(source, data, encoder, None, None, data.test), folder, {})
    return folder / "evaluation"


def test_predictions_keep_every_text_that_a_row_has(evaluation: Path) -> None:
    lines = (evaluation / "predictions.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(row["model"], row["id"]) for row in rows] == [
        ("adapter", "pair"),
        ("adapter", "chat"),
        ("base", "pair"),
        ("base", "chat"),
    ]
    pair, chat = rows[:2]
    for name in ("source", "conversation", "context", "candidates"):
        assert pair[name] == PAIR[name]
    assert "prompt" not in pair
    assert chat["prompt"] == CHAT["input"]
    assert not chat.keys() & {"conversation", "context", "candidates"}


@pytest.mark.parametrize(
    ("cell", "several"),
    [
        ({"annotators": {"ana": "refund"}}, False),
        ({"annotators": {"ana": "refund", "rui": "refund"}}, True),
        ({"votes": {"refund": 1}}, False),
        ({"votes": {"refund": 1, "nothing": 0}}, False),
        ({"votes": {"refund": 2}}, True),
        ({"votes": {"refund": 1, "nothing": 1}}, True),
        ({"votes": {"refund": 0.25, "nothing": 0.75}}, True),
        ("refund", False),
    ],
)
def test_predictions_have_the_shares_of_several_labels_alone(cell: Any, several: bool) -> None:
    row = {"ticket": "t", "reply": "r", "labels": {"offer": cell}}
    place = Place(Path("rows.json"), 1, lines=True)
    (example,) = examples_of(row, place, ["ticket", "reply"], questions(), "1")
    assert (prediction("adapter", example, Scored("ok", "refund")).shares is not None) == several


def test_rows_that_were_shortened_are_counted_for_each_judge(evaluation: Path) -> None:
    results = json.loads((evaluation / "results.json").read_text())
    assert [model["shortened"] for model in results["models"]] == [1, 1]
    assert [model["unscored"] for model in results["models"]] == [0, 0]
