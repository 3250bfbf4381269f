"""Train the tiny base from random weights: the loop, its optimizers and its held-out measures."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_app.judge_data.generator.errors import ERRORS
from pt_app.pretrain.corpus import NONE, Corpus, Document
from pt_app.pretrain.model import grow, round_to_float16

BATCH = 16
MUON_LR, ADAM_LR = 0.008, 1.5e-3
WARM_UP = 100  # steps
DECAY_FROM = 0.4  # of the steps
# What is copied or compared is in the answers; the prompts' words are mostly random.
PROMPT_WEIGHT = 0.1
CHUNK = 16  # batches that are drawn together, so that a batch holds texts of like length
PER_KIND = 40  # documents of each kind of difference that are measured
REPORT_EVERY, SNAPSHOT_EVERY = 500, 1000
Rows = Sequence[tuple[list[int], int]]
"""Token ids of documents, each with the number of those that belong to its prompt."""


@dataclass(frozen=True)
class Schedule:
    """What happens when in a training of so many steps."""

    steps: int = 14_000

    @property
    def phase(self) -> int:
        """The first steps, which hold unrelated words only; comparing them takes some 2,000."""
        return min(2400, self.steps * 2 // 5)

    @property
    def grow_at(self) -> int:
        """The step before which a layer is added: comparing words has formed by then."""
        return self.steps * 3 // 7

    def rate(self, step: int) -> float:
        """Return the share of the full learning rate: a warm-up, then flat, then linear to 0."""
        warm = min(1.0, (step + 1) / min(WARM_UP, self.steps))
        left = (self.steps - step) / (self.steps * (1 - DECAY_FROM))
        return min(warm, left, 1.0)


def encode(tokenizer: Any, documents: Sequence[Document]) -> list[tuple[list[int], int]]:
    """Encode each document, with the number of tokens of its prompt."""
    prompts = tokenizer([d.prompt for d in documents]).input_ids
    answers = tokenizer([d.answer for d in documents]).input_ids
    return [(p + a, len(p)) for p, a in zip(prompts, answers, strict=True)]


def batches(
    corpus: Corpus, tokenizer: Any, schedule: Schedule, seed: int, first: int
) -> Iterator[Rows]:
    """Yield batches of like length from step `first` on, the same whenever they are drawn."""
    for chunk in range(first // CHUNK, -(-schedule.steps // CHUNK)):
        rng = random.Random(f"{seed}-{chunk}")
        first_phase = chunk * CHUNK < schedule.phase
        drawn = [corpus.sample(rng, first_phase) for _ in range(CHUNK * BATCH)]
        rows = sorted(encode(tokenizer, drawn), key=lambda row: len(row[0]))
        cut = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(cut)
        for step, batch in enumerate(cut, chunk * CHUNK):
            if first <= step < schedule.steps:
                yield batch


def loss_of(model: Any, rows: Rows, prompt_weight: float) -> tuple[Any, Any]:
    """Sum the weighted cross-entropy of all tokens, in nats, and the weights.

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


def optimizers(model: Any) -> list[Any]:
    """Make Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    import torch

    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
    for opt in (muon, adam):
        opt.param_groups[0]["full_lr"] = opt.param_groups[0]["lr"]
    return [muon, adam]


@dataclass(frozen=True)
class Measures:
    """Held-out figures: loss of the answers (nats per token), share of each kind that is named."""

    loss: float
    by_task: dict[str, float]
    detected: dict[str, float]

    def line(self, step: int) -> str:
        """Write one line for the console."""
        kinds = "  ".join(f"{kind} {share:.2f}" for kind, share in self.detected.items())
        tasks = "  ".join(f"{task} {loss:.3f}" for task, loss in self.by_task.items())
        return f"step {step}: held-out loss {self.loss:.3f}: {tasks} | detected: {kinds}"


class Yardstick:
    """Held-out documents drawn once, and for each kind some with that difference alone."""

    def __init__(self, corpus: Corpus, tokenizer: Any) -> None:
        rng = random.Random("held out")
        drawn = [corpus.sample(rng) for _ in range(8 * PER_KIND)]
        self.tasks = {
            task: encode(tokenizer, [d for d in drawn if d.task == task])
            for task in sorted({d.task for d in drawn})
        }
        self.kinds = {
            kind: encode(tokenizer, [corpus.single(rng, kind) for _ in range(PER_KIND)])
            for kind in (*ERRORS, NONE)
        }
        self.before = len(tokenizer("Kinds:").input_ids)

    def measure(self, model: Any) -> Measures:
        """Measure loss and detection rates of `model`."""
        import torch

        with torch.no_grad():
            sums = {task: loss_of(model, rows, 0.0) for task, rows in self.tasks.items()}
            detected = {kind: self._detected(model, rows) for kind, rows in self.kinds.items()}
        loss = sum(float(total) for total, _ in sums.values())
        loss /= sum(float(weight) for _, weight in sums.values())
        by_task = {task: float(total / weight) for task, (total, weight) in sums.items()}
        return Measures(loss, by_task, detected)

    def _detected(self, model: Any, rows: Rows) -> float:
        """Return the share of rows whose kind of difference is the likeliest next token."""
        import torch

        at = torch.tensor([start + self.before for _, start in rows])
        longest = int(at.max())
        # Rows are cut or padded behind their own kind, which the causal mask hides.
        ids = torch.tensor([(row + [0] * longest)[: longest + 1] for row, _ in rows])
        every = torch.arange(len(rows))
        hidden = model.model(input_ids=ids[:, :longest]).last_hidden_state[every, at - 1]
        named = model.lm_head(hidden).argmax(-1)
        return float((named == ids[every, at]).double().mean())


def fit(
    model: Any,
    tokenizer: Any,
    corpus: Corpus,
    yardstick: Yardstick,
    schedule: Schedule,
    seed: int,
    state_file: Path,
) -> Measures:
    """Train to the end and round to float16; resume from the state file of an interrupted run."""
    import torch
    from tqdm import tqdm

    # Numbers below 1e-38 are set to zero: without it a step takes up to eight times as long.
    torch.set_flush_denormal(True)

    state: dict[str, Any] = {"step": 0}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
    first = int(state["step"])
    if first > schedule.grow_at:
        grow(model, seed)
    steppers = optimizers(model)
    if first:
        model.load_state_dict(state["model"])
        for opt, saved in zip(steppers, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
    model.train()
    bar = tqdm(total=schedule.steps, initial=first, unit="step", mininterval=1.0)
    for step, rows in enumerate(batches(corpus, tokenizer, schedule, seed, first), first):
        if step == schedule.grow_at:
            grow(model, seed)
            steppers = optimizers(model)
        total, weight = loss_of(model, rows, PROMPT_WEIGHT)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in steppers:
            for group in opt.param_groups:
                group["lr"] = group["full_lr"] * schedule.rate(step)
            opt.step()
            opt.zero_grad()
        bar.update()
        if (step + 1) % REPORT_EVERY == 0:
            bar.write(yardstick.measure(model).line(step + 1))
        if (step + 1) % SNAPSHOT_EVERY == 0:
            _save_state(state_file, model, steppers, step + 1)
    bar.close()
    round_to_float16(model)
    return yardstick.measure(model)


def _save_state(file: Path, model: Any, steppers: Sequence[Any], step: int) -> None:
    import torch

    staged = file.with_suffix(".partial")
    states = [opt.state_dict() for opt in steppers]
    torch.save({"step": step, "model": model.state_dict(), "optimizers": states}, staged)
    staged.replace(file)
