"""Train the tiny base from random weights: the loop, its optimizers and its held-out measures."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_app.judge_data.generator.errors import ERRORS
from pt_app.pretrain.corpus import NONE, Corpus, Document
from pt_app.pretrain.model import grow, round_to_float16

# What is copied or compared stands in the answers; the prompts' words are mostly random.
PROMPT_WEIGHT = 0.1
CHUNK = 16  # batches that are drawn together, so that a batch holds texts of like length
SNAPSHOT_EVERY = 1000


@dataclass(frozen=True)
class Recipe:
    """Settings of a training of `steps` steps."""

    steps: int = 14_000
    batch: int = 16
    muon_lr: float = 0.008
    adam_lr: float = 1.5e-3
    decay_from: float = 0.4
    new_layers: int = 1
    report_every: int = 500

    @property
    def phase(self) -> int:
        """The first steps, which hold unrelated words only; comparing them takes some 2,000."""
        return min(2400, self.steps * 2 // 5)

    @property
    def grow_at(self) -> int:
        """The step before which layers are added: comparing words has formed by then."""
        return self.steps * 3 // 7


def encode(tokenizer: Any, documents: Sequence[Document]) -> list[tuple[list[int], int]]:
    """Ids of each document and the number of those that belong to its prompt."""
    prompts = tokenizer([d.prompt for d in documents]).input_ids
    answers = tokenizer([d.answer for d in documents]).input_ids
    return [(p + a, len(p)) for p, a in zip(prompts, answers, strict=True)]


def batches(corpus: Corpus, tokenizer: Any, recipe: Recipe, seed: int, first: int) -> Iterator[Any]:
    """Encoded batches of like length from step `first` on, the same whenever they are drawn."""
    for chunk in range(first // CHUNK, -(-recipe.steps // CHUNK)):
        rng = random.Random(f"{seed}-{chunk}")
        first_phase = chunk * CHUNK < recipe.phase
        drawn = [corpus.sample(rng, first_phase) for _ in range(CHUNK * recipe.batch)]
        rows = sorted(encode(tokenizer, drawn), key=lambda row: len(row[0]))
        cut = [rows[i : i + recipe.batch] for i in range(0, len(rows), recipe.batch)]
        rng.shuffle(cut)
        for step, batch in enumerate(cut, chunk * CHUNK):
            if first <= step < recipe.steps:
                yield batch


def loss_of(
    model: Any, rows: Sequence[tuple[list[int], int]], prompt_weight: float
) -> tuple[Any, Any]:
    """Weighted sum of the cross-entropy of all tokens, in nats, and the sum of the weights.

    Rows are padded on the right: under the causal mask no real token sees the padding, so none
    needs an attention mask, and attention takes its fast path.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    weight = torch.tensor(
        [
            [prompt_weight] * (start - 1)
            + [1.0] * (len(row) - start)
            + [0.0] * (longest - len(row))
            for row, start in rows
        ]
    )
    kept = weight > 0
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[kept]
    losses = F.cross_entropy(model.lm_head(hidden), ids[:, 1:][kept], reduction="none")
    return (losses * weight[kept]).sum(), weight.sum()


def optimizers(model: Any, recipe: Recipe) -> list[Any]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    import torch

    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for opt in (muon, adam):
        opt.param_groups[0]["full_lr"] = opt.param_groups[0]["lr"]
    return [muon, adam]


def rate(step: int, recipe: Recipe) -> float:
    """Share of the full learning rate: 100 steps of warm-up, then flat, then linear to 0."""
    warm = min(1.0, (step + 1) / min(100, recipe.steps))
    left = (recipe.steps - step) / (recipe.steps * (1 - recipe.decay_from))
    return min(warm, left, 1.0)


@dataclass(frozen=True)
class Measures:
    """Held-out figures: loss of the answers (nats a token), share of each kind that is named."""

    loss: float
    by_task: dict[str, float]
    detected: dict[str, float]

    def line(self, step: int) -> str:
        """One line for the console."""
        kinds = "  ".join(f"{kind} {share:.2f}" for kind, share in self.detected.items())
        tasks = "  ".join(f"{task} {loss:.3f}" for task, loss in self.by_task.items())
        return f"step {step}: held-out loss {self.loss:.3f}: {tasks} | detected: {kinds}"


class Yardstick:
    """Held-out documents drawn once, and for each kind some with that difference alone."""

    def __init__(self, corpus: Corpus, tokenizer: Any, per_kind: int = 40) -> None:
        rng = random.Random("held out")
        drawn = [corpus.sample(rng) for _ in range(8 * per_kind)]
        self.tasks = {
            task: encode(tokenizer, [d for d in drawn if d.task == task])
            for task in sorted({d.task for d in drawn})
        }
        self.kinds = {
            kind: encode(tokenizer, [corpus.single(rng, kind) for _ in range(per_kind)])
            for kind in (*ERRORS, NONE)
        }
        self.before = len(tokenizer("Kinds:").input_ids)

    def measure(self, model: Any) -> Measures:
        """Loss and detection rates of `model`: is the right kind the likeliest next token?"""
        import torch

        with torch.no_grad():
            sums = {task: loss_of(model, rows, 0.0) for task, rows in self.tasks.items()}
            detected = {kind: self._detected(model, rows) for kind, rows in self.kinds.items()}
        loss = sum(float(total) for total, _ in sums.values())
        loss /= sum(float(weight) for _, weight in sums.values())
        by_task = {task: float(total / weight) for task, (total, weight) in sums.items()}
        return Measures(loss, by_task, detected)

    def _detected(self, model: Any, rows: Sequence[tuple[list[int], int]]) -> float:
        import torch

        at = [start + self.before for _, start in rows]
        longest = max(at)
        ended = list(zip([row for row, _ in rows], at, strict=True))
        ids = torch.tensor([row[:end] + [0] * (longest - end) for row, end in ended])
        hidden = model.model(input_ids=ids).last_hidden_state
        last = hidden[torch.arange(len(rows)), torch.tensor(at) - 1]
        named = model.lm_head(last).argmax(-1).tolist()
        hits = [row[end] == name for (row, end), name in zip(ended, named, strict=True)]
        return float(sum(hits) / len(hits))


def fit(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    yardstick: Yardstick,
    recipe: Recipe,
    seed: int,
    state_file: Path,
) -> Measures:
    """Train to the end and round to float16; a state file from an interrupted run is taken up."""
    import torch
    from tqdm import tqdm

    # Numbers below 1e-38 are set to zero: without it a step takes up to eight times as long.
    torch.set_flush_denormal(True)

    state = torch.load(state_file, weights_only=True) if state_file.exists() else {"step": 0}
    first = int(state["step"])
    if first > recipe.grow_at:
        grow(model, recipe.new_layers, seed)
    steppers = optimizers(model, recipe)
    if first:
        _restore(state, model, steppers)
    model.train()
    bar = tqdm(total=recipe.steps, initial=first, unit="step", mininterval=1.0)
    for step, rows in enumerate(batches(corpus, tokenizer, recipe, seed, first), first):
        if step == recipe.grow_at:
            grow(model, recipe.new_layers, seed)
            steppers = optimizers(model, recipe)
        total, weight = loss_of(model, rows, PROMPT_WEIGHT)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in steppers:
            for group in opt.param_groups:
                group["lr"] = group["full_lr"] * rate(step, recipe)
            opt.step()
            opt.zero_grad()
        bar.update()
        if (step + 1) % recipe.report_every == 0:
            bar.write(yardstick.measure(model).line(step + 1))
        if (step + 1) % SNAPSHOT_EVERY == 0:
            _save_state(state_file, model, steppers, step + 1)
    bar.close()
    round_to_float16(model)
    return yardstick.measure(model)


def _save_state(file: Path, model: Any, steppers: Sequence[Any], step: int) -> None:
    import torch

    aside = file.with_suffix(".partial")
    states = [opt.state_dict() for opt in steppers]
    torch.save({"step": step, "model": model.state_dict(), "optimizers": states}, aside)
    aside.replace(file)


def _restore(state: dict[str, Any], model: Any, steppers: Sequence[Any]) -> None:
    model.load_state_dict(state["model"])
    for opt, saved in zip(steppers, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
