"""GPT-2 and the small trainer: passes over a text, the best weights, checkpoints that move."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain import shapes, vocabulary
from pt_app.pretrain.chat import Chat
from pt_app.pretrain.inference import continued, infer
from pt_app.pretrain.loss import NextTokens
from pt_app.pretrain.model import load
from pt_app.pretrain.plans import train_gpt2, train_small
from pt_app.pretrain.settings import (
    Gpt2Settings,
    InferenceSettings,
    Sampling,
    SmallSettings,
    decisive,
    parsed,
)
from pt_app.pretrain.shards import open_shards
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("small_config*.yaml"))
SMALL: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 280}
SMALL |= {"intermediate_size": 64, "max_seq_length": 32, "batch_size": 4, "num_epochs": 0.5}
SMALL |= {"save_steps": 15, "eval_steps": 0, "logging_steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "it"]
    file = tmp_path_factory.mktemp("text") / "input.txt"
    file.write_text("".join(" ".join(rng.choices(words, k=8)) + ".\n" for _ in range(700)))
    return file


def small(text: Path, folder: Path, **changed: Any) -> Path:
    flags = SMALL | {"train_data": text, "output_dir": folder / "run"}
    flags |= {"tokenizer": folder / "tok" / "tokenizer.json", "final_dir": folder / "final"}
    return train_small(parsed(SmallSettings, [f"--{k}={v}" for k, v in (flags | changed).items()]))


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(text, tmp_path_factory.mktemp("small"))


@pytest.fixture
def tiny_gpt2(monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    """GPT-2 with one layer, and a vocabulary without a download."""
    tokenizer = train_tokenizer([text.read_text()], 300)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
    monkeypatch.setattr(vocabulary, "gpt2_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(shapes, "gpt2", lambda: config)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain_loss(folder: Path, tokens: Path, sequence: int) -> float:
    """The validation loss of a model, token by token with the stock cross-entropy."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    val = open_shards(tokens, AutoTokenizer.from_pretrained(folder)).val
    ids = torch.from_numpy(val.read(0, len(val)))
    total = 0.0
    for start in range(0, len(ids) - 1, sequence):
        window = ids[start : start + sequence + 1]
        logits = model(input_ids=window[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / (len(ids) - 1)


def test_gpt2_takes_passes_over_the_text_and_shows_them_in_tensorboard(
    tiny_gpt2: None, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX", reason="pip install -r requirements-tensorboard.txt")
    from tests.test_tensorboard import curves, events

    flags = {"train_data": text, "output_dir": tmp_path / "run", "final_dir": tmp_path / "final"}
    flags |= {"num_epochs": 2, "batch_size": 8, "seq_length": 32, "eval_steps": 10, "device": "cpu"}
    flags |= {"log_dir": tmp_path / "logs", "logging_steps": 5}
    final = train_gpt2(parsed(Gpt2Settings, [f"--{k}={v}" for k, v in flags.items()]))
    about = json.loads((final / "stage.json").read_text())
    train = open_shards(tmp_path / "run" / "tokens", AutoTokenizer.from_pretrained(final)).train
    assert about["steps"] == math.ceil(2 * len(train) / (8 * 32))
    shown = curves(tmp_path / "logs")
    assert {"train/loss", "eval/loss", "train/learning_rate"} <= set(shown)
    assert min(shown["eval/loss"]) == 10
    texts = [
        value.tensor.string_val[0].decode()
        for file in (tmp_path / "logs" / "tensorboard").iterdir()
        for event in events(file)
        for value in event.summary.value
        if value.tag.startswith("sample")
    ]
    assert len(texts) == len(shown["eval/loss"])
    assert all(written.startswith("\n") for written in texts)
    best = about["best"]["eval_loss"]
    assert min(shown["eval/loss"].values()) == pytest.approx(best, rel=1e-6)  # as float32
    assert plain_loss(final, tmp_path / "run" / "tokens", 32) == pytest.approx(best, abs=1e-6)


def test_the_best_weights_are_kept_and_both_losses_are_told(text: Path, tmp_path: Path) -> None:
    final = small(text, tmp_path, num_epochs=0.2, matrix_lr=2, lr=2, decay=0.01, eval_steps=1)
    about = json.loads((final / "stage.json").read_text())
    losses = {line["step"]: line["eval_loss"] for line in metrics(final) if "eval_loss" in line}
    assert about["best"]["eval_loss"] == min(losses.values())
    assert about["last"]["step"] == max(losses) > about["best"]["step"]
    found = plain_loss(final, tmp_path / "run" / "tokens", 32)
    assert found == pytest.approx(about["best"]["eval_loss"], abs=1e-4)


def test_a_checkpoint_is_resumed_in_another_folder_and_batch(
    made: Path, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(made.parent / "tok", tmp_path / "tok")
    checkpoint = made.parent / "run" / "checkpoint-30"
    how = {"resume": checkpoint, "batch_size": 2, "gradient_accumulation_steps": 2}
    final = small(text, tmp_path, **how)
    steps = [[line for line in metrics(f) if "loss" in line] for f in (made, final)]
    assert [line["step"] for line in steps[0]] == [line["step"] for line in steps[1]]
    for one, other in zip(*steps, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert checkpoint.is_dir()
    same = small(text, tmp_path, final_dir=tmp_path / "same", resume=checkpoint)
    assert sha256_file(same / "model.safetensors") == sha256_file(made / "model.safetensors")


def test_later_checkpoints_go_however_the_resumed_one_is_named(
    made: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be the newest, from which the same command continues after an interrupt."""
    for name in ("run", "tok"):
        shutil.copytree(made.parent / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    interrupt = KeyboardInterrupt
    monkeypatch.setattr(NextTokens, "loss", lambda *_: (_ for _ in ()).throw(interrupt))
    with pytest.raises(KeyboardInterrupt):
        small(text, tmp_path, resume="run/checkpoint-30")
    assert [folder.name for folder in Path("run").glob("checkpoint-*")] == ["checkpoint-30"]


def test_a_checkpoint_of_another_training_is_refused(
    made: Path, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(made.parent / "tok", tmp_path / "tok")
    checkpoint = made.parent / "run" / "checkpoint-30"
    with pytest.raises(UserError, match="num_layers was 1 and is 2 now"):
        small(text, tmp_path, resume=checkpoint, num_layers=2)
    for other in (tmp_path / "nothing" / "checkpoint-1", made):  # a finished model is none
        with pytest.raises(UserError, match="there is no checkpoint"):
            small(text, tmp_path, resume=other)


def test_a_tokenizer_that_is_not_whole_is_refused_and_kept(
    made: Path, text: Path, tmp_path: Path
) -> None:
    """One without its settings was trained again, and written over."""
    own = tmp_path / "tok" / "tokenizer.json"
    own.parent.mkdir()
    shutil.copy(made / "tokenizer.json", own)
    with pytest.raises(UserError, match=r"tok/tokenizer\.json: name a tokenizer\.json with its"):
        small(text, tmp_path)
    assert own.read_bytes() == (made / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match=r"name a tokenizer\.json"):
        small(text, tmp_path, tokenizer=tmp_path / "new" / "mine.json")


def test_a_tokenizer_is_copied_complete_or_not_at_all(
    made: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one was refused by the next run, or taken for the user's own."""
    shutil.copytree(made.parent / "run" / "tokens", tmp_path / "run" / "tokens")

    def killed(_: Path, target: Path, **__: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "tokenizer.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            small(text, tmp_path)
    assert not (tmp_path / "tok").exists()


def test_a_trained_tokenizer_needs_a_folder_of_its_own(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="or one in a new folder"):
        small(text, tmp_path)
    assert [path.name for path in (tmp_path / "tok").iterdir()] == ["notes.txt"]


def test_a_tokenizer_needs_an_end_of_text_and_no_other_special_token(
    made: Path, text: Path, tmp_path: Path
) -> None:
    """Both were a TypeError: None among the tokens, and None as the end of answers."""
    own = tmp_path / "tok" / "tokenizer.json"
    own.parent.mkdir()
    (own.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    shipped = (made / "tokenizer.json").read_text()
    own.write_text(shipped.replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(UserError, match=r"has no <\|endoftext\|>, which separates documents: take"):
        small(text, tmp_path)
    own.write_text(shipped)
    model, tokenizer = load(small(text, tmp_path))
    assert tokenizer.eos_token is None
    assert model.generation_config.eos_token_id == [tokenizer.vocab["<|endoftext|>"]]


def test_another_tokenizer_than_that_of_the_tokens_is_refused(
    made: Path, text: Path, tmp_path: Path
) -> None:
    """The tokens of before were taken, and the training counted as complete."""
    train_tokenizer([text.read_text()[:2000]], 270).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer was [0-9a-f]{64} and is"):
        small(text, made.parent, tokenizer=tmp_path / "tokenizer.json")


def test_a_shape_that_rotary_positions_cannot_have_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no multiple of twice --num_heads 11"):
        small(text, tmp_path, hidden_size=33, num_heads=11)


def test_the_settings_files_take_the_same_steps(tmp_path: Path) -> None:
    read = [parsed(SmallSettings, ["--config", str(path)]) for path in CONFIGS]
    assert len(read) == 3
    assert read[0].lr == 3e-3
    tokens = {each.batch_size * each.gradient_accumulation_steps for each in read}
    assert len(tokens) == 1
    assert len({json.dumps(decisive(each)) for each in read}) == 1
    keys = [set(yaml.safe_load(path.read_text())) - {"device"} for path in CONFIGS]
    assert keys[0] == keys[1] == keys[2]


def test_a_text_is_continued_the_same_each_time(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = InferenceSettings(
        model=str(made),
        tokenizer=str(made / "tokenizer.json"),
        device="cpu",
        sampling=Sampling(max_tokens=8, seed=0),
    )
    infer(replace(settings, prompt="the cat"))
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", iter(["the cat\n", "\n", "a dog\n"]))
    infer(settings)
    again = capsys.readouterr().out
    assert again.startswith(first)
    assert first.startswith("the cat")
    assert len(again.removeprefix(first)) > len("a dog")


def test_a_sample_leaves_the_random_state_and_the_context_alone(made: Path) -> None:
    chat, before = Chat(*load(made), "made"), torch.get_rng_state()
    how = Sampling(max_tokens=50, seed=0)
    texts = ["".join(continued(chat, "the cat " * 100, how)) for _ in range(2)]
    assert texts[0] == texts[1] > "the cat " * 100
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tokenizer_of_another_model_is_refused(made: Path, tmp_path: Path) -> None:
    train_tokenizer(["other words are here, other words"] * 9, 280).save_pretrained(tmp_path)
    other = InferenceSettings(model=str(made), tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="was trained with another"):
        infer(replace(other, device="cpu"))
    with pytest.raises(UserError, match="no model is there"):
        infer(InferenceSettings(model=str(tmp_path), device="cpu"))


def test_precision_of_the_matmuls_is_chosen(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    ids = torch.randint(280, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    exact = NextTokens().loss(model, batch)
    rounded = NextTokens(torch.bfloat16).loss(model, batch)
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)
    assert rounded.item() != exact.item()
    rounded.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
