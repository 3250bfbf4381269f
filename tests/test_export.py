"""`judge export`: what is written computes what the judge computes, or is not kept."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.eval_model.judge_train_mps import main as train
from pt_app.models import adapters, bases
from pt_app.models import gguf as gguf_bases
from pt_app.serving import exporting, parity
from pt_app.serving.exporting import LORA, MODEL, export
from pt_app.serving.gguf_files import check_lora, write_lora, write_model
from pt_app.serving.options import ExportOptions, Target
from tests.rows import write_rows
from tests.tiny_models import make_tokenizer


def needs(package: str) -> Any:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"pip install {package}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("export"), test=24)


@pytest.fixture(scope="module")
def options(base: Path) -> ExportOptions:
    return ExportOptions(base=str(base), rows=20)


@pytest.fixture(autouse=True)
def few_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "ATTACKS", 6)


@pytest.fixture(scope="module")
def merged(adapter: Path, base: Path) -> Any:
    return adapters.load_merged(adapter, bases.resolve_model(str(base)))


def test_a_merged_folder_is_the_judge_and_the_same_bytes_each_time(
    adapter: Path, data: Path, options: ExportOptions, merged: Any, tmp_path: Path
) -> None:
    found = export(adapter, "merged", tmp_path / "a", data, options)
    export(adapter, "merged", tmp_path / "b", data, options)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"judge.json", "parity.json", "README.md", "model.safetensors"} <= set(files)
    assert found.decision == "same"
    for name in {*files} - {"parity.json"}:  # it names the folder
        one, other = (sha256_file(tmp_path / folder / name) for folder in "ab")
        assert one == other, name
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(weights[key], merged.state_dict()[key]) for key in weights)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    for path in (tmp_path / "a").glob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(options.base) not in path.read_text()


def test_a_failing_export_is_not_kept(
    adapter: Path,
    data: Path,
    options: ExportOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = exporting.save_folder

    def damaged(model: Any, *more: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(1.05)
        save(model, *more)

    monkeypatch.setattr(exporting, "save_folder", damaged)
    found = export(adapter, "merged", tmp_path / "out", data, options)
    assert found.decision == "differs"
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(
    adapter: Path, data: Path, options: ExportOptions, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="merged has float32, float16, bfloat16"):
        export(adapter, "merged", tmp_path / "a", data, replace(options, dtype="q8_0"))
    with pytest.raises(UserError, match="exists"):
        export(adapter, "merged", tmp_path, data, options)
    info = adapters.verify_adapter(adapter)
    for field, value in (
        ("use_rslora", True),
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
    ):
        with pytest.raises(UserError, match=field):
            check_lora(replace(info, config=info.config | {field: value}))


def test_what_cannot_be_read_is_not_said_of_out(
    adapter: Path,
    data: Path,
    options: ExportOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreadable = replace(options, base="x" * 300)  # no file system has such a name
    with pytest.raises(UserError, match=r"^xxx.* cannot be read"):
        export(adapter, "merged", tmp_path / "out", data, unreadable)

    def failing(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    for where, name in ((adapters, "load_merged"), (parity, "read_dataset")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, failing)
            with pytest.raises(PermissionError):
                export(adapter, "merged", tmp_path / "out", data, options)
    monkeypatch.setattr(exporting, "save_folder", failing)
    with pytest.raises(UserError, match="out cannot be written"):
        export(adapter, "merged", tmp_path / "out", data, options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_gguf_file_holds_the_weights_and_the_tokenizer(kind: str, tmp_path: Path) -> None:
    """Read back by transformers, which undoes llama.cpp's order of rotary pairs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny_models import make_model

    tokenizer = make_tokenizer(tmp_path / "base")
    model = make_model(tokenizer, tie_word_embeddings=False)
    if kind == "llama":
        shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        heads = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
        settings = {name: getattr(model.config, name) for name in (*shared, *heads)}
        model = LlamaForCausalLM(LlamaConfig(**settings))
    write_model(model, tmp_path / "base", tmp_path / MODEL, "float32", "judge")
    gguf_bases.convert(tmp_path / MODEL, tmp_path / "read", "judge", "0")
    read = load_file(tmp_path / "read" / "model.safetensors")
    own = model.state_dict()
    assert read.keys() <= own.keys()
    assert all(torch.equal(read[key], own[key]) for key in read)
    text = "<|im_start|>user\nScore: 10/10 é\n\n123<|im_end|>"
    other = bases.load_tokenizer(tmp_path / "read")
    assert other.encode(text, add_special_tokens=False) == tokenizer.encode(
        text, add_special_tokens=False
    )
    assert other.chat_template == tokenizer.chat_template


def test_a_lora_file_holds_the_adapter(adapter: Path, merged: Any, tmp_path: Path) -> None:
    info = adapters.verify_adapter(adapter)
    write_lora(info, merged.config, tmp_path / LORA)
    reader = gguf.GGUFReader(tmp_path / LORA)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = load_file(adapter / adapters.WEIGHTS)
    assert len(tensors) == len(weights)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], weights[key].numpy())
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None
    assert alpha.contents() == info.config["lora_alpha"]
    size = (adapter / adapters.WEIGHTS).stat().st_size
    assert (tmp_path / LORA).stat().st_size <= 1.1 * size


@pytest.fixture(scope="module")
def tiny_judge(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge on weights that were trained: the limits of engines' roundings hold for such."""
    out = tmp_path_factory.mktemp("tiny")
    flags = {"model": "tiny", "data_dir": data, "output_dir": out, "epochs": 1, "tracking": "off"}
    train([*(f"--{name}={value}" for name, value in flags.items()), "--skip_eval"])
    (folder,) = out.glob("*_final")
    return folder


# 8 bits are not among them: on 1.3 million weights they move a probability by more than the limit.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "dtype"),
    [
        pytest.param("gguf", "float32", marks=needs("xllamacpp")),
        pytest.param("gguf", "float16", marks=needs("xllamacpp")),
        pytest.param("gguf-lora", "float32", marks=needs("xllamacpp")),
        pytest.param("mlx", "float32", marks=needs("mlx_lm")),
    ],
)
def test_engines_give_the_judge_s_numbers(
    to: Target, dtype: Any, tiny_judge: Path, data: Path, tmp_path: Path
) -> None:
    options = ExportOptions(rows=20, dtype=dtype)
    found = export(tiny_judge, to, tmp_path / "out", data, options)
    assert found.decision == "same", [each.why for each in found.targets]
    assert found.targets[0].limit == (parity.STRICT if dtype == "float32" else parity.LIMITS[dtype])
    # By default llama.cpp computes attention in float16, whatever the file.
    twice = to != "mlx" and dtype == "float32"
    assert [each.limit for each in found.targets[1:]] == [parity.LIMITS["float16"]] * twice
    assert (tmp_path / "out" / "parity.json").is_file()
    assert (tmp_path / "out" / "Modelfile").is_file() == (to == "gguf")
