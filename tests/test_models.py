"""Base models: where a name leads, and which base it is."""

import hashlib

import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.models.bases import (
    ModelSource,
    load_model,
    load_tokenizer,
    model_identity,
    resolve_model,
)
from tests.tiny_models import make_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("models") / "small-model")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache, whatever this machine has."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_folder_is_named_by_its_last_part_and_loads_in_float32(folder):
    source = resolve_model(str(folder))
    assert (source.name, source.revision) == ("small-model", None)
    model = load_model(source)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_model(source, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(source).pad_token == "<|endoftext|>"


def test_identity_is_the_hash_of_the_bytes_and_holds_no_path(folder):
    identity = model_identity(resolve_model(str(folder)))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    tokenizer = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert identity == {
        "name": "small-model",
        "revision": None,
        "weights_sha256": weights,
        "tokenizer_sha256": tokenizer,
    }


def test_sharded_model_has_the_identity_of_all_its_files(folder, tmp_path):
    source = resolve_model(str(folder))
    load_model(source).save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    files = sorted((tmp_path / "cut").glob("model-*.safetensors"))
    assert len(files) > 1
    joined = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert model_identity(resolve_model(str(tmp_path / "cut")))["weights_sha256"] == joined
    files[-1].unlink()
    with pytest.raises(UserError, match=files[-1].name):
        resolve_model(str(tmp_path / "cut"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["Qwen/Qwen2-1.5B-Instruct", "missing/folder/of/mine"])
def test_unknown_model_names_the_way_out_in_one_line(name):
    with pytest.raises(UserError, match="--model tiny") as caught:
        resolve_model(name)
    assert f"hf download {name}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_cached_hub_model_is_found_without_a_network(folder, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--some--judge-base"
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    for path in folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    assert resolve_model("some/judge-base") == ModelSource("some/judge-base", snapshot, revision)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        resolve_model(str(tmp_path))


def test_damaged_weights_are_one_line(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 50)
    with pytest.raises(UserError, match="is truncated, or not a safetensors file"):
        load_model(resolve_model(str(tmp_path)))


def test_tokenizer_without_a_chat_template_is_refused(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="chat template"):
        load_tokenizer(tmp_path)
