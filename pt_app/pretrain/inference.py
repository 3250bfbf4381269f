"""`scripts/inference.py`: continue texts with a model from scratch."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.models.platforms import get_device
from pt_app.pretrain.chat import Chat, Reply
from pt_app.pretrain.model import load
from pt_app.pretrain.settings import InferenceSettings, Sampling


def continued(chat: Chat, prompt: str, how: Sampling) -> Iterator[str]:
    """Yield a prompt, then what the model writes after it; a long prompt loses its beginning."""
    yield prompt
    ids = chat.tokenizer(prompt, verbose=False).input_ids[1 - chat.context :]
    yield from Reply(chat, ids, how)


def infer(settings: InferenceSettings) -> None:
    """Continue the prompt, or each line that is typed; print the texts as they are written.

    Raises:
        UserError: if model or tokenizer are not there, or do not belong together.
    """
    folder = Path(settings.model)
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {folder}: no model is there: train one with scripts/train.py")
    model, tokenizer = load(folder, get_device(settings.device).device)
    if settings.tokenizer:
        _check_same(tokenizer, Path(settings.tokenizer), folder)
    chat = Chat(model, tokenizer, folder.name)
    typed = (line for line in sys.stdin if line.strip())  # a blank one is nothing to continue
    prompts: Iterable[str] = [settings.prompt] if settings.prompt else typed
    for prompt in prompts:
        for piece in continued(chat, prompt.rstrip("\n"), settings.sampling):
            print(visible(piece), end="", flush=True)
        print()


def _check_same(tokenizer: PreTrainedTokenizerBase, file: Path, folder: Path) -> None:
    """Raise UserError unless a tokenizer.json has the tokens of the model in `folder`."""
    if not file.is_file():
        raise UserError(f"--tokenizer {file}: no file is there: name a tokenizer.json")
    if PreTrainedTokenizerFast(tokenizer_file=str(file)).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--tokenizer {file}: {folder} was trained with another: leave it out")
