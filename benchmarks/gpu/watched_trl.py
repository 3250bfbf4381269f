"""Trains with TRL as its users do, on the same rows and the same base, and looks on.

watched_trl.py FOLDER BASE WEIGHTS [--smoke]: writes FOLDER/<setting>.json for each of SETTINGS.
"""

import gc
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.gpu.bases import workload
from benchmarks.gpu.part import FULL, SMOKE, Sizes
from benchmarks.gpu.watch import Watch
from benchmarks.train import labelled
from pt_app.core.files import write_json_atomic

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding-free": {"padding_free": True},
    "checkpointed": {"activation_checkpointing": True},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
ON_GPU = torch.cuda.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32


def load(base: str, weights: str) -> Any:
    """Load the base as TRL's documentation does, in NF4 or in 16 bits."""
    options: dict[str, Any] = {"dtype": DTYPE, "device_map": {"": 0 if ON_GPU else "cpu"}}
    if weights == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPE,
        )
    return AutoModelForCausalLM.from_pretrained(base, **options)


def train(model: Any, base: str, weights: str, sizes: Sizes, out: Path, setting: str) -> Any:
    """Train one setting; give the base without its adapter."""
    config: dict[str, Any] = {"activation_checkpointing": False} | SETTINGS[setting]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out / "out"),
            max_steps=sizes.steps,
            per_device_train_batch_size=sizes.examples,
            learning_rate=2e-4,
            max_grad_norm=0.3,
            optim="paged_adamw_8bit" if weights == "nf4" else "adamw_torch",
            bf16=ON_GPU,
            use_cpu=not ON_GPU,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_length=None,
            **config,
        ),
        train_dataset=labelled(workload(sizes).encoded),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model).unload()


def main() -> None:
    """Train all settings on one loaded base; one that fails says why and stops no other."""
    out, base, weights = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    sizes = SMOKE if "--smoke" in sys.argv else FULL
    watch = Watch(out)
    watch.install()
    model = load(base, weights)
    for setting in ["plain"] if sizes is SMOKE and weights != "nf4" else SETTINGS:
        watch.numbers = out / f"{setting}.json"
        try:
            model = train(model, base, weights, sizes, out, setting)
        except (RuntimeError, ValueError, TypeError) as error:
            traceback.print_exc()
            write_json_atomic(watch.numbers, {"error": str(error)[:300]})
            model = load(base, weights)
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
