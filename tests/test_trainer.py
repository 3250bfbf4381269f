"""One optimizer step: the same whatever its layout, and the same as TRL's."""

import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from pt_app.core.errors import UserError
from pt_app.models.adapters import attach_lora
from pt_app.models.packing import IGNORED, Shapes, StepCollator
from pt_app.models.tree_attention import BLOCKS, tree_mask, use_attention
from pt_app.training.layout import Layout
from pt_app.training.trainer import JudgeTrainer

PAD = 0


def make_examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random ids of uneven lengths, a rubric of 8 in common, supervised ends of 1 to 9 tokens."""
    rng = random.Random(seed)
    rubric = [rng.randrange(5, 300) for _ in range(8)]
    examples = []
    for _ in range(count):
        n = rng.randint(12, 40)
        ids = rubric + [rng.randrange(5, 300) for _ in range(n - 8)]
        examples.append({"input_ids": ids, "prompt_length": n - rng.randint(1, 9)})
    return examples


def make_judge(base: Path) -> Any:
    """The base with a LoRA whose B is not zero, so that every gradient says something."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = attach_lora(model, r=4, alpha=8, dropout=0.0, targets="q_proj,v_proj,down_proj")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients of each step, before the optimizer uses them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def arguments(folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "learning_rate": 1e-2,
        "max_steps": 3,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": 1,
        "logging_nan_inf_filter": False,
    } | changed


def train(base: Path, folder: Path, examples: list[dict[str, Any]], **changed: Any) -> Any:
    """Losses and gradients of the steps of a JudgeTrainer run."""
    gradients = Gradients()
    layout, budget = changed.pop("layout", Layout(PAD)), changed.pop("budget", 2048)
    model = make_judge(base)
    use_attention(model, changed.pop("attention", "sdpa"))
    trainer = JudgeTrainer(
        model=model,
        args=TrainingArguments(**arguments(folder, **changed)),
        train_dataset=Dataset.from_list(examples),
        data_collator=StepCollator(PAD, budget, layout.shapes),
        layout=layout,
        callbacks=[gradients],
    )
    trainer.train()
    assert trainer.layout.trees == layout.trees, "the first step's check found a difference"
    return [e["loss"] for e in trainer.state.log_history if "loss" in e], gradients.steps


def assert_same(one: Any, other: Any, loss: float = 1e-5, gradient: float = 1e-4) -> None:
    assert len(one[0]) == len(other[0]) == 3
    assert one[0] == pytest.approx(other[0], abs=loss)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            scale = theirs[name].norm()
            assert scale > 0, name
            assert (mine[name] - theirs[name]).norm() <= gradient * scale, name


PLAIN = Layout(PAD, trees=False)


@pytest.mark.parametrize("attention", ["sdpa", BLOCKS])
@pytest.mark.parametrize("budget", [1, 60, 2048])
def test_a_step_in_packs_is_the_step_row_by_row(
    base: Path, tmp_path: Path, budget: int, attention: str
) -> None:
    examples = make_examples(12)
    four = {"per_device_train_batch_size": 4}
    packed = train(base, tmp_path, examples, budget=budget, attention=attention, **four)
    assert_same(packed, train(base, tmp_path, examples, layout=PLAIN, **four))


def test_micro_batches_of_one_row_and_of_four_are_one_step(base: Path, tmp_path: Path) -> None:
    examples = make_examples(12)
    four = {"per_device_train_batch_size": 4}
    together = train(base, tmp_path, examples, layout=Layout(PAD, rows=4, trees=False), **four)
    assert_same(train(base, tmp_path, examples, layout=PLAIN, **four), together)


@pytest.mark.parametrize("trees", [True, False])
def test_activation_checkpointing_and_fixed_lengths_change_no_step(
    base: Path, tmp_path: Path, trees: bool
) -> None:
    examples = make_examples(12)
    plain = train(base, tmp_path, examples, layout=PLAIN, per_device_train_batch_size=4)
    changed = train(
        base,
        tmp_path,
        examples,
        per_device_train_batch_size=4,
        layout=Layout(PAD, rows=2, shapes=Shapes.up_to(160), trees=trees),
        attention=BLOCKS if trees else "sdpa",
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
    )
    assert_same(plain, changed)


def test_step_equals_that_of_trl_on_the_same_ids_and_labels(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    examples = make_examples(12)
    rows = [
        {
            "input_ids": e["input_ids"],
            "labels": [IGNORED] * e["prompt_length"] + e["input_ids"][e["prompt_length"] :],
        }
        for e in examples
    ]
    gradients = Gradients()
    settings = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, bf16=False
    )
    del settings["remove_unused_columns"]
    trainer = SFTTrainer(
        model=make_judge(base),
        args=SFTConfig(**settings, max_length=None, activation_checkpointing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[gradients],
    )
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    ours = train(
        base,
        tmp_path,
        examples,
        per_device_train_batch_size=4,
    )
    assert_same(ours, (losses, gradients.steps))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    base: Path, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(
                    torch.nan
                )

    trainer = JudgeTrainer(
        model=make_judge(base),
        args=TrainingArguments(**arguments(tmp_path, save_strategy="steps", save_steps=2)),
        train_dataset=Dataset.from_list(make_examples(24)),
        data_collator=StepCollator(PAD, 2048),
        layout=Layout(PAD),
        callbacks=[Poison()],
    )
    with pytest.raises(
        UserError, match=r"nan in step 3; the last good checkpoint is .*checkpoint-2"
    ):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "complete.json").exists()
    assert not (tmp_path / "checkpoint-3").exists()


def test_weights_of_the_best_validation_are_put_back(base: Path, tmp_path: Path) -> None:
    values = iter([0.1, 0.9, 0.3, 0.2])
    seen = []

    def validate(model: Any, _: Layout) -> dict[str, float]:
        weights = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
        seen.append(weights)
        return {"kappa_quadratic_strict": next(values)}

    trainer = JudgeTrainer(
        model=make_judge(base),
        args=TrainingArguments(
            **arguments(
                tmp_path,
                max_steps=7,
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="best",
                metric_for_best_model="eval_kappa_quadratic_strict",
                greater_is_better=True,
                save_total_limit=2,
            )
        ),
        train_dataset=Dataset.from_list(make_examples(24)),
        eval_dataset=Dataset.from_list(make_examples(2)),
        data_collator=StepCollator(PAD, 2048),
        layout=Layout(PAD),
        validate=validate,
    )
    trainer.train()
    assert len(seen) == 4, "after steps 2, 4, 6 and at the end"
    trainer.load_best()
    now = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert not all(torch.equal(seen[3][name], seen[1][name]) for name in now)


def test_pack_that_disagrees_with_its_rows_is_not_used(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    examples = make_examples(12)
    plain = train(base, tmp_path, examples, layout=PLAIN, per_device_train_batch_size=4)
    # A mask that lets siblings see each other, as a model that ignores its mask would.
    causal = lambda last, known=0: tree_mask(torch.full_like(last, len(last)), known)  # noqa: E731
    monkeypatch.setattr("pt_app.models.tree_attention.tree_mask", causal)
    gradients = Gradients()
    trainer = JudgeTrainer(
        model=make_judge(base),
        args=TrainingArguments(**arguments(tmp_path, per_device_train_batch_size=4)),
        train_dataset=Dataset.from_list(examples),
        data_collator=StepCollator(PAD, 2048),
        layout=Layout(PAD),
        callbacks=[gradients],
    )
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert not trainer.layout.trees
    assert "this model is trained on plain rows" in caplog.text
    assert_same((losses, gradients.steps), plain)


def test_signal_in_a_validation_that_is_not_the_best_still_leaves_a_checkpoint(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pt_app.training.validation import Validation
    from tests.test_recipes import flags, main

    seen: list[int] = []

    def validate(*_: Any) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"kappa_quadratic_strict": 1.0 / len(seen), "parse_failures": 0.0, "loss": 1.0}

    monkeypatch.setattr(Validation, "__call__", validate)
    more = ["--save_steps=0", "--eval_steps=1", "--tracking=off", "--skip_eval"]
    with pytest.raises(KeyboardInterrupt):
        main("mps", flags(base, rows, tmp_path, *more))
    (run,) = tmp_path.iterdir()
    assert (run / "checkpoint-3" / "complete.json").exists(), "the step in which it was heeded"


def test_best_weights_that_are_lost_leave_the_last(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = JudgeTrainer(
        model=make_judge(base),
        args=TrainingArguments(**arguments(tmp_path)),
        train_dataset=Dataset.from_list(make_examples(4)),
        data_collator=StepCollator(PAD, 2048),
        layout=Layout(PAD),
    )
    trainer.state.best_global_step, trainer.state.global_step = 2, 4
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    trainer.load_best()
    assert "the best weights, of step 2, are lost" in caplog.text
