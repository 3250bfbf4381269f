"""From nothing to a judge: both recipes take the folder of a stage as their base."""

import json
import re
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pt_app.core.errors import UserError
from pt_app.core.settings import RECIPES
from pt_app.models.adapters import check_base, verify_adapter
from pt_app.models.bases import model_identity, resolve_model
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain.plans import base_train, chat_train
from pt_app.pretrain.settings import BaseSettings, SftSettings
from pt_app.pretrain.shards import at_end, write_shards
from tests.contract import assert_adapter_contract
from tests.test_recipes import flags, main
from tests.tiny_models import TEXTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last stage of a model of one layer, with a context that holds a judge's prompts."""
    folder = tmp_path_factory.mktemp("scratch")
    tokenizer = train_tokenizer(TEXTS * 3, 400)
    write_shards(at_end("\n".join(TEXTS * 40)), tokenizer, folder / "data")
    said = [{"role": "user", "content": "Source?"}, {"role": "assistant", "content": "Score: 7/10"}]
    asked = [[said[0] | {"content": f"Source {number}?"}, said[1]] for number in range(99)]
    mixture = folder / "said.jsonl"
    mixture.write_text("".join(json.dumps(each) + "\n" for each in asked))
    run = {"model_dir": str(folder / "run"), "device": "cpu", "max_seq_len": 1024}
    run |= {"total_batch_size": 1024, "num_iterations": 3, "device_batch_size": 1}
    base_train(BaseSettings(depth=1, data_dir=str(folder / "data"), **run))
    return chat_train(SftSettings(source="base", mixture=str(mixture), **run))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_judge_is_trained_on_an_sft_and_its_kappa_has_an_interval(
    recipe: str, sft: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(recipe, flags(sft, rows, tmp_path, "--tracking=off"))
    said = capsys.readouterr().out
    assert re.search(r"quadr\. kappa +-?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\]", said), said
    (adapter,) = tmp_path.glob("*_final")
    assert_adapter_contract(adapter)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), adapter)
    other = model_identity(resolve_model(str(sft.with_name("base"))))
    with pytest.raises(UserError, match=r'was trained on "sft" .*, not on "base"'):
        check_base(verify_adapter(adapter), other)
