"""Adapter folders: what is in them, who can load them, and what is refused."""

import builtins
import json
import os
from datetime import datetime
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.results import Results
from pt_app.core.verdicts import Scale
from pt_app.models import adapters
from pt_app.models.adapters import (
    adapter_folder_name,
    encoder_of,
    load_adapter,
    merge,
    save_adapter,
    update_model_card,
    verify_adapter,
)
from pt_app.models.bases import load_model, load_tokenizer, model_identity, resolve_model
from pt_app.models.provenance import without_absolute_paths
from pt_app.scoring.scorer import JudgeScorer
from tests.contract import assert_adapter_contract, assert_no_absolute_path
from tests.tiny_models import make_model_folder

TARGETS = ["v_proj", "q_proj", "o_proj", "k_proj"]
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    # Wider than most test models: 4-bit blocks have 64 weights.
    folder = tmp_path_factory.mktemp("bases") / "small"
    return resolve_model(str(make_model_folder(folder, hidden_size=64, initializer_range=0.1)))


@pytest.fixture(scope="module")
def encoder(source):
    return PromptEncoder(
        load_tokenizer(source), Template.load("translation"), Scale.from_name("0-10"), 256
    )


def trained(source, quantization=None, **lora):
    """A LoRA on the base after two steps, so that neither of its matrices is zero."""
    base = load_model(source, quantization_config=quantization)
    if quantization is not None:
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(base, peft.LoraConfig(**(options | lora)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.arange(40, 72)[None]
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def saved(model, source, encoder, folder):
    save_adapter(
        model,
        encoder,
        folder,
        identity=model_identity(source),
        training_config={
            "settings": {"lr": 2e-4, "data_dir": str(Path.cwd() / "datasets"), "epochs": 1},
            "command": f"judge_train_mps.py --output_dir={folder.resolve()} --epochs 1",
            "data": {"path": "judge_eval", "sha256": {"judge_train.json": "ab" * 32}},
        },
    )
    return folder


@pytest.fixture(scope="module")
def model(source):
    return trained(source)


@pytest.fixture
def folder(model, source, encoder, tmp_path):
    return saved(model, source, encoder, tmp_path / "adapter")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(30, 60)[None]).logits


def copy_with(folder, target, name, content):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / name).write_bytes(content)
    return target


def test_stock_peft_loads_the_folder_and_computes_the_same(folder, model, source):
    base = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    plain = logits(base)
    stock = peft.PeftModel.from_pretrained(base, folder, torch_device="cpu").eval()
    assert torch.allclose(logits(stock), logits(model), atol=1e-5)
    assert not torch.allclose(logits(stock), plain, atol=1e-2), "the adapter does nothing"


def test_both_ways_of_training_keep_one_contract(folder, source, encoder, tmp_path):
    quantized = trained(source, NF4)
    assert any("Linear4bit" in type(m).__name__ for m in quantized.modules())
    other = saved(quantized, source, encoder, tmp_path / "nf4")
    assert assert_adapter_contract(folder) == assert_adapter_contract(other)
    config = [json.loads((f / "adapter_config.json").read_text()) for f in (folder, other)]
    assert config[0] == config[1]


def test_half_precision_weights_are_saved_as_float32(source, encoder, tmp_path):
    half = trained(source).to(torch.bfloat16)
    assert_adapter_contract(saved(half, source, encoder, tmp_path / "half"))


def test_all_linear_targets_are_saved_in_order(source, encoder, tmp_path):
    folder = saved(
        trained(source, target_modules="all-linear"), source, encoder, tmp_path / "linear"
    )
    assert_adapter_contract(folder)
    base = load_model(source)
    assert load_adapter(folder, base, model_identity(source)).peft_config["default"].r == 4


def test_tokenizer_of_the_folder_gives_the_same_ids(folder, encoder):
    again = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Olá, ção 123/10\n\n  x <|im_end|>"}]
    options = {"add_generation_prompt": True, "sanitize_control_tokens": True}
    assert again.apply_chat_template(turns, return_dict=False, **options) == (
        encoder.tokenizer.apply_chat_template(turns, return_dict=False, **options)
    )


def test_verify_says_what_the_judge_is(folder, encoder, source):
    info = verify_adapter(folder)
    assert (info.scale, info.template, info.max_seq_length) == (
        encoder.scale,
        encoder.template,
        256,
    )
    assert (info.base_name, info.config["r"], info.config["lora_alpha"]) == ("small", 4, 8)
    assert info.config["target_modules"] == sorted(TARGETS)
    assert info.identity == model_identity(source)
    weights = load_file(folder / "adapter_model.safetensors")
    assert info.parameters == sum(weight.numel() for weight in weights.values())


def test_another_base_is_refused_and_both_are_named(folder, source, tmp_path):
    other = resolve_model(str(make_model_folder(tmp_path / "other", hidden_size=64, seed=5)))
    with pytest.raises(UserError, match=r'"small".*"other"'):
        load_adapter(folder, load_model(other), model_identity(other))
    renamed = model_identity(source) | {"name": "copy-of-small", "revision": "abc"}
    load_adapter(folder, load_model(source), renamed)


@pytest.mark.parametrize("name", sorted(adapters.REQUIRED))
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        verify_adapter(folder)


def test_damaged_files_are_named(folder, tmp_path):
    weights = (folder / "adapter_model.safetensors").read_bytes()
    flipped = bytearray(weights)
    flipped[-5] ^= 1
    for number, (name, content) in enumerate(
        [
            ("adapter_model.safetensors", bytes(flipped)),
            ("adapter_model.safetensors", weights[:-100]),
            ("adapter_config.json", b"{"),
            ("judge.json", b'{"schema": 1}'),
            ("training_config.json", b"\xff\xfe"),
        ]
    ):
        with pytest.raises(UserError, match=name):
            verify_adapter(copy_with(folder, tmp_path / str(number), name, content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.half(), "not float32"),
        (lambda weight: torch.full_like(weight, torch.nan), "not finite"),
    ],
)
def test_weights_of_another_kind_are_refused(folder, change, message):
    path = folder / "adapter_model.safetensors"
    save_file({key: change(weight) for key, weight in load_file(path).items()}, path)
    judge = json.loads((folder / "judge.json").read_text())
    judge["weights_sha256"] = sha256_file(path)
    (folder / "judge.json").write_text(json.dumps(judge))
    with pytest.raises(UserError, match=message):
        verify_adapter(folder)


def with_config(folder, target, **fields):
    config = json.loads((folder / "adapter_config.json").read_text()) | fields
    return copy_with(folder, target, "adapter_config.json", json.dumps(config).encode())


@pytest.mark.parametrize(
    ("stated", "rule"), [("median", "median"), ("auto", "mean"), (None, "mean")]
)
def test_rule_is_that_of_judge_json_and_an_earlier_adapter_has_auto(folder, stated, rule):
    judge = json.loads((folder / "judge.json").read_text())
    assert judge["verdict_rule"] == "mean"
    assert verify_adapter(folder).rule == "mean"
    del judge["verdict_rule"]
    judge |= {"verdict_rule": stated} if stated else {}
    (folder / "judge.json").write_text(json.dumps(judge))
    info = verify_adapter(folder)
    assert encoder_of(info, load_tokenizer(folder)).rule == info.rule == rule


def without_hash_of_config(folder):
    judge = json.loads((folder / "judge.json").read_text())
    del judge["config_sha256"]
    (folder / "judge.json").write_text(json.dumps(judge))
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 1},
        {"target_modules": ["q_proj"]},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 1}},
        {"layers_to_transform": [0]},
    ],
)
def test_config_that_would_compute_something_else_is_refused(folder, tmp_path, fields):
    with pytest.raises(UserError, match=r"adapter_config.json is not the one .* saved with"):
        verify_adapter(with_config(folder, tmp_path / "other", **fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": ["q_proj"]}, r"the adapter has no place for 12 weights \(such as"),
        ({"target_modules": [*TARGETS, "up_proj"]}, "the adapter lacks 4 weights"),
        ({"layers_to_transform": [1]}, "the adapter has no place for 8 weights"),
        ({"r": 2}, "does not fit the weights or the base"),
        ({"target_modules": ["nobodys"]}, "does not fit the weights or the base"),
    ],
)
def test_weights_that_would_not_be_loaded_are_refused(folder, source, tmp_path, fields, said):
    """As an older judge has them, whose configuration has no hash."""
    other = without_hash_of_config(with_config(folder, tmp_path / "other", **fields))
    with pytest.raises(UserError, match=said):
        load_adapter(other, load_model(source), model_identity(source))


def test_scale_of_an_older_judge_is_compared_with_its_training(folder, tmp_path):
    other = without_hash_of_config(with_config(folder, tmp_path / "other", lora_alpha=1))
    training = json.loads((other / "training_config.json").read_text())
    training["settings"] |= {"lora_r": 4, "lora_alpha": 8}
    (other / "training_config.json").write_text(json.dumps(training))
    said = "lora_alpha is 1, and the judge was trained with 8: copy the adapter again"
    with pytest.raises(UserError, match=said):
        verify_adapter(other)


@pytest.mark.parametrize("modules", [None, []])
def test_older_judge_that_names_no_modules_is_refused(folder, tmp_path, modules):
    other = without_hash_of_config(with_config(folder, tmp_path / "other", target_modules=modules))
    with pytest.raises(UserError, match="names no target_modules: copy the adapter again"):
        verify_adapter(other)


def test_older_judge_without_a_hash_of_its_config_loads(folder, source):
    info = verify_adapter(without_hash_of_config(folder))
    load_adapter(info.folder, load_model(source), model_identity(source))


def test_config_that_peft_wrote_again_is_the_same(folder, tmp_path):
    config = peft.PeftConfig.from_pretrained(folder)
    config.target_modules = set(TARGETS)
    config.base_model_name_or_path = "elsewhere"
    config.save_pretrained(tmp_path / "again")
    again = copy_with(
        folder,
        tmp_path / "other",
        "adapter_config.json",
        (tmp_path / "again" / "adapter_config.json").read_bytes(),
    )
    assert verify_adapter(again).sha256 == verify_adapter(folder).sha256


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "judge.json"])
def test_judge_has_another_name_where_its_prompts_are_others(folder, tmp_path, name):
    text = (folder / name).read_text()
    if name == "judge.json":
        text = json.dumps(json.loads(text) | {"max_seq_length": 255})
    other = copy_with(folder, tmp_path / "other", name, (text + " ").encode())
    assert verify_adapter(other).sha256 != verify_adapter(folder).sha256


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(model, source, encoder, tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = saved(model, source, encoder, tmp_path / "adapter")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("judge.json", "task", "x"),
        ("judge.json", "scale", "stars"),
        ("judge.json", "scale", ""),
        ("judge.json", "grid", "x"),
        ("judge.json", "template.user", None),
        ("judge.json", "max_seq_length", "256"),
        ("judge.json", "verdict_rule", "best"),
        ("judge.json", "date", 3),
        ("training_config.json", "base", None),
        ("training_config.json", "base.name", None),
        ("training_config.json", "settings", []),
        ("adapter_config.json", "r", "x"),
        ("adapter_config.json", "target_modules", [1]),
    ],
)
def test_wrong_field_is_named(folder, name, field, value):
    whole = inner = json.loads((folder / name).read_text())
    *above, last = field.split(".")
    for part in above:
        inner = inner[part]
    inner[last] = value
    (folder / name).write_text(json.dumps(whole))
    with pytest.raises(UserError, match=rf"{name}, field {field}.*: ") as caught:
        verify_adapter(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "judge.json"])
def test_file_that_cannot_be_read_is_named(folder, name, monkeypatch):
    if os.geteuid() == 0:  # root may read everything
        opened = builtins.open

        def refused(file, *args, **kwargs):
            if str(file).endswith(name):
                raise PermissionError(13, "Permission denied", str(file))
            return opened(file, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", refused)
    else:
        (folder / name).chmod(0)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied\)"):
        verify_adapter(folder)


def test_adapter_that_is_not_finite_is_not_written(source, encoder, tmp_path):
    broken = trained(source)
    with torch.no_grad():
        next(p for p in broken.parameters() if p.requires_grad).fill_(torch.inf)
    with pytest.raises(UserError, match="not finite"):
        saved(broken, source, encoder, tmp_path / "out" / "broken")
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_folder_is_not_overwritten(model, source, encoder, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="exists"):
        saved(model, source, encoder, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_merged_model_computes_the_same(folder, model, source):
    merged = merge(load_adapter(folder, load_model(source), model_identity(source)))
    assert not hasattr(merged, "peft_config")
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"quantization_config": NF4}])
def test_merging_into_anything_but_float32_is_refused(folder, source, options):
    loaded = load_adapter(folder, load_model(source, **options), model_identity(source))
    with pytest.raises(UserError, match="float32"):
        merge(loaded)


def test_folder_alone_gives_the_scores_of_training(folder, model, source, encoder):
    rows = [JudgeExample(source="the house", candidate=word) for word in ("a casa", "o", "")]
    live = JudgeScorer(model, encoder, progress=False).score(rows)
    info = verify_adapter(folder)
    merged = merge(load_adapter(folder, load_model(source), model_identity(source)))
    again = PromptEncoder(load_tokenizer(folder), info.template, info.scale, info.max_seq_length)
    scored = JudgeScorer(merged, again, progress=False).score(rows)
    for one, other in zip(live, scored, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.status, one.verdict, one.raw) == (
            other.status,
            other.verdict,
            other.raw,
        )


def test_folder_name_is_of_model_epochs_and_time():
    now = datetime(2025, 3, 9, 14, 5, 7)
    name = adapter_folder_name("Qwen/Qwen2-1.5B-Instruct", 3, now)
    assert name == "Qwen2-1.5B-Instruct-judge-3ep-20250309_140507_final"
    assert (
        adapter_folder_name("my models/a b/", 0.5, now) == "a-b-judge-0.5ep-20250309_140507_final"
    )
    assert adapter_folder_name("..", 1, now) == "model-judge-1ep-20250309_140507_final"


def test_absolute_paths_keep_their_last_part():
    value = {
        "a": "/home/me/data set/judge",
        "b": ["C:\\models\\tiny", Path("/srv/out/"), 3, None],
        "c": "train.py --data_dir=/srv/data --x '/tmp/y' and/or 7/10",
        "d": "Qwen/Qwen2-1.5B-Instruct",
    }
    assert without_absolute_paths(value) == {
        "a": "judge",
        "b": ["tiny", "out", 3, None],
        "c": "train.py --data_dir=data --x 'y' and/or 7/10",
        "d": "Qwen/Qwen2-1.5B-Instruct",
    }


def judged(name, kappa, parse_failures):
    own = {"kappa_quadratic": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 7}}
    likeliest = {"kappa_quadratic": kappa}
    return {
        "name": name,
        "metrics": likeliest,
        "greedy": own,
        "parse_failures": parse_failures,
    }


def test_card_shows_the_verdicts_numbers_with_interval_and_n(folder):
    assert "Not evaluated" in (folder / "README.md").read_text()
    kappa = {"value": 0.8123, "low": 0.77, "high": 0.85, "n": 300}
    base = {"value": None, "reason": "one verdict only", "n": 300}
    zero = {"value": 0.0, "low": None, "high": None, "n": 300}
    update_model_card(
        folder,
        Results.model_validate(
            {
                "data": {"path": "judge_eval", "n": 300, "groups": 75},
                "models": [
                    judged("adapter", kappa, 2),
                    judged("base", base, 299),
                ],
                "baselines": [
                    {"name": "majority", "metrics": {"kappa_quadratic": zero}, "parse_failures": 0}
                ],
            }
        ),
    )
    card = (folder / "README.md").read_text()
    assert "| adapter | 0.812 [0.770, 0.850], n = 300 | 2 |" in card
    assert "| base | - | 299 |" in card
    assert "| majority | 0.000, n = 300 | - |" in card
    assert "The verdict is the expected score, rounded to the scale" in card
    assert "300 held-out rows from 75 sources" in card
    assert card.startswith("---\n")
    assert "library_name: peft" in card
    assert '`"judge_eval"`' in card
    assert_no_absolute_path(folder)


def test_code_of_the_card_runs(folder, source, monkeypatch):
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    (folder.parent / "path" / "to").mkdir(parents=True)
    (folder.parent / "path" / "to" / "small").symlink_to(source.path.resolve())
    names = {}
    exec(code, names)
    assert isinstance(names["judge"], peft.PeftModel)
    assert len(names["tokenizer"]) == 400
