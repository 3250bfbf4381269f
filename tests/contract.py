"""The contract that every adapter folder keeps, whichever recipe wrote it."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pt_app.models.adapters import verify_adapter

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "judge.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_config.json",
}
# An absolute path: "/a/b" or "C:\a" behind nothing, a quote mark, a blank, "=" or "(".
ABSOLUTE_PATH = re.compile(r"(?:^|[\s\"'`=(])(/[\w.-]+/[\w.-]+|[A-Za-z]:\\\w+)", re.MULTILINE)


def assert_adapter_contract(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Check an adapter folder; returns shape and dtype of each weight, to compare two folders."""
    verify_adapter(folder)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    # An evaluation with 30 validation rows adds a calibration, of questions one for each.
    assert {name for name in names if not re.fullmatch(r"calibration\..*json", name)} == FILES
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "/home" not in config["base_model_name_or_path"]
    training = json.loads((folder / "training_config.json").read_text())
    assert config["base_model_name_or_path"] == training["base"]["name"]
    assert re.fullmatch("[0-9a-f]{64}", training["base"]["weights_sha256"])
    assert re.fullmatch("[0-9a-f]{64}", training["base"]["tokenizer_sha256"])
    assert_no_absolute_path(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    return {key: (tuple(weights[key].shape), weights[key].dtype) for key in sorted(weights)}


def assert_no_absolute_path(folder: Path) -> None:
    """No file below `folder` names a place of the machine that wrote it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and path.name != "tokenizer.json":
            found = ABSOLUTE_PATH.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name} holds {found.group(1)}"
        if path.is_file():
            raw = path.read_bytes()
            for place in {str(Path.cwd()), str(Path.home()), str(folder.parent.resolve())} - {"/"}:
                assert place.encode() not in raw, f"{path.name} holds {place}"
