"""Makes what the other parts read: two bases with random weights, and rows like a judge's."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Part, Sizes
from benchmarks.shapes import Shape, build
from benchmarks.workloads import Workload, make_workload
from pt_app.core.records import JudgeExample
from pt_app.models.bases import shipped

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def workload(sizes: Sizes) -> Workload:
    """Return the rows on which speed is measured: each with its source, all with one rubric."""
    return make_workload("rubric", sizes.rows + sizes.rows // 16 + sizes.scored, "0-10")


def write_base(folder: Path, shape: Shape, dtype: torch.dtype) -> int:
    """Write a base of this shape with the tiny base's tokenizer; give the bytes of its weights.

    The weights are drawn on the device: 3 B of them take a minute on a CPU.
    """
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = build(shape, dtype)
    tokenizer = Path(shipped())
    config = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    for name in ("eos_token_id", "pad_token_id"):
        setattr(model.config, name, config.get(name))
        setattr(model.generation_config, name, config.get(name))
    model.save_pretrained(folder)
    for name in KEPT:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_rows(folder: Path, sizes: Sizes) -> None:
    """Write the rows as a dataset folder: training, validation, test."""
    made = workload(sizes)
    folder.mkdir(parents=True, exist_ok=True)
    ends = (sizes.rows, sizes.rows + sizes.rows // 16, len(made.examples))
    start = 0
    for split, end in zip(("train", "val", "test"), ends, strict=True):
        lines = [_line(f"{split}-{i}", row) for i, row in enumerate(made.examples[start:end])]
        (folder / f"judge_{split}.json").write_text("".join(lines), encoding="utf-8")
        start = end
    card = {"task": "score", "scale": "0-10", "template": "translation"}
    card |= {"rubric": made.encoder.template.rubric}
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")


def _line(name: str, row: JudgeExample) -> str:
    assert row.label is not None
    verdict, feedback = row.label.verdict, row.label.feedback
    fields: dict[str, Any] = {"id": name, "group": name, "task": "score"}
    fields |= {"source": row.source, "reference": row.reference, "candidate": row.candidate}
    fields["label"] = {"verdict": verdict, "issues": [], "feedback": feedback}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both bases and the rows, and say how long each took."""
    part = Part.started("bases")
    random.seed(0)
    numbers: dict[str, Any] = {}
    write_rows(part.rows, part.sizes)
    bases = ((part.small, part.sizes.small, torch.float32), (part.big, part.sizes.big, None))
    for folder, shape, dtype in bases:
        began = time.perf_counter()
        size = write_base(folder, shape, dtype or torch.bfloat16)
        numbers[folder.name] = {"bytes": size, "seconds": time.perf_counter() - began}
        part.save(numbers)


if __name__ == "__main__":
    main()
