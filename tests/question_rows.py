"""A small dataset that asks four questions of each row, written to disk for tests."""

import json
import random
from pathlib import Path
from typing import Any

from pt_app.core.questions import Declared, Question, questions_of
from pt_app.core.records import JudgeExample, Place
from pt_app.core.state_rows import state_example

QUESTIONS: dict[str, dict[str, Any]] = {
    "apologises": {
        "type": "bool",
        "instructions": "Does the reply apologise?",
        "criteria": {"true": "says sorry in its own words", "false": "no apology"},
    },
    "offer": {
        "type": "choice",
        "instructions": "What does the reply offer?",
        "options": {"replacement": "a new item", "refund": "money back", "nothing": None},
    },
    "quality": {
        "type": "score",
        "instructions": "How helpful is the reply?",
        "levels": ["of no use", "some use", "solves it"],
    },
    "overall": {"type": "score", "instructions": "How good is it overall?", "scale": "0-10"},
}
CARD: dict[str, Any] = {"task": "questions", "state": ["ticket", "reply"], "questions": QUESTIONS}
WORDS = ["sorry", "cup", "broken", "new", "money", "back", "today", "no"]


def make_row(split: str, i: int) -> dict[str, Any]:
    """One row; each fourth label is missing, votes and annotators are among the others."""
    rng = random.Random(f"{split} {i}")
    labels: dict[str, Any] = {
        "apologises": rng.random() < 0.5,
        "offer": {"votes": {"replacement": rng.randint(1, 3), "refund": rng.randint(0, 2)}},
        "quality": {"annotators": {"ana": rng.randint(0, 2), "rui": rng.randint(0, 2)}},
        "overall": rng.randint(0, 10),
    }
    del labels[list(labels)[i % 4]]
    return {
        "id": f"{split}-{i}",
        "ticket": f"the {split} {i} cup is broken",
        "reply": " ".join(rng.sample(WORDS, rng.randint(2, 6))),
        "labels": labels,
    }


def write_questions(folder: Path, train: int = 24, val: int = 8, test: int = 12) -> Path:
    """Write a dataset folder of random rows, the same at every call; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(CARD), encoding="utf-8")
    for split, count in (("train", train), ("val", val), ("test", test)):
        lines = [json.dumps(make_row(split, i)) for i in range(count)]
        (folder / f"judge_{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def questions(**more: dict[str, Any]) -> tuple[Question, ...]:
    """The questions of `CARD`, and others."""
    declared = {name: Declared.model_validate(own) for name, own in (QUESTIONS | more).items()}
    return questions_of(declared, "dataset.json, field questions")


def examples(count: int, asked: tuple[Question, ...], split: str = "test") -> list[JudgeExample]:
    """An unlabelled example of each of the first `count` rows and each question."""
    rows = []
    for i in range(count):
        place = Place(Path("rows.json"), i + 1, lines=True)
        bare = state_example(make_row(split, i), place, CARD["state"], f"{split}-{i}")
        rows += [bare.model_copy(update={"question": question}) for question in asked]
    return rows
