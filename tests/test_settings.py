"""The table of settings: the same flags on both recipes, each wired, each checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.core.settings import RECIPES, Recipe, Settings, resolve, table
from tests.conftest import ROOT

OTHER = {  # a value for each flag that is no recipe's default
    "model": "tiny",
    "data_dir": "elsewhere",
    "output_dir": "elsewhere",
    "project_name": "other",
    "epochs": "1.5",
    "batch_size": "8",
    "gradient_accumulation": "8",
    "lr": "1e-3",
    "warmup_steps": "7",
    "max_seq_length": "128",
    "pack_tokens": "512",
    "train_precision": "float32",
    "score_precision": "bf16",
    "verdict_rule": "mode",
    "grid": "1-5",
    "chat_template": "plain",
    "questions": "polite,offer",
    "question_weights": "offer=2",
    "probe_rows": "7",
    "reading": "branches",
    "max_samples": "9",
    "test_samples": "9",
    "lora_r": "4",
    "lora_alpha": "5",
    "lora_dropout": "0.1",
    "lora_targets": "all-linear",
    "eval_steps": "3",
    "patience": "2",
    "save_steps": "3",
    "seeds": "3",
    "folds": "5",
    "seed": "5",
    "resume": "newest",
    "tracking": "off",
}
SWITCHES = (
    "allow_leaks",
    "feedback",
    "group_variants",
    "skip_eval",
    "log_texts",
    "no_4bit",
    "shard_base",
)


def settings(recipe: Recipe, *argv: str) -> Settings:
    return resolve(recipe, argv, "recipe", "")


def test_flags_of_the_recipes_are_equal_but_for_no_4bit() -> None:
    assert set(table("cuda")) - set(table("mps")) == {"no_4bit"}
    assert set(table("mps")) <= set(table("cuda"))
    with pytest.raises(UserError, match="no_4bit"):
        settings("mps", "--no_4bit")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_flag_changes_its_setting_and_no_other(recipe: Recipe) -> None:
    default = vars(settings(recipe))
    other = OTHER | {"activation_checkpointing": "full" if recipe == "mps" else "none"}
    assert set(other) | set(SWITCHES) == set(default)
    for name in table(recipe):
        argv = [f"--{name}"] if name in SWITCHES else [f"--{name}", other[name]]
        changed = vars(settings(recipe, *argv))
        assert {key for key in default if default[key] != changed[key]} == {name}


def test_defaults_are_those_of_the_documentation() -> None:
    mps, cuda = settings("mps"), settings("cuda")
    assert (mps.model, cuda.model) == ("Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct")
    assert (mps.batch_size, mps.gradient_accumulation) == (1, 4)
    assert (cuda.batch_size, cuda.gradient_accumulation) == (2, 2)
    for each in (mps, cuda):
        assert (each.lr, each.max_seq_length) == (2e-4, 512)
        assert (each.lora_r, each.lora_alpha, each.lora_dropout) == (16, 32, 0.0)
        assert each.lora_targets == "q_proj,k_proj,v_proj,o_proj"


def test_command_line_beats_config_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lr: 1e-3\nepochs: 7\nskip_eval: true\n")
    resolved = settings("mps", "--config", str(config), "--epochs", "2")
    assert (resolved.lr, resolved.epochs, resolved.skip_eval) == (1e-3, 2.0, True)
    assert resolved.batch_size == 1


def test_config_file_may_be_json(tmp_path: Path) -> None:
    config = tmp_path / "run.json"
    config.write_text('{"lr": 2e-3, "batch_size": 4}')
    assert settings("cuda", "--config", str(config)).batch_size == 4


def test_unknown_key_of_a_config_file_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("learning_speed: 1\nbatchsize: 3\n")
    with pytest.raises(UserError, match=r"run\.yaml.*'learning_speed'"):
        settings("mps", "--config", str(config))
    config.write_text("batchsize: 3\n")
    with pytest.raises(UserError, match="nearest known one is 'batch_size'"):
        settings("mps", "--config", str(config))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_train_epochs: 2", {"epochs": 2.0}),
        ("per_device_train_batch_size: 8", {"batch_size": 8}),
        ("gradient_accumulation_steps: 3", {"gradient_accumulation": 3}),
        ("learning_rate: 1e-3", {"lr": 1e-3}),
        ("lora: {r: 8, lora_alpha: 9}", {"lora_r": 8, "lora_alpha": 9}),
        ("lora: {dropout: 0.1}", {"lora_dropout": 0.1}),
        ("lora: {target_modules: [q_proj, k_proj]}", {"lora_targets": "q_proj,k_proj"}),
        ("quantization: {load_in_4bit: false}", {"no_4bit": True}),
        ("load_in_4bit: true", {"no_4bit": False}),
        ("gradient_checkpointing: false", {"activation_checkpointing": "none"}),
        ("model_name_or_path: tiny\nmax_length: 99", {"model": "tiny", "max_seq_length": 99}),
    ],
)
def test_config_file_takes_the_names_of_transformers(
    text: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    resolved = settings("cuda", "--config", str(config))
    assert resolved == replace(settings("cuda"), **expected)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lr: 1\nlearning_rate: 1", "lr and learning_rate"),
        ("lora: {r: 8}\nlora_r: 8", "lora.r and lora_r"),
        ("lora: {alpha: 8, lora_alpha: 8}", "lora.alpha and lora.lora_alpha"),
    ],
)
def test_two_names_of_one_setting_in_a_config_file_are_refused(
    text: str, names: str, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=f"{names} are one setting"):
        settings("mps", "--config", str(config))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("epochs", "-1"),
        ("epochs", "0"),
        ("epochs", "inf"),
        ("lr", "nan"),
        ("lr", "fast"),
        ("batch_size", "0"),
        ("batch_size", "1.5"),
        ("gradient_accumulation", "-4"),
        ("max_seq_length", "4"),
        ("lora_dropout", "1"),
        ("seed", "-1"),
        ("tracking", "maybe"),
        ("model", " "),
    ],
)
def test_setting_out_of_range_is_refused_by_name(flag: str, value: str) -> None:
    with pytest.raises(UserError, match=flag):
        settings("mps", f"--{flag}={value}")


def test_patience_without_validations_is_refused() -> None:
    with pytest.raises(UserError, match="--patience 3 counts validations"):
        resolve("mps", ["--patience", "3", "--eval_steps", "0"], "test", "")


@pytest.mark.parametrize(
    "text", ["lr: [1]", "- 1", "epochs: yes", "lr: {a: 1", "batch_size: 2.5", "lr: 1\nlr: 2"]
)
def test_broken_config_file_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        settings("mps", "--config", str(config))


def test_missing_config_file_and_unknown_flag_are_refused() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        settings("mps", "--config", "nowhere.yaml")
    with pytest.raises(UserError, match="--learning_rate"):
        settings("mps", "--learning_rate", "1")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_shipped_settings_file_opens_with_the_command_that_runs_it(path: Path) -> None:
    command = path.read_text().splitlines()[0].removeprefix("# ").split()
    if path.suffix == ".json":  # which has no comments
        command = [
            "python",
            "pt_app/eval_model/judge_train_mps.py",
            "--config",
            f"configs/{path.name}",
        ]
    python, script, *argv = command
    assert python == "python"
    if script == "-m":
        script, *argv = argv
        script = f"{script.replace('.', '/')}.py"
    assert (ROOT / script).is_file()
    assert argv == ["--config", f"configs/{path.name}"]
    if script.startswith("scripts/"):  # tests/test_pretrain_*.py train with these
        return
    recipe: Recipe = "cuda" if "cuda" in script else "mps"
    resolved = settings(recipe, "--config", str(path))
    assert resolved != settings(recipe)
