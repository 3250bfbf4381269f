"""Train the tiny base from random weights: its steps, loss, optimizers and held-out measures."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedTokenizerBase

from pt_app.judge_data.generator.errors import ERRORS
from pt_app.models.packing import Batch, Step
from pt_app.tiny_base.corpus import NONE, Corpus, Document
from pt_app.tiny_base.model import grow, round_to_float16
from pt_app.training.checkpoints import newest_complete, step_of
from pt_app.training.loop import LoopArguments, Model, Objective, TrainingLoop
from pt_app.training.optimizers import MUON, muon_and_adamw, trapezoid
from pt_app.training.run import Progress, train

# What is copied or compared stands in the answers; the prompts' words are mostly random.
PROMPT_WEIGHT = 0.1
BATCH = 16  # documents per step
CHUNK = 16  # batches that are drawn together, so that a batch holds texts of like length
MUON_LR, ADAM_LR = 0.008, 1.5e-3
DECAY_FROM = 0.4  # of all steps
PER_KIND = 40  # held-out documents of each kind of difference
REPORT_EVERY = 500
SNAPSHOT_EVERY = 1000

# The ids of a document, and how many of them belong to its prompt.
Row = tuple[list[int], int]


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[Row]:
    """Return the ids of each document, and the length of its prompt."""
    prompts = tokenizer([d.prompt for d in documents]).input_ids
    answers = tokenizer([d.answer for d in documents]).input_ids
    return [(p + a, len(p)) for p, a in zip(prompts, answers, strict=True)]


def padded(rows: Sequence[Row], prompt_weight: float) -> Batch:
    """Return `input_ids` [b, t], padded on the right, and the `weight` [b, t - 1] of each loss.

    Under the causal mask no real token sees the padding, so that none needs an attention mask, and
    attention takes its fast path.
    """
    longest = max(len(ids) for ids, _ in rows)
    weights = [
        [prompt_weight] * (start - 1) + [1.0] * (len(ids) - start) + [0.0] * (longest - len(ids))
        for ids, start in rows
    ]
    ids = [row + [0] * (longest - len(row)) for row, _ in rows]
    return {"input_ids": torch.tensor(ids), "weight": torch.tensor(weights)}


@dataclass(frozen=True)
class DocumentSteps:
    """Steps of documents of like length, the same whenever they are drawn."""

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    total: int
    seed: int

    def __len__(self) -> int:
        return self.total

    def epoch(self, number: int, done: int) -> Iterator[Step]:
        """Yield the steps from step `done` on; there is one epoch."""
        # The first steps hold unrelated words only; comparing them takes some 2,000.
        first_phase = min(2400, self.total * 2 // 5)
        for chunk in range(done // CHUNK, -(-self.total // CHUNK)):
            rng = random.Random(f"{self.seed}-{chunk}")
            early = chunk * CHUNK < first_phase
            drawn = [self.corpus.sample(rng, early) for _ in range(CHUNK * BATCH)]
            rows = sorted(encode(self.tokenizer, drawn), key=lambda row: len(row[0]))
            batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
            rng.shuffle(batches)
            for step, chosen in enumerate(batches, chunk * CHUNK):
                if done <= step < self.total:
                    batch = padded(chosen, PROMPT_WEIGHT)
                    yield {"packs": [batch], "count": batch["weight"].sum()}


class DocumentLoss(Objective):
    """The cross-entropy of all tokens, in nats; those of prompts count little."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Return the weighted sum of the loss of a batch."""
        ids, weight = batch["input_ids"], batch["weight"]
        weighted = weight > 0
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[weighted]
        losses = F.cross_entropy(model.lm_head(hidden), ids[:, 1:][weighted], reduction="none")
        return (losses * weight[weighted]).sum()


def optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Make the optimizers; an AdamW that is not fused keeps the weights of earlier versions."""
    return muon_and_adamw(model, MUON_LR, ADAM_LR, fused=False)


def rate(total: int, step: int, _: int) -> float:
    """Return the fraction of the learning rate over all `total` steps, two models' together."""
    return trapezoid(100, DECAY_FROM, step, total)


class Yardstick:
    """Held-out documents drawn once, and for each kind some with that difference alone."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
        rng = random.Random("held out")
        drawn = [corpus.sample(rng) for _ in range(8 * PER_KIND)]
        self.tasks = {
            task: padded(encode(tokenizer, [d for d in drawn if d.task == task]), 0.0)
            for task in sorted({d.task for d in drawn})
        }
        self.kinds = {
            kind: encode(tokenizer, [corpus.single(rng, kind) for _ in range(PER_KIND)])
            for kind in (*ERRORS, NONE)
        }
        self.before = len(tokenizer("Kinds:").input_ids)

    def measure(self, model: Model) -> dict[str, float]:
        """Return held-out figures by name.

        Returns:
            The loss of the answers in nats per token, of all ("loss") and of each task, and for
            each kind how often it is the most probable next token where it should be.
        """
        objective = DocumentLoss()
        with torch.no_grad():
            losses = {task: float(objective.loss(model, b)) for task, b in self.tasks.items()}
            detected = {kind: self._detected(model, rows) for kind, rows in self.kinds.items()}
        counts = {task: float(batch["weight"].sum()) for task, batch in self.tasks.items()}
        by_task = {task: loss / counts[task] for task, loss in losses.items()}
        return {"loss": sum(losses.values()) / sum(counts.values()), **by_task, **detected}

    def _detected(self, model: Model, rows: Iterable[Row]) -> float:
        prefixes = [(ids, start + self.before) for ids, start in rows]
        longest = max(end for _, end in prefixes)
        ids = torch.tensor([row[:end] + [0] * (longest - end) for row, end in prefixes])
        hidden = model.model(input_ids=ids).last_hidden_state
        ends = torch.tensor([end for _, end in prefixes])
        named = model.lm_head(hidden[torch.arange(len(ends)), ends - 1]).argmax(-1)
        right = torch.tensor([row[end] for row, end in prefixes])
        return float((named == right).double().mean())


def fit(model: Model, steps: DocumentSteps, yardstick: Yardstick, run: Path) -> dict[str, float]:
    """Train to the end, from the newest checkpoint in `run` if there is one; round to float16."""
    # Numbers below 1e-38 are set to zero: without it a step takes up to eight times as long.
    torch.set_flush_denormal(True)
    # The same bytes whatever this process trained before: a recipe leaves oneDNN's matmuls on.
    torch.set_float32_matmul_precision("highest")
    checkpoint, _ = newest_complete(run)
    reached = step_of(checkpoint) if checkpoint else 0
    grow_at = steps.total * 3 // 7  # comparing words has formed by then
    for first, last in pairwise((0, grow_at, steps.total)):
        if last == steps.total:
            grow(model, steps.seed)
        elif reached > last:
            continue
        args = LoopArguments(
            run,
            first_step=first,
            max_steps=last,
            optim=MUON,
            seed=steps.seed,
            logging_steps=REPORT_EVERY,
            save_steps=SNAPSHOT_EVERY,
            eval_steps=REPORT_EVERY,
            use_cpu=True,
            again="the same command continues",
        )
        loop = TrainingLoop(
            model,
            args,
            steps,
            DocumentLoss(),
            optimizers,
            partial(rate, steps.total),
            yardstick.measure,
            [Progress()],
        )
        resumed = checkpoint if first < reached <= last else None
        train(loop, resumed)
    round_to_float16(model)
    return yardstick.measure(model)
