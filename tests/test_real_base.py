"""SmolLM2-135M as `judge base fetch` brings it; skipped where nobody has fetched it."""

import importlib
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pt_app.judge import Judge
from pt_app.models.known_bases import known_bases
from tests.contract import assert_adapter_contract

NAME = "smollm2-135m"
BASE = known_bases()[NAME].folder
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BASE.is_dir(), reason=f"run judge base fetch {NAME} first"),
]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(autouse=True)
def users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache where the base is, in place of the tests' own."""
    monkeypatch.setenv("JUDGE_CACHE", str(BASE.parents[1]))


def test_dequantised_weights_and_tokens_answer_a_question() -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(BASE),
        AutoTokenizer.from_pretrained(BASE),
    )
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    said = tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert said.startswith("The capital of France is Paris.")


@pytest.mark.parametrize("recipe", ["mps", "cuda"])
def test_adapter_of_each_recipe_keeps_the_contract_and_loads_in_stock_peft(
    recipe: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine without a GPU the recipe for NVIDIA trains on 4-bit weights on the CPU."""
    words = [f"--model={NAME}", f"--data_dir={rows}", f"--output_dir={tmp_path}", "--epochs=1"]
    words += ["--max_samples=8", "--test_samples=2", "--eval_steps=0", "--tracking=off"]
    importlib.import_module(f"pt_app.eval_model.judge_train_{recipe}").main(words)
    (folder,) = tmp_path.glob(f"{NAME}-judge-*_final")
    assert (
        f"loading {NAME}, weights in {'nf4' if recipe == 'cuda' else ''}" in capsys.readouterr().out
    )
    assert_adapter_contract(folder)
    judge = Judge.load(folder)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("Score: 7/10\n")])
    with torch.no_grad():
        own, theirs = judge.model(ids).logits, stock(ids).logits
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3)
