"""One optimizer step: the same whatever its layout, and the same as TRL's."""

import functools
import json
import logging
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    get_cosine_schedule_with_warmup,
)

from pt_app.core.errors import UserError
from pt_app.models.adapters import attach_lora
from pt_app.models.packing import IGNORED, Shapes, StepCollator
from pt_app.models.tree_attention import BLOCKS, tree_mask, use_attention
from pt_app.training.checkpoints import read_state
from pt_app.training.loop import LoopArguments, TrainingLoop
from pt_app.training.loss import AnswerLoss
from pt_app.training.ordering import RowSteps
from pt_app.training.run import adamw, cosine

PAD = 0
PACKS, PLAIN = AnswerLoss(PAD), AnswerLoss(PAD, trees=False)


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


LEARNING_RATE = 1e-2
COMMON: dict[str, Any] = {
    "max_steps": 3,
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "use_cpu": True,
    "seed": 1,
}


def make_loop(
    base: Path,
    folder: Path,
    examples: list[dict[str, Any]],
    *,
    layout: AnswerLoss = PACKS,
    budget: int = 2048,
    attention: str = "sdpa",
    batch: int = 8,
    validate: Any = None,
    callbacks: Any = None,
    **changed: Any,
) -> TrainingLoop:
    """The loop of a judge, with a learning rate that falls linearly, as TRL's by default."""
    model = make_judge(base)
    use_attention(model, attention)
    rows = Dataset.from_list(examples)
    args = LoopArguments(folder, **COMMON | changed)
    order = SeedableRandomSampler(rows, data_seed=args.seed)
    return TrainingLoop(
        model,
        args,
        RowSteps(rows, order, batch, StepCollator(PAD, budget, layout.shapes)),
        replace(layout),  # memory that runs out changes it
        functools.partial(adamw, "adamw_torch", LEARNING_RATE),
        lambda step, steps: 1 - step / steps,
        validate,
        callbacks or [],
    )


def train(base: Path, folder: Path, examples: list[dict[str, Any]], **changed: Any) -> Any:
    """Losses and gradients of the steps of a training."""
    gradients = Gradients()
    loop = make_loop(base, folder, examples, callbacks=[gradients], **changed)
    given = layout_of(loop).trees
    loop.train()
    assert layout_of(loop).trees == given, "the first step's check found a difference"
    return losses_of(loop), gradients.steps


def layout_of(loop: TrainingLoop) -> AnswerLoss:
    assert isinstance(loop.objective, AnswerLoss)
    return loop.objective


def losses_of(loop: TrainingLoop) -> list[float]:
    return [entry["loss"] for entry in loop.state.log_history if "loss" in entry]


def assert_same(one: Any, other: Any, loss: float = 1e-5, gradient: float = 1e-4) -> None:
    assert len(one[0]) == len(other[0]) == 3
    assert one[0] == pytest.approx(other[0], abs=loss)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            scale = theirs[name].norm()
            assert scale > 0, name
            assert (mine[name] - theirs[name]).norm() <= gradient * scale, name


@pytest.mark.parametrize("attention", ["sdpa", BLOCKS])
@pytest.mark.parametrize("budget", [1, 60, 2048])
def test_a_step_in_packs_is_the_step_row_by_row(
    base: Path, tmp_path: Path, budget: int, attention: str
) -> None:
    examples = make_examples(12)
    packed = train(base, tmp_path, examples, budget=budget, attention=attention, batch=4)
    assert_same(packed, train(base, tmp_path, examples, layout=PLAIN, batch=4))


def test_micro_batches_of_one_row_and_of_four_are_one_step(base: Path, tmp_path: Path) -> None:
    examples = make_examples(12)
    together = train(base, tmp_path, examples, layout=AnswerLoss(PAD, rows=4, trees=False), batch=4)
    assert_same(train(base, tmp_path, examples, layout=PLAIN, batch=4), together)


@pytest.mark.parametrize("trees", [True, False])
def test_activation_checkpointing_and_fixed_lengths_change_no_step(
    base: Path, tmp_path: Path, trees: bool
) -> None:
    examples = make_examples(12)
    plain = train(base, tmp_path, examples, layout=PLAIN, batch=4)
    changed = train(
        base,
        tmp_path,
        examples,
        batch=4,
        layout=AnswerLoss(PAD, rows=2, shapes=Shapes.up_to(160), trees=trees),
        attention=BLOCKS if trees else "sdpa",
        activation_checkpointing=True,
    )
    assert_same(plain, changed)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_step_equals_that_of_trl_on_the_same_ids_and_labels(
    base: Path, tmp_path: Path, max_grad_norm: float
) -> None:
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
    trainer = SFTTrainer(
        model=make_judge(base),
        args=SFTConfig(
            output_dir=str(tmp_path),
            **COMMON | {"max_grad_norm": max_grad_norm},
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            bf16=False,
            max_length=None,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_nan_inf_filter=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[gradients],
    )
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    ours = train(base, tmp_path, examples, batch=4, max_grad_norm=max_grad_norm)
    assert_same(ours, (losses, gradients.steps))
    norms = [sum(g.square().sum() for g in step.values()).sqrt() for step in gradients.steps]
    assert all(norm <= 0.5 + 1e-4 for norm in norms) == bool(max_grad_norm), "none was clipped"


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    base: Path, tmp_path: Path
) -> None:
    class Poison(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(
                    torch.nan
                )

    loop = make_loop(base, tmp_path, make_examples(24), callbacks=[Poison()], save_steps=2)
    with pytest.raises(
        UserError, match=r"nan in step 3; the last good checkpoint is .*checkpoint-2"
    ):
        loop.train()
    assert (tmp_path / "checkpoint-2" / "complete.json").exists()
    assert not (tmp_path / "checkpoint-3").exists()


def test_numbers_that_json_does_not_have_are_left_out_of_the_history(
    base: Path, tmp_path: Path
) -> None:
    loop = make_loop(base, tmp_path, make_examples(4))
    loop.log({"loss": 1.0, "grad_norm": math.inf})  # float16's loss scale skips this step
    assert loop.state.log_history == [{"loss": 1.0, "epoch": loop.state.epoch, "step": 0}]
    json.dumps(loop.state.log_history, allow_nan=False)


def test_weights_of_the_best_validation_are_put_back(base: Path, tmp_path: Path) -> None:
    values = iter([0.1, 0.9, 0.3, 0.2])
    seen = []

    def validate(model: Any) -> dict[str, float]:
        weights = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
        seen.append(weights)
        return {"kappa_quadratic_strict": next(values)}

    loop = make_loop(
        base,
        tmp_path,
        make_examples(24),
        validate=validate,
        max_steps=7,
        eval_steps=2,
        metric_for_best_model="eval_kappa_quadratic_strict",
    )
    loop.train()
    assert len(seen) == 4, "after steps 2, 4, 6 and at the end"
    loop.load_best()
    now = {n: p for n, p in loop.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(now[name], seen[1][name]) for name in now)
    assert not all(torch.equal(seen[3][name], seen[1][name]) for name in now)


def test_validation_that_is_nan_is_not_the_best(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([math.nan, 0.1, 0.2])
    loop = make_loop(
        base,
        tmp_path,
        make_examples(24),
        validate=lambda _: {"kappa": next(values)},
        eval_steps=1,
        metric_for_best_model="eval_kappa",
    )
    loop.train()
    assert (loop.state.best_global_step, loop.state.best_metric) == (3, 0.2)
    assert "step 1: eval_kappa undefined on the validation rows" in caplog.text


def test_pack_that_disagrees_with_its_rows_is_not_used(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    examples = make_examples(12)
    plain = train(base, tmp_path, examples, layout=PLAIN, batch=4)
    # A mask that lets siblings see each other, as a model that ignores its mask would.
    causal = lambda last, known=0: tree_mask(torch.full_like(last, len(last)), known)  # noqa: E731
    monkeypatch.setattr("pt_app.models.tree_attention.tree_mask", causal)
    gradients = Gradients()
    loop = make_loop(base, tmp_path, examples, batch=4, callbacks=[gradients])
    loop.train()
    assert not layout_of(loop).trees
    assert "this model is trained on plain rows" in caplog.text
    assert_same((losses_of(loop), gradients.steps), plain)


def test_signal_in_a_validation_that_is_not_the_best_still_leaves_a_checkpoint(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pt_app.training.validation import Validation
    from tests.test_recipes import flags, main

    seen: list[int] = []

    def validate(*_: Any) -> dict[str, float]:
        seen.append(1)
        if len(seen) == 3:  # the first is that of the base
            os.kill(os.getpid(), signal.SIGTERM)
        return {"kappa_quadratic_strict": 1.0 / len(seen), "parse_failures": 0.0, "loss": 1.0}

    monkeypatch.setattr(Validation, "__call__", validate)
    more = ["--save_steps=0", "--eval_steps=1", "--tracking=off", "--skip_eval"]
    with pytest.raises(KeyboardInterrupt):
        main("mps", flags(base, rows, tmp_path, *more))
    (run,) = tmp_path.iterdir()
    assert (run / "checkpoint-2" / "complete.json").exists(), "it took a further step"


def test_random_state_of_an_apple_gpu_is_that_of_the_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It decides what dropout drops. The device has that name while nothing is computed."""
    kept, restored = torch.tensor([3, 255], dtype=torch.uint8), list[torch.Tensor]()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: kept)
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)

    class Renamed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            monkeypatch.setattr(first.accelerator.state, "device", torch.device("mps"))

    one_step = {"max_steps": 1, "save_steps": 1}
    first = make_loop(base, tmp_path, make_examples(8), callbacks=[Renamed()], **one_step)
    first.train()
    again = make_loop(base, tmp_path, make_examples(8), **one_step)
    monkeypatch.setattr(again.accelerator.state, "device", torch.device("mps"))
    again.train(tmp_path / "checkpoint-1")
    assert [state.tolist() for state in restored] == [[3, 255]]


def test_best_weights_that_are_lost_leave_the_last(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(base, tmp_path, make_examples(4))
    loop.state.best_global_step, loop.state.global_step = 2, 4
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    loop.load_best()
    assert "the best weights, of step 2, are lost" in caplog.text


def make_scaled_loop(base: Path, folder: Path, scale: float | None) -> TrainingLoop:
    """A loop with two optimizers; with `scale` that of a GPU without bfloat16, where a CPU can."""
    loop = make_loop(base, folder, make_examples(24))

    def optimizers(model: Any) -> list[torch.optim.Optimizer]:
        trained = [p for p in model.parameters() if p.requires_grad]
        halves = trained[::2], trained[1::2]
        return [torch.optim.AdamW(half, lr=LEARNING_RATE, fused=True) for half in halves]

    loop.make_optimizers = optimizers
    if scale is not None:
        loop.accelerator.native_amp = True
        loop.accelerator.state._mixed_precision = "fp16"
        loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return loop


def weights_of(loop: TrainingLoop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in loop.model.parameters() if p.requires_grad]


def test_loss_scale_of_float16_changes_no_step_of_two_optimizers(
    base: Path, tmp_path: Path
) -> None:
    """accelerate divides the gradients of the second one by the scale once more."""
    plain, scaled = (make_scaled_loop(base, tmp_path, scale) for scale in (None, 2.0**16))
    plain.train()
    scaled.train()
    assert all(map(torch.equal, weights_of(scaled), weights_of(plain)))
    assert scaled.state.updates == plain.state.updates == 3


def test_overflow_in_float16_skips_a_step_of_both_optimizers(base: Path, tmp_path: Path) -> None:
    loop = make_scaled_loop(base, tmp_path, 2.0**127)
    loop.state.max_steps = 1
    before = weights_of(loop)
    loop.train()
    assert all(map(torch.equal, weights_of(loop), before))
    assert loop.state.updates == 0
    assert loop.accelerator.scaler.get_scale() == 2.0**126, "halved once, not by each of them"


@pytest.mark.parametrize("warmup", [0, 4, 0.03])
def test_learning_rate_is_the_cosine_of_transformers(warmup: float) -> None:
    steps = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = math.ceil(warmup * steps) if warmup < 1 else int(warmup)
    theirs = get_cosine_schedule_with_warmup(optimizer, rise, steps)
    for step in range(steps):
        assert cosine(warmup, step, steps) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


def test_training_of_one_step_learns() -> None:
    assert cosine(0.03, 0, 1) == 1.0


def test_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "judge_state.json").write_text("{}")
    with pytest.raises(UserError, match="was made by an earlier version of pt_app: start without"):
        read_state(tmp_path)
