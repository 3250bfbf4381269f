"""Whether a judge in training learns: prior, validation, the warning, and early stopping."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample, Label
from pt_app.core.settings import presets, resolve
from pt_app.core.verdicts import Scale
from pt_app.evidence.prior import Prior, entropy, surprise
from pt_app.evidence.summary import strict_agreement
from pt_app.models.packing import StepCollator
from pt_app.scoring.scorer import JudgeScorer
from pt_app.training.learning import Learning
from pt_app.training.loop import LoopState
from pt_app.training.loss import AnswerLoss
from pt_app.training.run import Progress, share_of
from pt_app.training.validation import Validation
from tests.test_trainer import make_examples, make_loop
from tests.tiny_models import make_model, make_tokenizer

SCALE = Scale.from_name("1-5")
BINNED = Scale.from_name("0-100").with_grid("0-9")


def rows_of(labels: Sequence[Any], groups: int = 100) -> list[JudgeExample]:
    return [
        JudgeExample(
            source=f"the house {i}",
            candidate=f"a casa {i}",
            label=Label(verdict=label),
            group=str(i % groups),
        )
        for i, label in enumerate(labels)
    ]


def test_prior_counts_each_line_half_a_time_more_than_it_occurs() -> None:
    prior = Prior.of([1, 1, 1, 5], SCALE)
    assert prior.surprise(1) == pytest.approx(-math.log(3.5 / 6.5))
    assert prior.surprise(3) == pytest.approx(-math.log(0.5 / 6.5))
    shares = [3.5 / 6.5, *[0.5 / 6.5] * 3, 1.5 / 6.5]
    assert prior.entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    # On a grid the labels of a bin are one verdict.
    binned = Prior.of([70, 74, 79], BINNED)
    assert binned.surprise(72) == pytest.approx(-math.log(3.5 / 8))


def test_probabilities_of_lines_come_back_from_those_of_values() -> None:
    lines = tuple(i / 45 for i in range(10))
    assert BINNED.gathered(BINNED.spread(lines)) == pytest.approx(lines)
    assert surprise(lines, 100, BINNED) == pytest.approx(-math.log(9 / 45))
    assert entropy([0.5, 0.5, 0.0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("scale", [SCALE, BINNED])
def test_validation_measures_agreement_and_what_is_known_beyond_the_prior(
    tmp_path: Path, scale: Scale
) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(tmp_path)
    model = make_model(tokenizer)
    labels = [scale.values[i * 7 % len(scale.values)] for i in range(24)]
    rows = rows_of(labels, groups=12)
    encoder = PromptEncoder(tokenizer, Template.load("translation"), scale, 256)
    collate, prior = StepCollator(0, 1024), Prior.of(labels, scale)
    numbers = Validation(rows, (), encoder, collate, AnswerLoss(0), {"": prior})(model)
    scored = JudgeScorer(model, encoder, progress=False).score(rows)
    chances = [scale.gathered(own.probabilities) for own in scored]
    places = [scale.lines().index(scale.line(label)) for label in labels]
    surprises = [-math.log(own[i]) for own, i in zip(chances, places, strict=True)]
    assert numbers["log_loss"] == pytest.approx(sum(surprises) / 24)
    prior_loss = sum(map(prior.surprise, labels)) / 24
    assert numbers["gain"] == pytest.approx(prior_loss - numbers["log_loss"])
    assert numbers["gain_low"] < numbers["gain"] < numbers["gain_high"]
    assert numbers["entropy"] == pytest.approx(sum(map(entropy, chances)) / 24)
    verdicts = [own.verdict for own in scored]
    agreement = strict_agreement(labels, verdicts, scale)["kappa_quadratic"]
    assert numbers["kappa_quadratic"] == pytest.approx(agreement)
    assert numbers["kappa_quadratic_low"] <= agreement
    assert "loss" not in numbers  # nothing was encoded


def learning_of(train: int = 30) -> Learning:
    labels = [1, 5, 3] * 10
    rows = rows_of(labels)
    encoder = SimpleNamespace(scale=SCALE)
    validate = SimpleNamespace(rows=rows, encoder=encoder, prior=Prior.of(labels, SCALE))
    return Learning(cast(Validation, validate), rows_of(labels)[:train], lr=3e-4)


def after(learning: Learning, *validations: tuple[float, float, float]) -> None:
    """Log validations at an epoch each: (epoch, lower end of the gain, of the agreement)."""
    state = LoopState(log_history=[{"base_kappa_quadratic": 0.02, "step": 0}])
    for epoch, gain, agreement in validations:
        logs = {"eval_log_loss": 1.0, "eval_gain": gain + 0.1, "eval_gain_low": gain}
        logs |= {"eval_gain_high": gain + 0.2, "eval_entropy": 1.5}
        logs |= {"eval_kappa_quadratic": agreement + 0.1}
        logs |= {"eval_kappa_quadratic_low": agreement}
        logs |= {"eval_kappa_quadratic_high": agreement + 0.2}
        state.log_history.append({**logs, "epoch": epoch, "step": int(10 * epoch)})
        learning.on_log(None, state, None, logs)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The log; a training in this process may have kept it from pytest."""
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_validation_is_shown_beside_base_baseline_and_prior(said: Any) -> None:
    after(learning_of(), (0.5, 0.25, 0.3))
    (line,) = said.messages
    assert line.startswith("validation: quadratic kappa 0.400 [0.300, 0.500] of 30 rows (base 0.0")
    gain = "gain over the prior 0.350 [0.250, 0.450] nats per verdict"
    assert f"{gain}, log loss 1.000 against 1.350; entropy" in line
    assert "entropy 1.500, of the prior 1.2" in line


@pytest.mark.parametrize(
    ("validations", "warnings"),
    [
        ([(0.5, -0.2, -0.1)], 0),  # the first epoch is not over
        ([(0.5, -0.2, -0.1), (1.0, -0.2, -0.1)], 1),
        ([(1.0, -0.2, -0.1), (2.0, -0.2, -0.1)], 1),
        ([(1.0, 0.01, -0.1)], 0),  # better than the frequencies of the labels
        ([(1.0, -0.2, 0.01)], 0),  # better than a constant
        ([(0.5, 0.01, -0.1), (1.0, -0.2, -0.1)], 0),
    ],
)
def test_one_warning_after_the_first_epoch_if_nothing_beats_the_prior(
    said: Any, validations: list[Any], warnings: int
) -> None:
    after(learning_of(train=12), *validations)
    warned = [record.getMessage() for record in said.records if record.levelname == "WARNING"]
    assert len(warned) == warnings
    for line in warned:
        for cause in ("12 for 5 verdicts", "judge data preview", "--lr 0.0003", "small_data"):
            assert cause in line


@pytest.mark.parametrize(("patience", "steps"), [(0, 8), (1, 3), (2, 4), (7, 8)])
def test_training_ends_when_validations_stop_getting_better(
    base: Path, tmp_path: Path, patience: int, steps: int
) -> None:
    quality = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.2, 0.2])
    more = {"metric_for_best_model": "eval_quality", "eval_steps": 1, "max_steps": 8}
    loop = make_loop(
        base,
        tmp_path,
        make_examples(8),
        validate=lambda _: {"quality": next(quality)},
        patience=patience,
        **more,
    )
    loop.train()
    assert (loop.state.global_step, loop.state.best_global_step) == (steps, 2)
    assert (tmp_path / "checkpoint-2").is_dir()


def test_interval_below_one_is_a_fraction_of_all_steps() -> None:
    assert [share_of(amount, 336) for amount in (0, 0.1667, 0.5, 1, 100.0)] == [0, 57, 168, 1, 100]
    assert resolve("mps", ["--eval_steps=0.5"], "", "").eval_steps == 0.5


@pytest.mark.parametrize("name", presets())
def test_preset_lies_below_settings_file_and_command_line(tmp_path: Path, name: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lora_r: 4\nseed: 7\n")
    bare, own = (resolve("mps", argv, "", "") for argv in ([], ["--preset", name]))
    assert bare != own
    both = resolve("mps", [f"--preset={name}", "--config", str(config), "--seed=9"], "", "")
    assert (both.lora_r, both.seed, both.lr) == (4, 9, own.lr)


def test_unknown_preset_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="--preset big: must be one of small_data") as raised:
        resolve("mps", ["--preset", "big"], "", "")
    assert "\n" not in str(raised.value)


def test_training_scores_its_base_once_and_compares_each_validation(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pt_app.eval_model.judge_train_mps import main as train

    flags = {"model": base, "data_dir": rows, "output_dir": tmp_path, "tracking": "off"}
    flags |= {"epochs": 1, "eval_steps": 0.5}
    argv = [f"--{name}={value}" for name, value in flags.items()]
    train([*argv, "--skip_eval"])
    said = capsys.readouterr().out
    assert said.count("validation of the base: 4 of 4 rows") == 1
    assert said.count("gain over the prior") == 2
    (adapter,) = tmp_path.glob("*_final")
    history = json.loads((adapter / "training_config.json").read_text())["log_history"]
    assert history[0]["step"] == 0
    assert {"base_log_loss", "base_kappa_quadratic"} <= history[0].keys()
    assert sum("eval_kappa_quadratic" in entry for entry in history) == 2


@pytest.mark.parametrize(
    ("losses", "jumped"),
    [
        ([6.1, 0.8, 0.17, 0.14, 0.14, 0.13, 0.12], False),
        ([0.116, 0.119, 0.105, 0.107, 0.116, 0.511], True),  # of a training that lost everything
        ([0.116, 0.119, 0.105, 0.107, 0.116, 0.2], False),
        ([0.003, 0.004, 0.002, 0.003, 0.004, 0.02], False),
        ([0.116, 0.511], False),
    ],
)
def test_a_loss_that_jumps_is_warned_of(losses: list[float], jumped: bool, said: Any) -> None:
    state, progress = LoopState(max_steps=70), Progress()
    for loss in losses:
        state.global_step += 10
        state.log_history.append({"loss": loss, "step": state.global_step})
        progress.on_log(None, state, None, {"loss": loss})
    state.log_history.append({"eval_loss": 9.0, "step": state.global_step})
    progress.on_log(None, state, None, {"eval_loss": 9.0})
    warned = [record.getMessage() for record in said.records if record.levelno == logging.WARNING]
    expected = f"step {10 * len(losses)}: the loss jumped from 0.116 to 0.511: what was learned"
    assert [message.startswith(expected) for message in warned] == [True] * jumped
