"""Rows per second of the large judge on the GPU, against transformers' generate and its weights."""

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.gpu.bases import workload
from benchmarks.gpu.part import Part
from pt_app.judge import Judge
from pt_app.scoring.precision import convert

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 32


def adapter_of(part: Part) -> Path:
    """Return the adapter that the training with the recipe's defaults left.

    Raises SystemExit where there is none.
    """
    found = sorted((part.work / "training").glob("nf4-defaults/*_final"))
    if not found:
        raise SystemExit("the training left no adapter to score with")
    return found[0]


def test_rows(part: Part) -> list[dict[str, Any]]:
    """Return the rows to be judged, without their labels."""
    lines = (part.rows / "judge_test.json").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "label"} for line in lines]


def rate(work: Callable[[], Any], rows: int) -> dict[str, float]:
    """Return rows per second of one call, and the device's peak bytes in it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    found = {"rows_per_second": rows / seconds, "seconds": seconds}
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if DEVICE == "cuda" else {})


def judged(judge: Judge, rows: list[dict[str, Any]], precision: str) -> dict[str, float]:
    """Time the judge, on the scale 0-10; a few rows warm it up."""
    judge.model = convert(judge.model, precision)
    judge.score(rows[:8])
    return rate(lambda: judge.score(rows), len(rows))


def generated(part: Part) -> dict[str, float]:
    """Time greedy generation of whole answers, sorted, in left-padded batches."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(part.big, dtype=dtype).to(DEVICE)
    model = PeftModel.from_pretrained(base, adapter_of(part)).merge_and_unload().eval()
    rows = workload(part.sizes).encoded[-part.sizes.scored :]
    prompts = sorted((row["input_ids"][: row["prompt_length"]] for row in rows), key=len)
    tokens = part.sizes.answer
    config = GenerationConfig(
        do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
    )

    def run(some: list[list[int]]) -> None:
        for start in range(0, len(some), BATCH):
            chosen = some[start : start + BATCH]
            width = max(map(len, chosen))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in chosen], device=DEVICE)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen])
            mask = mask.to(DEVICE)
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config)

    run(prompts[:2])
    return rate(lambda: run(prompts), len(prompts))


def main() -> None:
    """Time the judge in float32 and, on a GPU, in bfloat16; then generate, in bfloat16."""
    part = Part.started("scoring")
    numbers: dict[str, Any] = {"answer_tokens": part.sizes.answer, "generate_batch": BATCH}
    judge = Judge.load(adapter_of(part), base=str(part.big), device=DEVICE)
    # Not every CPU has bfloat16.
    precisions = ("float32", "bf16") if DEVICE == "cuda" else ("float32",)
    for precision in precisions:
        numbers[f"judge, {precision}"] = judged(judge, test_rows(part), precision)
        part.save(numbers)
    del judge
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
    numbers["generate"] = generated(part)
    for precision in precisions:
        own, theirs = (numbers[name] for name in (f"judge, {precision}", "generate"))
        ratio = own["rows_per_second"] / theirs["rows_per_second"]
        numbers[f"judge, {precision}, over generate"] = ratio
    part.save(numbers)


if __name__ == "__main__":
    main()
