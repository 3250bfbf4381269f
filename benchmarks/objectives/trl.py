"""What people do today: TRL's SFTTrainer on the same rows, and the verdict of the greedy answer."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.train import PLAIN_TRL, labelled
from pt_app.core.orders import swapped
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.settings import Settings
from pt_app.core.verdicts import Verdict
from pt_app.eval_model.evaluation import prediction
from pt_app.evidence.results import JudgeRows
from pt_app.models.adapters import attach_lora, merge
from pt_app.models.bases import load_model
from pt_app.scoring.scorer import Scored, greedy_answer
from pt_app.training.preparation import Prepared


def trained_by_trl(
    prepared: Prepared, settings: Settings, folder: Path
) -> tuple[JudgeRows, list[float]]:
    """Train on the prepared rows, with LoRA, optimizer step, epochs and rate of the settings.

    TRL decides the rest: a linear decay, no warm-up.

    Returns:
        Its verdicts on the test rows, and the losses that TRL logged.
    """
    from trl import SFTConfig, SFTTrainer

    model: Any = attach_lora(
        load_model(prepared.source),
        r=settings.lora_r,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        targets=settings.lora_targets,
    )
    args = SFTConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=settings.epochs,
        # The same step as in batches, since TRL divides by the tokens of all of it: but without
        # padding, and with fewer logits at a time, which a CPU computes several times as fast.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch_size * settings.gradient_accumulation,
        learning_rate=settings.lr,
        seed=settings.seed,
        max_length=None,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        **PLAIN_TRL,
    )
    tokenizer = prepared.encoder.tokenizer
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=labelled(prepared.train),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    stand_in = usual(prepared.data.train)
    return greedy_verdicts(merge(model), prepared.encoder, prepared.test, stand_in), losses


def usual(rows: Sequence[JudgeExample]) -> Verdict:
    """Return the verdict that stands for an answer without one: the labels' median or mode."""
    labels = [row.label.verdict for row in rows if row.label]
    numbers = [label for label in labels if not isinstance(label, str)]
    if numbers:
        return statistics.median_low(numbers)
    return Counter(labels).most_common(1)[0][0]


def greedy_verdicts(
    model: Any, encoder: PromptEncoder, rows: Sequence[JudgeExample], stand_in: Verdict
) -> JudgeRows:
    """Read the verdicts of greedy answers, of pairs in both orders.

    An answer without a verdict is a parse failure, whose verdict is `stand_in`: a guess in place of
    none favours this way.
    """
    model.eval()
    predictions = []
    for row in tqdm(rows, desc="TRL: greedy answers"):
        own = _scored(_greedy(model, encoder, row), stand_in)
        if (two := swapped(row)) is not None:
            other = _scored(_greedy(model, encoder, two), stand_in)
            own = replace(own, orders=(own, other))
        predictions.append(prediction("trl", row, own))
    return JudgeRows("trl", "TRL SFT", predictions)


def _greedy(model: Any, encoder: PromptEncoder, row: JudgeExample) -> Verdict | None:
    (fitted,), _ = encoder.fit([row.model_copy(update={"label": None})])
    longest = max(len(encoder.answer_ids(line)) for line in encoder.scale.lines())
    ids = greedy_answer(model, fitted.prompt, encoder.end_token_id, longest + 1)
    answer = encoder.scale.read(encoder.tokenizer.decode(ids, skip_special_tokens=True))
    return None if answer is None else answer.verdict


def _scored(verdict: Verdict | None, stand_in: Verdict) -> Scored:
    if verdict is None:
        return Scored("parse_failure", stand_in)
    return Scored("ok", verdict, verdict)
