"""`judge bench score`: verdicts and answers per second, against transformers or llama.cpp.

All ways judge the same rows with the same merged model. Random weights end no answer by themselves,
so each is as long as it may be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import llama_cpp
from benchmarks.processes import Samples, Work, in_turns, repeat
from benchmarks.shapes import SHAPES, build
from benchmarks.train import FAST, SLOW, best_gemm
from benchmarks.workloads import ANSWER, USUAL, Lengths, Workload, make_workload
from pt_app.models import gemm

BATCH = 8
LLAMA_CPP = "llama.cpp"
Make = Callable[..., Callable[[], Any]]
"""Makes of a model and a `Workload` what judges the rows."""


@dataclass(frozen=True)
class Way:
    """One way of judging, and how its matmuls are computed."""

    make: Make
    matmul: str = SLOW


def _judge(
    model: Any,
    workload: Workload,
    feedback: bool = False,
    precision: str = "float32",
    scale: str = "",
    branches: bool = False,
) -> Callable[[], Any]:
    from pt_app.models.gemm import pack_weights
    from pt_app.models.tree_attention import BLOCKS, use_attention
    from pt_app.scoring.precision import convert
    from pt_app.scoring.scorer import JudgeScorer

    if scale:  # the same rows, judged on another scale
        rows = len(workload.examples)
        workload = make_workload(workload.name, rows, scale, workload.lengths)
    use_attention(model, BLOCKS)
    model = pack_weights(convert(model, precision))
    scorer = JudgeScorer(model, workload.encoder, order="as_given", progress=False)
    scorer.feedback, scorer.answer_tokens = feedback, ANSWER
    if branches:  # where a trained judge's lines are cut: random weights end lines in many ways
        trie = scorer.trie
        counts = [min(n + 1, len(path)) for n, path in zip(trie.forks, trie.paths, strict=True)]
        cut = trie.cut(counts, [0.0] * len(counts))
        scorer = replace(scorer, tries={scorer.encoder.scale: cut})
    return lambda: [one.probabilities for one in scorer.score(workload.examples)]


def _generate(model: Any, workload: Workload, rows: int, tokens: int) -> Callable[[], Any]:
    """Greedy generation of `tokens`, in left-padded batches of `rows`, sorted by length."""
    from transformers import GenerationConfig

    pad = workload.encoder.end_token_id
    config = GenerationConfig(
        do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=pad
    )

    def run() -> None:
        for ids, mask in _batches(workload, rows):
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config)

    return run


def _generate_line(model: Any, workload: Workload) -> Callable[[], Any]:
    """Generation row by row that stops after the verdict's line."""
    lines = [workload.encoder.answer_ids(line) for line in workload.encoder.scale.lines()]
    return _generate(model, workload, rows=1, tokens=max(map(len, lines)))


def _forward(model: Any, workload: Workload) -> Callable[[], Any]:
    """Logits at all positions, of which the last is read, in sorted batches."""

    def run() -> None:
        with torch.inference_mode():
            for ids, mask in _batches(workload, BATCH):
                model(input_ids=ids, attention_mask=mask).logits[:, -1].log_softmax(-1)

    return run


def _decide(model: Any, workload: Workload) -> Callable[[], Any]:
    """transformers' own pipeline for decisions: labels read from one forward pass per row."""
    from transformers import pipeline
    from transformers.decision import DecisionConfig

    tokenizer = workload.encoder.tokenizer
    pipe = pipeline("decision", model=model, tokenizer=tokenizer, decision_config=DecisionConfig())
    criteria = [str(value) for value in workload.encoder.scale.values]
    requests = [
        {
            "state": tokenizer.decode(row["input_ids"][: row["prompt_length"]]),
            "questions": {"verdict": {"type": "score", "instructions": "", "criteria": criteria}},
        }
        for row in workload.encoded
    ]
    return lambda: [pipe(request) for request in requests]


def _batches(workload: Workload, rows: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pad = workload.encoder.end_token_id
    prompts = sorted(
        (row["input_ids"][: row["prompt_length"]] for row in workload.encoded), key=len
    )
    batches = []
    for chosen in (prompts[i : i + rows] for i in range(0, len(prompts), rows)):
        width = max(map(len, chosen))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in chosen])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen])
        batches.append((ids, mask))
    return batches


WAYS = {
    "judge": Way(_judge),
    "judge, branches": Way(partial(_judge, branches=True)),
    "judge, scale 1-5": Way(partial(_judge, scale="1-5")),
    "judge, scale pass_fail": Way(partial(_judge, scale="pass_fail")),
    "judge, scale 0-100": Way(partial(_judge, scale="0-100")),
    "judge, scale 0-100, branches": Way(partial(_judge, scale="0-100", branches=True)),
    "judge, with answers": Way(partial(_judge, feedback=True)),
    "judge, bf16": Way(partial(_judge, precision="bf16")),
    "judge, int8": Way(partial(_judge, precision="int8")),
    "generate": Way(partial(_generate, rows=1, tokens=ANSWER)),
    "generate, fast matmul": Way(partial(_generate, rows=1, tokens=ANSWER), FAST),
    "generate to the verdict": Way(_generate_line),
    "generate, batches": Way(partial(_generate, rows=BATCH, tokens=ANSWER)),
    "generate, batches, fast matmul": Way(partial(_generate, rows=BATCH, tokens=ANSWER), FAST),
    "forward, batches": Way(_forward),
    "forward, batches, fast matmul": Way(_forward, FAST),
    "decision pipeline": Way(_decide),
    **{
        f"{LLAMA_CPP}, {dtype}": Way(partial(llama_cpp.prepare, dtype=dtype))
        for dtype in llama_cpp.PRECISIONS
    },
}
# What is measured beside each rival, if nothing is named.
RIVALS = {
    "transformers": [name for name in WAYS if not name.startswith(LLAMA_CPP)],
    LLAMA_CPP: ["judge", "judge, branches", "judge, bf16", "judge, int8"]
    + [name for name in WAYS if name.startswith(LLAMA_CPP)],
}


def measure(
    shape_name: str,
    workload_name: str,
    rounds: int,
    rows: int = 12,
    scale: str = "0-10",
    layers: int = 0,
    lengths: Lengths = USUAL,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
    against: str = "transformers",
    llama_server: Path | None = None,
) -> dict[str, Any]:
    """Measure the ways beside a rival (or `only` some); the numbers of docs/PERFORMANCE.md."""
    shape = SHAPES[shape_name]
    shape = replace(shape, layers=layers or shape.layers)
    torch.set_num_threads(1)
    workload = make_workload(workload_name, rows, scale, lengths)
    ways = {name: WAYS[name] for name in only or RIVALS[against]}
    if "judge, bf16" in ways and not gemm.has_bfloat16():
        del ways["judge, bf16"]
        say("judge, bf16 is left out: this CPU has no bfloat16 of its own")
    model = build(shape)

    def work(name: str, way: Way) -> Work:
        more = {"server": llama_server} if name.startswith(LLAMA_CPP) else {}

        def prepare() -> Callable[[], Any]:
            torch.set_float32_matmul_precision(way.matmul)
            return way.make(model, workload, **more)

        return repeat(prepare)

    best = best_gemm(shape)
    found = in_turns({name: work(name, way) for name, way in ways.items()}, rounds, say)
    exact = _row_by_row(model, workload, 2) if "judge" in ways else []
    return _summary(workload, scale, found, exact, best)


def _row_by_row(model: Any, workload: Workload, rows: int) -> list[Sequence[float]]:
    """The probabilities of the first rows, one plain forward pass for each verdict."""
    from pt_app.scoring.scorer import JudgeScorer
    from pt_app.scoring.verdict_trie import read_plain

    scorer = JudgeScorer(model, workload.encoder, progress=False)
    prompts = [row["input_ids"][: row["prompt_length"]] for row in workload.encoded[:rows]]
    with torch.inference_mode():
        reading = read_plain(model, prompts, scorer.trie, scorer.encoder.end_token_id)
    chances: list[Sequence[float]] = reading.log_probabilities.softmax(dim=1).tolist()
    return chances


RATIOS = {
    "ratio_vs_generate": ("judge", "generate"),
    "ratio_vs_generate_scale_1-5": ("judge, scale 1-5", "generate"),
    "ratio_vs_generate_scale_pass_fail": ("judge, scale pass_fail", "generate"),
    "ratio_vs_generate_to_the_verdict": ("judge", "generate to the verdict"),
    "ratio_vs_generate_to_the_verdict_scale_1-5": ("judge, scale 1-5", "generate to the verdict"),
    "ratio_vs_forward": ("judge", "forward, batches"),
    "ratio_vs_forward_scale_1-5": ("judge, scale 1-5", "forward, batches"),
    "ratio_vs_forward_scale_pass_fail": ("judge, scale pass_fail", "forward, batches"),
    "ratio_branches_vs_whole_lines": ("judge, scale 0-100, branches", "judge, scale 0-100"),
    "ratio_vs_decision": ("judge", "decision pipeline"),
    "ratio_vs_batched_generate": ("judge, with answers", "generate, batches"),
    "ratio_vs_generate_same_matmul": ("judge", "generate, fast matmul"),
    "ratio_vs_forward_same_matmul": ("judge", "forward, batches, fast matmul"),
    "ratio_vs_batched_generate_same_matmul": (
        "judge, with answers",
        "generate, batches, fast matmul",
    ),
}


def _summary(
    workload: Workload,
    scale: str,
    found: dict[str, Samples],
    exact: list[Sequence[float]],
    best: float,
) -> dict[str, Any]:
    rate = {n: len(workload.examples) / s.median for n, s in found.items() if s.seconds}
    ratios = {
        name: rate[one] / rate[other]
        for name, (one, other) in RATIOS.items()
        if one in rate and other in rate
    }
    ways = {
        name: {
            "rows_per_second": rate.get(name),
            "seconds": samples.seconds,
            "rows_per_cpu_second": len(workload.examples) / median(samples.cpu)
            if samples.cpu
            else None,
            "peak_memory_gib": samples.memory,
            "error": samples.error or None,
        }
        for name, samples in found.items()
    }
    return {
        "workload": workload.name,
        "scale": scale,
        "rows": len(workload.examples),
        "prompt_tokens": workload.prompt_tokens,
        "best_gemm_gflops": best / 1e9,
        "ways": ways,
        **ratios,
        **_against_llama_cpp(ways, exact, found),
        **(_against(exact, found["judge"].results[-1]) if "judge" in rate else {}),
        **{
            f"verdicts_changed_{name}": _changed(
                found["judge"].results[-1], found[f"judge, {name}"].results[-1]
            )
            for name in ("bf16", "int8")
            if "judge" in rate and f"judge, {name}" in rate
        },
    }


def _against(exact: list[Sequence[float]], judged: list[Sequence[float]]) -> dict[str, Any]:
    """How far the judge's numbers lie from those of one plain forward pass per verdict."""
    pairs = list(zip(exact, judged[: len(exact)], strict=True))
    apart = [abs(p - q) for one, other in pairs for p, q in zip(one, other, strict=True)]
    return {
        "verdicts_compared": len(pairs),
        "verdicts_changed": _changed(exact, judged[: len(exact)]),
        "probability_difference": max(apart, default=None),
    }


def _against_llama_cpp(
    ways: dict[str, Any], exact: list[Sequence[float]], found: dict[str, Samples]
) -> dict[str, Any]:
    """The judge's speed over that of llama.cpp's fastest way, and how far its numbers lie."""
    theirs = [name for name in ways if name.startswith(LLAMA_CPP) and found[name].seconds]
    report: dict[str, Any] = {}
    if not theirs:
        return report
    for unit, clock in (("rows_per_second", ""), ("rows_per_cpu_second", "_in_cpu_time")):
        best = max(theirs, key=lambda name: ways[name][unit])
        for name in ways:
            if name.startswith("judge") and found[name].seconds:
                ratio = f"ratio_vs_llama_cpp{clock}_{name.removeprefix('judge').strip(', ')}"
                report[ratio.rstrip("_")] = ways[name][unit] / ways[best][unit]
        report[f"fastest_llama_cpp{clock}"] = best.removeprefix(LLAMA_CPP).strip(", ")
    for name in theirs if exact else ():
        apart = _against(exact[:1], found[name].results[-1])["probability_difference"]
        report[f"probability_difference_{name}"] = apart
    return report


def _changed(one: list[Sequence[float]], other: list[Sequence[float]]) -> int:
    pairs = zip(one, other, strict=True)
    return sum(_likeliest(a) != _likeliest(b) for a, b in pairs)


def _likeliest(chances: Sequence[float]) -> int:
    return list(chances).index(max(chances))
