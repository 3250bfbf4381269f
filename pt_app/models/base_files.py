"""The files of a base model's folder: which ones count, and whether they are whole. Without torch.

People have all kinds of folders on disk: Git LFS pointers in place of files, halves of downloads,
weights that are quantised already, an adapter written into the base's folder. Each of these is
reported in one line before anything is loaded.
"""

import json
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import cannot_read

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER = ["*.json", "*.txt", "*.jinja", "tokenizer*", "*.model"]
WANTED = [*TOKENIZER, "model*.safetensors"]
OLDER_TOKENIZER_FILES = ("merges.txt", "spiece.model", "tokenizer.model", "vocab.json")
LFS = b"version https://git-lfs.github.com/spec/"
AGAIN = "fetch it again"


def check_base_folder(folder: Path) -> None:
    """Check that `folder` holds one whole base model that can be loaded as it is.

    Raises:
        UserError: names the file at fault.
    """
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not (folder / CONFIG).is_file():
        remedy = "name a model's folder"
        if has_adapter:
            base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
            remedy = f'it holds an adapter; name its base ("{base}")'
        raise UserError(f"{folder} has no {CONFIG}: {remedy}")
    config = read_json(folder / CONFIG)
    if has_adapter:
        # transformers would put the adapter on the base, and the base's hash would not say so.
        raise UserError(
            f"{folder} holds an adapter beside the base ({ADAPTER_CONFIG}), and both would be "
            "loaded: move the adapter's files into a folder of their own"
        )
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "an unknown method")
        raise UserError(
            f"{folder}: its weights are quantised already ({method}): name the original model, "
            "in 16 or 32 bits; judge_train_cuda.py quantises it to 4 bits itself"
        )
    for path in weight_files(folder):
        _check_safetensors(path)


def check_tokenizer_folder(folder: Path) -> None:
    """Check that `folder` holds a tokenizer; raises UserError that names the file at fault."""
    files = tokenizer_files(folder)
    if not files:
        raise UserError(f"{folder} has no tokenizer.json: name a model's or a tokenizer's folder")
    for path in [*files, *folder.glob("*.json")]:
        _refuse_pointer(path)


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that make up a model, sorted by name.

    Raises:
        UserError: if there are none, or one that the index names is missing.
    """
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f'{folder / INDEX} has no "weight_map": {AGAIN}')
        names = sorted(set(shards.values()))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: fetch the model again, or save it with "
                "save_pretrained, which writes safetensors"
            )
    return [folder / name for name in names]


def wanted_files(folder: Path) -> list[Path]:
    """List what is needed elsewhere of a model's folder: its weights, configuration, tokenizer.

    Whatever else lies there (.env, .git, data) stays.

    Raises:
        UserError: as `weight_files`.
    """
    others = {path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file()}
    kept = {p for p in others if not p.name.startswith(".") and p.suffix != ".safetensors"}
    return sorted({*weight_files(folder), *kept})


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files that make up a tokenizer; none where the folder has no tokenizer."""
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    return [folder / name for name in OLDER_TOKENIZER_FILES if (folder / name).is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError if the file is a Git LFS pointer or damaged."""
    _refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): {AGAIN}")
    return value


def _check_safetensors(path: Path) -> None:
    """Compare a file's size with what its header says; costs some KB of reading."""
    from safetensors import SafetensorError, safe_open

    _refuse_pointer(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        size = f"{path.stat().st_size:,} bytes"
        raise UserError(
            f"{path} is truncated, or not a safetensors file ({size}; {error}): {AGAIN}"
        ) from error


def _refuse_pointer(path: Path) -> None:
    """Raise UserError if the file cannot be read, or is a Git LFS pointer in place of a file."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS))
    except OSError as error:
        raise UserError(cannot_read(path, error)) from error
    if start == LFS:
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its "
            "repository, or fetch the model with hf download"
        )
