"""Memory that runs out in a step makes its packs smaller, and leaves the step the same."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pt_app.errors import UserError
from pt_app.eval_model.layout import Layout
from pt_app.eval_model.out_of_memory import explained, is_out_of_memory
from pt_app.eval_model.trainer import JudgeTrainer
from tests.conftest import ROOT
from tests.rows import write_rows
from tests.test_kills import losses
from tests.test_recipes import flags
from tests.test_trainer import PAD, assert_same, make_examples, train
from tests.tiny_models import make_model_folder

FOUR = {"per_device_train_batch_size": 4}


def limit_packs(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let memory run out, in the midst of the backward pass, in packs of more tokens than this."""
    own = JudgeTrainer.compute_loss

    def compute(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = own(self, model, inputs, *args, **kwargs)
        if inputs["input_ids"].numel() > tokens:
            loss.register_hook(_run_out)
        return loss

    monkeypatch.setattr(JudgeTrainer, "compute_loss", compute)


def _run_out(_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "layout", [Layout(PAD), Layout(PAD, rows=4, trees=False)], ids=["packs", "rows"]
)
def test_a_step_that_ran_out_of_memory_is_the_same_step_in_smaller_packs(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    layout: Layout,
) -> None:
    examples = make_examples(12)
    whole = train(base, tmp_path, examples, layout=layout, **FOUR)
    limit_packs(monkeypatch, 60)
    caplog.set_level("WARNING", "pt_app")
    assert_same(train(base, tmp_path, examples, layout=layout, **FOUR), whole)
    assert "step 1 ran out of memory" in caplog.text
    assert "the same step" in caplog.text


def test_packs_of_one_example_that_do_not_fit_end_the_run_with_the_remedies(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_packs(monkeypatch, 4)
    with (
        pytest.raises(UserError, match=r"training ran out of memory .*--max_seq_length.*4 bits"),
        explained("training"),
    ):
        train(base, tmp_path, make_examples(12), **FOUR)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.04 GB, other: 640.00 KB)."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
)
def test_an_allocation_that_failed_is_told_from_other_errors(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def squeezed(base: Path, rows: Path, out: Path, mebibytes: int) -> subprocess.CompletedProcess[str]:
    more = ["--tracking=off", "--skip_eval", "--eval_steps=0", "--batch_size=16", "--epochs=5"]
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
    tight = squeezed(base, rows, tmp_path / "tight", 160)
    assert tight.returncode == 0, tight.stdout + tight.stderr
    assert "ran out of memory" in tight.stdout
    one, other = (losses(tmp_path / name) for name in ("free", "tight"))
    assert len(one) == 2
    for (loss, norm), (other_loss, other_norm) in zip(one, other, strict=True):
        assert loss == pytest.approx(other_loss, abs=1e-5)
        assert norm == pytest.approx(other_norm, rel=1e-4)
    none = squeezed(base, rows, tmp_path / "none", 1)
    assert none.returncode == 2, none.stdout + none.stderr
    assert none.stderr.startswith("error: training ran out of memory")
    assert "Traceback" not in none.stderr
