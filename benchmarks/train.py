"""`judge bench train`: this project's training step against TRL's and a plain Trainer's.

Each runs its own real training loop on the same rows in the same order, from the same weights.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import TrainerCallback

from benchmarks.processes import Samples, Turns, Work, in_turns
from benchmarks.shapes import SHAPES, Shape, build
from benchmarks.workloads import USUAL, Lengths, Workload, make_workload
from pt_app.models.packing import Example

RANK = 16
TARGETS = "q_proj,k_proj,v_proj,o_proj"
IGNORED = -100
FAST, SLOW = "medium", "highest"  # torch.set_float32_matmul_precision


@dataclass(frozen=True)
class Way:
    """One way of training: the loop, the step's layout, the base's dtype, the matmuls."""

    make: Callable[..., Any]
    rows: int = 4
    accumulate: int = 1
    dtype: torch.dtype = torch.float32
    matmul: str = FAST

    @property
    def examples(self) -> int:
        """Examples of an optimizer step."""
        return self.rows * self.accumulate


def _judge(model: Any, workload: Workload, way: Way, common: dict[str, Any], trees: bool) -> Any:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    from pt_app.models import gemm
    from pt_app.models.gated_mlp import keep_less
    from pt_app.models.packing import StepCollator
    from pt_app.models.tree_attention import BLOCKS, use_attention
    from pt_app.training.loop import LoopArguments, TrainingLoop
    from pt_app.training.loss import AnswerLoss
    from pt_app.training.ordering import RowSteps
    from pt_app.training.run import adamw

    gemm.keep_freed_memory()  # as platforms.decide does
    use_attention(model, BLOCKS)
    keep_less(model)
    pad = workload.encoder.end_token_id
    tolerance = 1e-4 if way.dtype == torch.float32 else 3e-2
    rows = Dataset.from_list(workload.encoded)
    names = ("max_steps", "max_grad_norm", "logging_steps", "use_cpu")
    args = LoopArguments(Path(common["output_dir"]), **{name: common[name] for name in names})
    return TrainingLoop(
        model,
        args,
        RowSteps(rows, SequentialSampler(rows), way.examples, StepCollator(pad, 2048)),
        AnswerLoss(pad, rows=way.rows, trees=trees, tolerance=tolerance),
        partial(adamw, "adamw_torch", common["learning_rate"]),
        lambda step, steps: 1 - step / steps,  # Trainer's and TRL's by default
    )


def labelled(rows: Iterable[Example]) -> Any:
    """Return rows as TRL and Trainer take them, of which the answers alone are supervised."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"],
                "labels": [IGNORED] * row["prompt_length"]
                + row["input_ids"][row["prompt_length"] :],
            }
            for row in rows
        ]
    )


def _trl(model: Any, workload: Workload, way: Way, common: dict[str, Any], **more: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**common | more, max_length=None),
        train_dataset=labelled(workload.encoded),
        processing_class=workload.encoder.tokenizer,
    )


def _padded(model: Any, workload: Workload, way: Way, common: dict[str, Any]) -> Any:
    """A plain Trainer, rows padded to one length, the model's own loss."""
    from transformers import Trainer, TrainingArguments

    width = max(512, max(len(row["input_ids"]) for row in workload.encoded))
    pad = workload.encoder.end_token_id

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        def filled(name: str, value: int) -> torch.Tensor:
            tensors = [torch.tensor(row[name]) for row in rows]
            return torch.stack([F.pad(t, (0, width - len(t)), value=value) for t in tensors])

        ids, labels = filled("input_ids", pad), filled("labels", IGNORED)
        real = torch.tensor([len(row["input_ids"]) for row in rows])[:, None]
        mask = (torch.arange(width) < real).long()
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return Trainer(
        model=model,
        args=TrainingArguments(**common),
        train_dataset=labelled(workload.encoded),
        data_collator=collate,
    )


PLAIN_TRL: dict[str, Any] = {"bf16": False, "activation_checkpointing": False}
WAYS = {
    "judge": Way(partial(_judge, trees=True)),
    "TRL": Way(partial(_trl, **PLAIN_TRL)),
    "TRL, padding-free": Way(partial(_trl, **PLAIN_TRL, padding_free=True)),
    "TRL, batch 1": Way(partial(_trl, **PLAIN_TRL), rows=1, accumulate=4),
    "Trainer, padded": Way(_padded),
    "judge, bf16": Way(partial(_judge, trees=True), dtype=torch.bfloat16),
    "TRL, bf16": Way(partial(_trl, **PLAIN_TRL), dtype=torch.bfloat16),
    "TRL, bf16, padding-free": Way(
        partial(_trl, **PLAIN_TRL, padding_free=True), dtype=torch.bfloat16
    ),
    "TRL, its defaults": Way(_trl, rows=8, matmul=SLOW),
    "judge, rows apart": Way(partial(_judge, trees=False), rows=1, accumulate=4),
    "judge, slow matmul": Way(partial(_judge, trees=True), matmul=SLOW),
    "judge, rows apart, slow matmul": Way(
        partial(_judge, trees=False), rows=1, accumulate=4, matmul=SLOW
    ),
    "TRL, slow matmul": Way(partial(_trl, **PLAIN_TRL), matmul=SLOW),
}


class _Held(TrainerCallback):  # type: ignore[misc]
    """Holds a training loop before each optimizer step until it is this process's turn.

    The time to fetch and lay out the step's rows counts. The first gradients go into `file`.
    """

    def __init__(self, turns: Turns, model: Any, file: Path) -> None:
        self.turns, self.model, self.file = turns, model, file
        self.ended = time.perf_counter()
        self.began = self.spent = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        fetched = time.perf_counter() - self.ended
        self.turns.wait()
        self.began = time.perf_counter() - fetched

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            named = self.model.named_parameters()
            torch.save({n: p.grad.clone() for n, p in named if p.grad is not None}, self.file)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent = time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "loss" in logs:
            self.turns.done(self.spent, float(logs["loss"]))
            self.ended = time.perf_counter()


def draw_lora_b(model: Any) -> None:
    """Draw the B matrices of an adapter with a seed, on the CPU.

    They are zero in a new adapter: half of the gradients would be, too.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            drawn = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator)
            parameter.data.copy_(drawn)


def real_training(model: Any, workload: Workload, way: Way, steps: int, file: Path) -> Work:
    """A real training loop of `steps` optimizer steps, one a turn."""
    common: dict[str, Any] = {
        "output_dir": str(file.parent / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": way.rows,
        "gradient_accumulation_steps": way.accumulate,
        "learning_rate": 1e-4,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }

    def work(turns: Turns) -> None:
        from pt_app.models.adapters import attach_lora

        torch.set_float32_matmul_precision(way.matmul)
        torch.manual_seed(0)
        judge = attach_lora(model, r=RANK, alpha=32, dropout=0.0, targets=TARGETS)
        draw_lora_b(judge)
        trainer = way.make(judge, workload, way, common)
        callback = _Held(turns, judge, file)
        if hasattr(trainer, "add_callback"):
            trainer.add_callback(callback)
        else:
            trainer.callbacks.append(callback)
        trainer.train()
        turns.wait()

    return work


def measure(
    shape_name: str,
    workload_name: str,
    rounds: int,
    layers: int = 0,
    lengths: Lengths = USUAL,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all ways (or `only` some) on one workload; the numbers of docs/PERFORMANCE.md."""
    import trl.trainer.sft_trainer  # noqa: F401  (here, so that the processes share its memory)

    shape = SHAPES[shape_name]
    shape = replace(shape, layers=layers or shape.layers)
    torch.set_num_threads(1)
    ways = {name: way for name, way in WAYS.items() if not only or name in only}
    steps = 2 * (rounds + 1)  # the work of a turn may be done twice, see Turns.done
    rows = steps * max(way.examples for way in ways.values())
    workload = make_workload(workload_name, rows, "0-10", lengths)
    models = {torch.float32: build(shape)}
    if any(way.dtype == torch.bfloat16 for way in ways.values()):
        models[torch.bfloat16] = build(shape, torch.bfloat16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works = {
            n: real_training(models[way.dtype], workload, way, steps, folder / f"{n}.pt")
            for n, way in ways.items()
        }
        best = best_gemm(shape)
        found = in_turns(works, rounds, say)
        best = max(best, best_gemm(shape))
        gradients = {
            n: torch.load(p, weights_only=True) for n in ways if (p := folder / f"{n}.pt").exists()
        }
    return _summary(shape, workload, ways, found, gradients, best)


def best_gemm(shape: Shape) -> float:
    """The best float32 GEMM rate of this core at the shape's own sizes, in FLOPs a second."""
    before, rates = torch.get_float32_matmul_precision(), []
    for matmul in (FAST, SLOW):
        torch.set_float32_matmul_precision(matmul)
        for out in (shape.hidden, shape.intermediate):
            x, weight = torch.randn(1024, shape.hidden), torch.randn(out, shape.hidden)
            seconds = []
            for _ in range(6):
                start = time.perf_counter()
                F.linear(x, weight)
                seconds.append(time.perf_counter() - start)
            rates.append(2 * x.numel() * out / min(seconds))
    torch.set_float32_matmul_precision(before)
    return float(max(rates))


def useful_flops(shape: Shape, workload: Workload, step: int, examples: int) -> float:
    """Return the fewest operations of a step.

    Each prefix counts once, the last MLP and the head where a token is supervised; forward, and for
    the gradient of the input. Frozen weights have no gradient of their own; adapters and attention
    are not counted.
    """
    from pt_app.models.packing import Tree

    rows = workload.encoded[step * examples : (step + 1) * examples]
    tokens: int = len(Tree.of([row["input_ids"] for row in rows]).ids)
    supervised: int = sum(len(row["input_ids"]) - row["prompt_length"] for row in rows)
    unread = (tokens - supervised) * shape.mlp_weights
    return 4.0 * (tokens * shape.body_weights - unread + supervised * shape.head_weights)


def _summary(
    shape: Shape,
    workload: Workload,
    ways: dict[str, Way],
    found: dict[str, Samples],
    gradients: dict[str, Any],
    best: float,
) -> dict[str, Any]:
    rate = {n: ways[n].examples / s.median for n, s in found.items() if s.seconds}
    lines = {}
    for name, samples in found.items():
        way = ways[name]
        flops = [
            useful_flops(shape, workload, step, way.examples) / seconds
            for step, seconds in enumerate(samples.seconds, start=1)
        ]
        lines[name] = {
            "examples_per_second": rate.get(name),
            "seconds": samples.seconds,
            "peak_memory_gib": samples.memory,
            "gemm_utilisation": sorted(flops)[len(flops) // 2] / best if flops else None,
            "error": samples.error or None,
        }

    def ratio(one: str, *others: str) -> float | None:
        rates = [rate[other] for other in others if other in rate]
        return rate[one] / max(rates) if one in rate and rates else None

    def first_losses(one: str, other: str) -> float | None:
        known = one in rate and other in rate
        return abs(found[one].results[0] - found[other].results[0]) if known else None

    def memory(one: str, *others: str) -> float | None:
        known = [found[o].memory for o in others if o in rate]
        return found[one].memory / min(known) if one in rate and known else None

    return {
        "workload": workload.name,
        "prompt_tokens": workload.prompt_tokens,
        "best_gemm_gflops": best / 1e9,
        "ways": lines,
        "ratio_vs_trl": ratio("judge", "TRL", "TRL, padding-free"),
        "ratio_vs_trl_batch_1": ratio("judge", "TRL, batch 1"),
        "ratio_vs_trl_bf16": ratio("judge, bf16", "TRL, bf16", "TRL, bf16, padding-free"),
        "ratio_vs_trl_defaults": ratio("judge", "TRL, its defaults"),
        "ratio_vs_trainer": ratio("judge", "Trainer, padded"),
        "ratio_of_sharing": ratio("judge", "judge, rows apart"),
        "ratio_of_matmul": ratio("judge", "judge, slow matmul"),
        "ratio_vs_trl_slow_matmul": ratio("judge, slow matmul", "TRL, slow matmul"),
        "loss_difference": first_losses("judge", "TRL"),
        "gradient_relative_difference": gradient_distance(gradients["judge"], gradients["TRL"])
        if {"judge", "TRL"} <= gradients.keys()
        else None,
        "peak_memory_ratio": memory("judge", "TRL", "TRL, padding-free"),
    }


def gradient_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the relative distance of all gradients together; infinite if their names differ."""
    if one.keys() != other.keys():
        return math.inf
    distance = math.sqrt(sum(float((one[n] - g).norm()) ** 2 for n, g in other.items()))
    return distance / math.sqrt(sum(float(g.norm()) ** 2 for g in other.values()))
