"""Memory that runs out in a step makes its packs smaller, and leaves the step the same."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.models.memory import is_out_of_memory, shortage_explained
from pt_app.models.packing import StepCollator
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.loop import TrainingLoop
from pt_app.training.loss import AnswerLoss
from pt_app.training.validation import Validation
from tests.conftest import ROOT, slow_case
from tests.rows import write_rows
from tests.test_kills import losses
from tests.test_recipes import flags, main
from tests.test_trainer import PAD, assert_same, make_examples, train
from tests.tiny_models import make_model_folder


def limit_packs(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let memory run out, in the midst of the backward pass, in packs of more tokens than this."""
    own = TrainingLoop.compute_loss

    def compute(self: Any, batch: Any, count: Any) -> Any:
        loss = own(self, batch, count)
        if batch["input_ids"].numel() > tokens:
            loss.register_hook(_run_out)
        return loss

    monkeypatch.setattr(TrainingLoop, "compute_loss", compute)


def _run_out(_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "layout", [AnswerLoss(PAD), AnswerLoss(PAD, rows=4, trees=False)], ids=["packs", "rows"]
)
def test_a_step_that_ran_out_of_memory_is_the_same_step_in_smaller_packs(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    layout: AnswerLoss,
) -> None:
    examples = make_examples(12)
    whole = train(base, tmp_path, examples, layout=layout, batch=4)
    limit_packs(monkeypatch, 60)
    caplog.set_level("WARNING", "pt_app")
    assert_same(train(base, tmp_path, examples, layout=layout, batch=4), whole)
    assert "step 1 ran out of memory" in caplog.text
    assert "the same step" in caplog.text


def test_packs_of_one_example_that_do_not_fit_end_the_run_with_the_remedies(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_packs(monkeypatch, 4)
    with (
        pytest.raises(UserError, match=r"training ran out of memory .*--max_seq_length.*4 bits"),
        shortage_explained("training"),
    ):
        train(base, tmp_path, make_examples(12), batch=4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.04 GB, other: 640.00 KB)."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`"),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
)
def test_an_allocation_that_failed_is_told_from_other_errors(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("fits", [True, slow_case(False)])
def test_validation_that_runs_out_of_memory_never_ends_a_training(
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fits: bool,
) -> None:
    own = JudgeScorer.score

    def score(self: JudgeScorer, *args: Any, **kwargs: Any) -> Any:
        if self.batch_tokens > 1000 or not fits:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.04 GB)")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(JudgeScorer, "score", score)
    more = ["--tracking=off", "--skip_eval", "--eval_steps=3", "--save_steps=0"]
    main("mps", flags(base, rows, tmp_path, *more))
    said = capsys.readouterr().out
    assert "batches of 1024 tokens are tried" in said
    assert ("this validation ran out of memory and is skipped" in said) is not fits
    assert ("eval_kappa" in said) is fits
    assert list(tmp_path.glob("*_final"))


def test_validation_keeps_its_batches_whatever_a_step_was_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def loss(self: AnswerLoss, model: Any, batch: Any) -> torch.Tensor:
        sizes.append(batch["input_ids"].numel())
        return torch.zeros(())

    monkeypatch.setattr(AnswerLoss, "loss", loss)
    model: Any = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    examples, collate = make_examples(12), StepCollator(PAD, 60)
    # A step ran out of memory with more than 1000 tokens, a validation with more than 60.
    objective = AnswerLoss(PAD, budget=1000, unchecked=False)
    validation = Validation([], examples, cast(Any, None), collate, objective, cast(Any, None))
    assert validation._loss(model, examples, collate)[1] > 0
    assert max(sizes) <= 60


def test_evaluation_that_runs_out_of_memory_leaves_the_adapter_and_says_how_to_go_on(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("pt_app.eval_model.pipeline.evaluate", evaluate)
    argv = flags(base, rows, tmp_path, "--tracking=off", "--eval_steps=0")
    with pytest.raises(UserError, match=r"the evaluation on the CPU ran out .* is whole, .*_final"):
        main("mps", argv)
    monkeypatch.undo()
    main("mps", [*argv, "--resume"])
    assert list(tmp_path.glob("*_final/evaluation/results.json"))


def test_memory_that_runs_out_in_the_saving_is_not_put_down_to_the_training(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("pt_app.models.adapters.save_adapter", save)
    with pytest.raises(MemoryError):
        main("mps", flags(base, rows, tmp_path, "--tracking=off", "--skip_eval", "--eval_steps=0"))


def squeezed(base: Path, rows: Path, out: Path, mebibytes: int) -> subprocess.CompletedProcess[str]:
    more = ["--tracking=off", "--skip_eval", "--eval_steps=0", "--batch_size=32", "--epochs=5"]
    argv = flags(base, rows, out, *more, "--gradient_accumulation=1", "--save_steps=0")
    return subprocess.run(
        [sys.executable, "-m", "tests.squeezed_recipe", "mps", str(mebibytes), *argv],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_run_under_an_address_space_limit_takes_the_steps_of_one_without(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    base = make_model_folder(tmp_path / "base", **wide)
    rows = write_rows(tmp_path / "rows", train=64)
    free = squeezed(base, rows, tmp_path / "free", 100_000)
    assert free.returncode == 0, free.stderr
    tight = squeezed(base, rows, tmp_path / "tight", 220)
    assert tight.returncode == 0, tight.stdout + tight.stderr
    assert "ran out of memory" in tight.stdout
    one, other = (losses(tmp_path / name) for name in ("free", "tight"))
    assert len(one) == 1, "the mean of ten steps; Adam makes rounding grow from there"
    for (loss, norm), (other_loss, other_norm) in zip(one, other, strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        assert norm == pytest.approx(other_norm, rel=1e-4)
