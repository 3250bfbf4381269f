"""A judge trained on one platform is used, and trained on, on another."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pt_app.core import settings
from pt_app.core.settings import RECIPES
from pt_app.models import platforms
from pt_app.models.bases import resolve_model
from pt_app.training.loop import TrainingLoop
from tests.conftest import ROOT
from tests.test_recipes import flags, main

MORE = ["--tracking=off", "--skip_eval", "--eval_steps=0", "--save_steps=2", "--epochs=2"]


@pytest.fixture(scope="module")
def trained(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each recipe."""
    found = {}
    for recipe in RECIPES:
        out = tmp_path_factory.mktemp(recipe)
        main(recipe, flags(base, rows, out, *MORE))
        (found[recipe],) = out.glob("*_final")
    return found


def load_as_the_readme_says(base: Path, adapter: Path) -> Any:
    """Run the README's lines for stock PEFT; gives the judge."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(from peft.*?)```", text, re.DOTALL)
    lines = lines.replace("Qwen/Qwen2-1.5B-Instruct", str(base))
    names: dict[str, Any] = {}
    exec(lines.replace("adapters_eval/<name>_final", str(adapter)), names)
    return names["judge"].eval()


@pytest.mark.parametrize("recipe", RECIPES)
def test_adapter_of_each_recipe_loads_on_a_cpu_by_the_readmes_lines(
    trained: dict[str, Path], base: Path, recipe: str
) -> None:
    judge = load_as_the_readme_says(base, trained[recipe])
    saved = load_file(trained[recipe] / "adapter_model.safetensors")
    loaded = {n.replace(".default", ""): p for n, p in judge.named_parameters() if "lora_" in n}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize("target", RECIPES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_adapter_of_each_recipe_works_on_the_base_as_the_other_loads_it(
    trained: dict[str, Path], base: Path, recipe: str, target: str
) -> None:
    """On an NF4 base it says what it says on a float32 one of the same, rounded weights."""
    from peft import PeftModel

    load = importlib.import_module(f"pt_app.eval_model.judge_train_{target}").load_base
    resolved = settings.resolve(target, [], target, "")  # type: ignore[arg-type]
    platform = platforms.decide(target)  # type: ignore[arg-type]
    model = load(resolve_model(str(base)), resolved, platform).eval()
    plain = load_as_the_readme_says(base, trained[recipe])
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        copy_rounded_weights(model, plain)
        on_target = PeftModel.from_pretrained(model, trained[recipe], torch_device="cpu").eval()
        said, other = on_target(input_ids=ids).logits, plain(input_ids=ids).logits
        with on_target.disable_adapter():
            without = on_target(input_ids=ids).logits
    assert (said - other).abs().max() < 1e-3
    assert (said - without).abs().max() > 1e-2


def copy_rounded_weights(model: Any, plain: Any) -> None:
    """Give a float32 judge the weights that an NF4 base stands for; others are left alone."""
    from bitsandbytes.functional import dequantize_4bit

    linear = {name.removesuffix(".base_layer"): m for name, m in plain.named_modules()}
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            own = linear[f"base_model.model.{name}"]
            own.weight.copy_(dequantize_4bit(module.weight.data, state))


@pytest.mark.parametrize(("first", "then"), [("mps", "cuda"), ("cuda", "mps")])
def test_run_begun_by_one_recipe_is_ended_by_the_other(
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: str,
    then: str,
) -> None:
    step = TrainingLoop.training_step
    seen: list[tuple[int, Any]] = []

    def noted(self: Any, inputs: Any) -> Any:
        if self.state.global_step == 7 and len(seen) == 7:
            raise KeyboardInterrupt
        ids = torch.cat([packed["input_ids"].flatten() for packed in inputs["packs"]])
        seen.append((self.state.global_step, sorted(ids.tolist())))
        return step(self, inputs)

    monkeypatch.setattr(TrainingLoop, "training_step", noted)
    with pytest.raises(KeyboardInterrupt):
        main(first, flags(base, rows, tmp_path, *MORE))
    seen.append((-1, None))
    main(then, flags(base, rows, tmp_path, *MORE, "--resume"))
    said = capsys.readouterr().out
    assert "the base was held in" in said
    assert "its state does not fit, and starts empty" in said
    assert [number for number, _ in seen] == [*range(7), -1, *range(6, 12)]
    assert seen[6][1] == seen[8][1], "step 7 has the same rows on both"
    (adapter,) = tmp_path.glob("*_final")
    assert (adapter / "adapter_model.safetensors").exists()
