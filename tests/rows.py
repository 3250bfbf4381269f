"""Small judge data written to disk for tests."""

import json
import random
from pathlib import Path
from typing import Any


def make_row(split: str, i: int, rng: random.Random) -> dict[str, Any]:
    """One row of fields; two rows share a source."""
    words = ["o", "casa", "velho", "mesa", "é", "branca"]
    return {
        "id": f"{split}-{i}",
        "group": f"{split} {i // 2}",
        "task": "score",
        "source": f"the old house {split} {i // 2}",
        "reference": f"a casa velha {i // 2}",
        "candidate": " ".join(rng.sample(words, rng.randint(1, 5))),
        "label": {
            "verdict": rng.randint(0, 10),
            "issues": ['gender "o" -> "a"'],
            "feedback": "Two errors.",
        },
    }


def write_rows(folder: Path, train: int = 24, val: int = 4, test: int = 12) -> Path:
    """Write a dataset folder of random rows, the same at every call; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        rng = random.Random(split)
        lines = [json.dumps(make_row(split, i, rng), ensure_ascii=False) for i in range(count)]
        (folder / f"judge_{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
