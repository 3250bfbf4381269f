"""`scripts/inference.py`: continue texts with a model from scratch."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TextStreamer,
)

from pt_app.core.errors import UserError
from pt_app.models.platforms import get_device
from pt_app.pretrain.settings import InferenceSettings, Sampling
from pt_app.training.loop import Model


def continued(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompt: str, how: Sampling, show: bool = False
) -> str:
    """Return a prompt and what the model writes after it, the same each time.

    Args:
        model: the model, on its device; the random state of a training is left alone.
        tokenizer: its tokenizer.
        prompt: the beginning, of which as many tokens are read as the model can.
        how: how tokens are drawn, and how many.
        show: whether to print them as they come.
    """
    room = model.config.max_position_embeddings - 1
    ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -room:].to(model.device)
    options: dict[str, object] = {"do_sample": how.temperature > 0}
    if how.temperature:
        options |= {"temperature": how.temperature, "top_k": how.top_k}
    training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(how.seed)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(how.max_new_tokens, room + 1 - ids.shape[1]),
            streamer=TextStreamer(tokenizer) if show else None,
            **options,
        )
    model.train(training)
    return str(tokenizer.decode(made[0], skip_special_tokens=True))


def infer(settings: InferenceSettings) -> None:
    """Continue the prompt, or each line that is typed; print the texts as they are written.

    Raises:
        UserError: if model or tokenizer are not there, or do not belong together.
    """
    folder = Path(settings.model)
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {folder}: no model is there: train one with scripts/train.py")
    platform = get_device(settings.device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(platform.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if settings.tokenizer:
        _check_same(tokenizer, Path(settings.tokenizer), folder)
    prompts: Iterable[str] = [settings.prompt] if settings.prompt else sys.stdin
    for prompt in prompts:
        continued(model, tokenizer, prompt.rstrip("\n"), settings, show=True)


def _check_same(tokenizer: PreTrainedTokenizerBase, file: Path, folder: Path) -> None:
    """Raise UserError unless a tokenizer.json has the tokens of the model in `folder`."""
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"--tokenizer {file}: no file is there: name a tokenizer.json")
    if PreTrainedTokenizerFast(tokenizer_file=str(file)).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--tokenizer {file}: {folder} was trained with another: leave it out")
