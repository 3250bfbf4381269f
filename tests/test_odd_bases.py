"""Bases as people have them on disk: what is broken or of another kind is one line, everywhere."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BitsAndBytesConfig

from pt_app import cli
from pt_app.core.errors import UserError
from pt_app.judge import Judge
from pt_app.models import bases
from pt_app.models.bases import load_model, resolve_model
from tests.test_recipes import flags, main

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 2658000\n"
Change = Callable[[Path], Any]


def with_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def changed(folder: Path) -> None:
        weights = change(load_file(folder / WEIGHTS))
        save_file(
            {k: w.contiguous() for k, w in weights.items()}, folder / WEIGHTS, {"format": "pt"}
        )

    return changed


def with_tokenizer(change: Change) -> Change:
    def changed(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)

    return changed


def with_config(**fields: Any) -> Change:
    def changed(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return changed


def cut(name: str, size: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def pointer(name: str) -> Change:
    return lambda folder: (folder / name).write_text(POINTER)


def own_template(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"


def named_templates(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    named = [{"name": name, "template": text} for name in ("chat", "tool_use")]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": named}))


def with_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    return weights


def without(name: str) -> Change:
    return with_weights(lambda weights: {k: w for k, w in weights.items() if k != name})


DOWN = "model.layers.0.mlp.down_proj.weight"
# What the folder holds, and what is said of it by all that load weights.
BROKEN: dict[str, tuple[Change, str]] = {
    "wrapped": (
        with_weights(lambda weights: {f"_orig_mod.{k}": w for k, w in weights.items()}),
        r"missing \(such as lm_head.*that it has no place for \(such as _orig_mod",
    ),
    "one missing": (without(DOWN), rf"1 missing \(such as {DOWN}\)"),
    "one too many": (
        with_weights(lambda weights: weights | {"score.weight": torch.zeros(2, 64)}),
        r"1 that it has no place for \(such as score.weight\)",
    ),
    "another shape": (
        with_weights(lambda weights: weights | {DOWN: weights[DOWN][:, :-8]}),
        rf"1 of another shape \(such as {DOWN}\)",
    ),
    "deeper config": (
        with_config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
        r"12 missing \(such as model.layers.2",
    ),
    "not a number": (with_weights(with_nan), "up_proj.weight holds numbers that are not finite"),
    "LFS pointer": (pointer(WEIGHTS), "model.safetensors is a Git LFS pointer"),
    "half": (cut(WEIGHTS, 100_000), r"is truncated, or not a safetensors file \(100,000 bytes"),
    "half a header": (cut(WEIGHTS, 500), "is truncated, or not a safetensors file"),
    "empty": (cut(WEIGHTS, 0), r"is truncated, or not a safetensors file \(0 bytes"),
    "quantised": (
        with_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised already \(gptq\)",
    ),
    "fp8": (with_config(quantization_config={"quant_method": "fp8"}), r"quantised already \(fp8\)"),
    "half a config": (cut("config.json", 40), "config.json is not JSON at line"),
    "unknown kind": (with_config(model_type="nobodys"), "does not load"),
}
# What is wrong with its tokenizer.
UNFIT: dict[str, tuple[Change, str]] = {
    "pad": (
        with_tokenizer(lambda one: one.add_special_tokens({"pad_token": "<pad>"})),
        "has 401 tokens and the model 400 embeddings: none for <pad>",
    ),
    "template's token": (with_tokenizer(own_template), r"none for <\|user\|>"),
    "larger vocabulary": (lambda _: None, r"has 400 tokens and the model 390 embeddings: none for"),
    "named templates": (named_templates, "named chat, tool_use, and none is the default"),
    "half a template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for m in messages %}"),
        r"its chat template fails \(.*endfor.*--chat_template",
    ),
    "tokenizer pointer": (pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
    "half a tokenizer": (cut("tokenizer.json", 3000), "its tokenizer does not load"),
}


@pytest.fixture
def broken(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, str]:
    change, said = (BROKEN | UNFIT)[request.param]
    folder = shutil.copytree(base, tmp_path / "base")
    if request.param == "larger vocabulary":
        with_weights(lambda w: w | {E: w[E][:390]})(folder)
        with_config(vocab_size=390)(folder)
    change(folder)
    return folder, said


E = "model.embed_tokens.weight"


@pytest.mark.parametrize("broken", [*BROKEN, *UNFIT], indirect=True)
def test_training_refuses_the_base_in_one_line_and_leaves_no_run(
    broken: tuple[Path, str], rows: Path, tmp_path: Path
) -> None:
    folder, said = broken
    with pytest.raises(UserError, match=said) as caught:
        main("mps", flags(folder, rows, tmp_path / "out", "--tracking=off", "--skip_eval"))
    assert "\n" not in str(caught.value)
    if "not finite" not in said:
        assert not (tmp_path / "out").exists()


# The doctor reads no weights, which may be many GB.
@pytest.mark.parametrize("broken", sorted({*BROKEN, *UNFIT} - {"not a number"}), indirect=True)
def test_doctor_names_what_is_wrong_with_the_base(
    broken: tuple[Path, str], rows: Path, tmp_path: Path
) -> None:
    from pt_app.core.settings import resolve
    from pt_app.preflight.doctor.needs import Needs

    folder, said = broken
    settings = resolve("mps", flags(folder, rows, tmp_path / "out"), "doctor", "")
    found = [one for one in Needs(settings, offline=True).check() if one.status == "fail"]
    assert len(found) == 1
    assert re.search(said, found[0].said)


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_evaluation_and_scoring_refuse_the_base(
    broken: tuple[Path, str], adapter: Path, rows: Path, tmp_path: Path
) -> None:
    from pt_app.eval_model.compare import evaluate_judges
    from pt_app.eval_model.options import EvalOptions

    folder, said = broken
    with pytest.raises(UserError, match=said):
        load_model(resolve_model(str(folder)))
    for use in (
        lambda: Judge.load(adapter, base=str(folder)),
        lambda: evaluate_judges(rows, tmp_path / "eval", [adapter], EvalOptions(True, str(folder))),
    ):
        with pytest.raises(UserError):
            use()


@pytest.mark.parametrize("broken", ["wrapped", "one missing", "not a number"], indirect=True)
def test_base_in_4_bits_is_checked_too(broken: tuple[Path, str]) -> None:
    folder, said = broken
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with pytest.raises(UserError, match=said):
        load_model(resolve_model(str(folder)), quantization_config=quantization)


def test_base_that_overflows_in_float16_is_refused_there_alone(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    with_weights(lambda w: w | {DOWN: w[DOWN].index_fill(0, torch.tensor([1]), 7e4)})(folder)
    load_model(resolve_model(str(folder)))
    with pytest.raises(UserError, match=r"down_proj\.weight .* not finite in torch\.float16"):
        load_model(resolve_model(str(folder)), dtype=torch.float16)


def test_harmless_differences_of_names_still_load(base: Path, tmp_path: Path) -> None:
    """A head beside the embedding it is tied to, and buffers that old checkpoints kept."""
    folder = shutil.copytree(base, tmp_path / "base")
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with_weights(lambda w: w | {"lm_head.weight": w[E].clone(), frequencies: torch.ones(8)})(folder)
    source = resolve_model(str(folder))
    bases.check_model(source, bases.load_tokenizer(source))
    whole = load_model(resolve_model(str(base)))
    ids = torch.arange(20)[None]
    assert torch.equal(load_model(source)(ids).logits, whole(ids).logits)


def test_token_that_no_prompt_holds_needs_no_embedding(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    more = {"extra_special_tokens": ["<image_soft_token>"]}
    with_tokenizer(lambda tokenizer: tokenizer.add_special_tokens(more))(folder)
    source = resolve_model(str(folder))
    tokenizer = bases.load_tokenizer(source)
    assert len(tokenizer) == 401
    bases.check_model(source, tokenizer)


def test_tokenizer_without_pad_end_and_unknown_token_trains_and_scores(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    def bare(tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = None

    folder = shutil.copytree(base, tmp_path / "base")
    with_tokenizer(bare)(folder)
    assert bases.load_tokenizer(folder).pad_token_id is None
    main("mps", flags(folder, rows, tmp_path / "out", "--tracking=off"))
    (made,) = (tmp_path / "out").glob("*_final")
    row = json.loads((rows / "judge_test.json").read_text().splitlines()[0])
    assert 0 <= Judge.load(made, base=str(folder)).score([row])[0].verdict <= 10


def test_default_among_named_templates_is_taken(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    named_templates(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"chat"', '"default"'))
    assert bases.load_tokenizer(folder).chat_template == (bases.load_tokenizer(base).chat_template)


def test_adapter_in_the_bases_folder_is_refused(
    base: Path, adapter: Path, rows: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder)
    with pytest.raises(UserError, match="move the adapter's files into a folder"):
        main("mps", flags(folder, rows, tmp_path / "out"))
    with pytest.raises(UserError, match="move the adapter's files into a folder"):
        Judge.load(adapter, base=str(folder))
    with pytest.raises(UserError, match=r'holds an adapter .*: name its base \("small-base"\)'):
        main("mps", flags(adapter, rows, tmp_path / "out"))


@pytest.mark.parametrize("config", [False, True])
def test_tokenizer_alone_serves_what_needs_no_weights(
    base: Path, rows: Path, tmp_path: Path, config: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    for name in [*names, "config.json"] if config else names:
        shutil.copy(base / name, folder)
    table = tmp_path / "labels.csv"
    table.write_text("source,mt,score\n" + "".join(f"the {i},a {i},{i % 11}\n" for i in range(40)))
    for words in (
        ["data", "check", str(rows), "--model", str(folder)],
        ["data", "preview", str(rows), "--model", str(folder)],
        ["init", str(table), "--model", str(folder)],
    ):
        code = cli.app(words, standalone_mode=False)
        assert not code, capsys.readouterr()
    with pytest.raises(UserError, match="has no"):
        main("mps", flags(folder, rows, tmp_path / "out"))


def test_folder_of_the_base_is_asked_for_where_it_is_not_named(
    adapter: Path, rows: Path, tmp_path: Path
) -> None:
    from pt_app.eval_model.compare import evaluate_judges

    for use in (
        lambda: Judge.load(adapter),
        lambda: evaluate_judges(rows, tmp_path / "eval", [adapter]),
    ):
        with pytest.raises(UserError, match=r'from a folder, "small-base".*--base FOLDER'):
            use()
