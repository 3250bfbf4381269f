"""Files of labels as strangers keep them, written to disk for tests."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COUNT = 24
FIRST = ("quiet", "red", "small", "green", "lazy", "brave", "tall", "polite", "rusty", "sleepy")
THING = ("horse", "window", "river", "teacher", "pencil", "garden", "bottle", "engine", "village")


def source(i: int) -> str:
    """A sentence of its own for each row: no two are near duplicates."""
    return (
        f"The {FIRST[i % 10]} {THING[i * 4 % 9]} stands at number {i}, {FIRST[i // 10]} and still"
    )


def answer(i: int) -> str:
    return f"Answer {THING[i % 9]} and {FIRST[i * 7 % 10]}, {i}"


def translations(i: int) -> Row:
    return {"src": source(i), "mt": answer(i), "score": i % 11, "comment": "fine, so far"}


def graded(i: int) -> Row:
    return {"question": source(i), "answer": answer(i), "correct": "yes" if i % 3 else "No"}


def arena(i: int) -> Row:
    winner = ("model_a", "model_b", "tie (both bad)")[i % 3]
    own = {"response_a": answer(i), "response_b": answer(i + 1), "winner": winner}
    return {"prompt": source(i), "model_a": "x", "model_b": "y", **own}


def by_column(i: int) -> Row:
    raters = {f"rater_{r}": (i + r) % 5 + 1 for r in (1, 2, 3)}
    return {
        "id": f"s{i}",
        "instruction": source(i),
        "input": "Be brief." * (i % 2),
        "output": answer(i),
        **raters,
    }


def long_form(i: int) -> Row:
    item = i // 2
    own = {"source": source(item), "target": answer(item), "rater": ("ana", "bob")[i % 2]}
    return {"item_id": item, **own, "rating": (i % 4 + 1) / 2}


def label_studio(i: int) -> Row:
    said = [{"result": [{"value": {"rating": (i + r) % 5 + 1}}]} for r in (0, 1)]
    return {"id": i, "data": {"source": source(i), "translation": answer(i)}, "annotations": said}


def argilla(i: int) -> Row:
    said = {"label.responses": [i % 5 + 1, (i + 1) % 5 + 1], "label.responses.users": ["a", "b"]}
    return {"id": f"r{i}", "prompt": source(i), "response": answer(i), "status": "done", **said}


def argilla_1(i: int) -> Row:
    said = [
        {"user_id": u, "value": "good" if i % 3 else "bad", "status": "submitted"} for u in "ab"
    ]
    return {"prompt": source(i), "reply": answer(i), "verdict": said}


def mt_bench(i: int) -> Row:
    turns = {
        f"conversation_{x}": [
            {"role": "user", "content": source(i)},
            {"role": "assistant", "content": answer(i + n)},
        ]
        for n, x in enumerate("ab")
    }
    return {"question_id": 81 + i // 2, "winner": ("model_a", "model_b", "tie")[i % 3], **turns}


def words_for_grades(i: int) -> Row:
    grade = ("very poor", "poor", "fair", "good", "very good", "excellent")[i % 6]
    return {"customer text": source(i), "bot reply": answer(i), "quality": grade}


def unnamed(i: int) -> Row:
    return {"x1": source(i), "x2": answer(i), "x3": i % 5 + 1}


def chat(i: int) -> Row:
    return {"input": f"Rate this: {source(i)}", "output": f"Score: {i % 5 + 1}/5\nFeedback: So."}


def fields(i: int) -> Row:
    pair = {"candidates": [answer(i), answer(i + 1)], "label": {"verdict": "AB"[i % 2]}}
    return {"source": source(i), **pair}


def write(path: Path, ending: str, rows: Sequence[Row]) -> Path:
    file = path / f"labels.{ending.lstrip(';')}"
    if ending.endswith("sv"):
        delimiter = ";" if ending.startswith(";") else "\t" if ending == "tsv" else ","
        with open(file, "w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return file
    lines = [json.dumps(row) for row in rows]
    file.write_text(f"[{', '.join(lines)}]" if ending == "json" else "\n".join(lines))
    return file
