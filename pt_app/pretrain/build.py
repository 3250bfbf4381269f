"""Build a base: tokenizer, training, and the folder that holds the result."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite
from pt_app.judge_data.options import LexiconSize
from pt_app.pretrain.card import is_base, write_card
from pt_app.pretrain.corpus import Corpus
from pt_app.pretrain.model import count_parameters, new_model, save
from pt_app.pretrain.sentences import GrammarSentences, RealSentences, Sentences
from pt_app.pretrain.tokenizer import train_tokenizer
from pt_app.pretrain.train import Recipe, Yardstick, fit

QUICK_STEPS = 2000


@dataclass(frozen=True)
class Settings:
    """What decides a base, to the byte on one kind of machine."""

    seed: int
    lexicon: LexiconSize
    corpus: Path | None
    max_words: int | None
    vocab_size: int
    width: int
    layers: int
    recipe: Recipe

    def command(self) -> str:
        """The command that builds this base."""
        parts = ["judge base train --output FOLDER", f"--seed {self.seed}"]
        parts.append(f"--steps {self.recipe.steps}")
        if self.corpus is None:
            parts.append(f"--lexicon {self.lexicon}")
        else:
            parts.append(f"--corpus {self.corpus.name}")
        if self.max_words is not None:
            parts.append(f"--max_words {self.max_words}")
        return " ".join(parts)


def train_base(
    output: Path,
    seed: int = 0,
    steps: int | None = None,
    quick: bool = False,
    corpus: Path | None = None,
    lexicon: LexiconSize = "full",
    max_words: int | None = None,
    vocab_size: int = 2048,
    width: int = 128,
    layers: int = 5,
    batch: int = 16,
) -> Path:
    """Train a tokenizer and a tiny model from random weights into the folder `output`.

    `steps` by default is the full setting (at most 2 hours on 2 cores), or with `quick` a tenth
    of it. `corpus`, a TMX or TSV file of English and Portuguese, replaces the grammar's
    sentences. An interrupted training is taken up where the same command is given again.
    Raises UserError for settings out of range, a broken corpus, and an `output` that holds
    anything but a base made by this function.
    """
    recipe = Recipe(steps=_steps(steps, quick), batch=batch)
    corpus = Path(corpus) if corpus is not None else None
    settings = Settings(seed, lexicon, corpus, max_words, vocab_size, width, layers, recipe)
    output = Path(output)
    _check(settings, output)
    sentences: Sentences = (
        GrammarSentences(lexicon) if corpus is None else RealSentences(corpus, max_words)
    )
    work = _work_folder(output, settings)
    training, measuring = Corpus(sentences), Corpus(sentences, measuring=True)
    tokenizer = train_tokenizer(_texts(training, seed), vocab_size)
    model = new_model(tokenizer, width, layers - recipe.new_layers, seed)
    yardstick = Yardstick(measuring, tokenizer)
    from pt_app.models.contention import watched  # with torch, which `judge base path` spares

    with watched("cpu"):
        measures = fit(model, tokenizer, training, yardstick, recipe, seed, work / "state.pt")
    made = work / "base"
    save(model, tokenizer, made)
    facts = {
        "command": f"`{settings.command()}`",
        "corpus": sentences.description,
        "seed": seed,
        "steps": f"{recipe.steps} of {recipe.batch} documents",
        "parameters": f"{count_parameters(model):,}",
        "held-out loss": f"{measures.loss:.4f} nats a token, weights rounded to float16",
    }
    write_card(made, facts, measures.detected)
    _put_in_place(made, output)
    shutil.rmtree(work)
    return output


def _steps(steps: int | None, quick: bool) -> int:
    if steps is not None:
        return steps
    return QUICK_STEPS if quick else Recipe().steps


def _check(settings: Settings, output: Path) -> None:
    """Raise UserError for what a user can mend, before anything is written."""
    lowest = {"vocab_size": 300, "width": 32, "layers": 2, "seed": 0}
    values = asdict(settings) | asdict(settings.recipe)
    for name, least in (lowest | {"steps": 1, "batch": 1}).items():
        if values[name] < least:
            raise UserError(f"--{name} is {values[name]}: choose a whole number from {least} on")
    if settings.width % 32:
        raise UserError(f"--width is {settings.width}: choose a multiple of 32")
    if settings.max_words is not None and settings.corpus is None:
        raise UserError("--max_words filters a corpus: name one with --corpus, or leave it out")
    if settings.corpus is not None:
        refuse_overwrite([output], [settings.corpus], "--output")
    if output.exists() and not is_base(output):
        raise UserError(
            f"{output} is there and is no base that this command made: "
            "choose another folder with --output"
        )


def _work_folder(output: Path, settings: Settings) -> Path:
    """A folder beside `output` for what an interrupted training leaves; named by its settings."""
    key = sha256(json.dumps(asdict(settings), default=str).encode()).hexdigest()[:8]
    folder = output.parent / f".{output.name}-{key}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror})") from error
    return folder


def _texts(corpus: Corpus, seed: int, documents: int = 20_000) -> Iterator[str]:
    """What the tokenizer learns from: documents like those of the training."""
    rng = random.Random(f"{seed} tokenizer")
    for _ in range(documents):
        document = corpus.sample(rng)
        yield document.prompt + document.answer


def _put_in_place(made: Path, output: Path) -> None:
    """Rename the finished folder; an older base of that name goes once the new one is whole."""
    old = output.with_name(f".{output.name}.old")
    if output.exists():
        os.replace(output, old)
    os.replace(made, output)
    shutil.rmtree(old, ignore_errors=True)
