"""`judge base train`: tokenizer, training, and the folder that holds the result with its card."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, refuse_overwrite, sha256_file, write_text_atomic
from pt_app.core.flags import check
from pt_app.judge_data.folder import replace_folder
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.tiny_base.corpus import Corpus
from pt_app.tiny_base.model import new_model, save
from pt_app.tiny_base.options import BaseOptions
from pt_app.tiny_base.train import BATCH, DocumentSteps, Yardstick, fit

CARD, MADE_BY = "README.md", "Made by `judge base train`"
TEMPLATE = Path(__file__).with_name("card.md")


def train_base(output: Path, options: BaseOptions) -> Path:
    """Train a tokenizer and a tiny model from random weights into the folder `output`.

    An interrupted training resumes where the same command is given again. Raises UserError for
    options out of range, a broken corpus, and an `output` that holds anything but a base made by
    this function.
    """
    _check(output, options)
    if options.corpus is None:
        training = Corpus.of_grammar(options.lexicon)
    else:
        training = Corpus.of_file(options.corpus, options.max_words)
    work = _work_folder(output, options)
    tokenizer = train_tokenizer(_texts(training, options.seed), options.vocab_size)
    # The last layer is added within the training.
    model = new_model(tokenizer, options.width, options.layers - 1, options.seed)
    steps = DocumentSteps(training, tokenizer, options.total_steps, options.seed)
    yardstick = Yardstick(replace(training, measuring=True), tokenizer)
    measures = fit(model, steps, yardstick, work)
    made = work / "base"
    save(model, tokenizer, made)
    detected = [f"| {kind} | {measures[kind]:.2f} |" for kind in yardstick.kinds]
    card = TEMPLATE.read_text(encoding="utf-8").format(
        made_by=MADE_BY,
        command=options.command(),
        corpus=training.description,
        options=options,
        batch=BATCH,
        parameters=model.num_parameters(),
        loss=measures["loss"],
        weights=sha256_file(made / "model.safetensors"),
        tokenizer=sha256_file(made / "tokenizer.json"),
        kinds="\n".join(detected),
    )
    write_text_atomic(made / CARD, card)
    replace_folder(made, output)
    shutil.rmtree(work)
    return output


def _check(output: Path, options: BaseOptions) -> None:
    """Raise UserError for what a user can fix, before anything is written."""
    check(options)
    if options.max_words is not None and options.corpus is None:
        raise UserError("--max_words filters a corpus: name one with --corpus, or leave it out")
    if options.width % 32:
        raise UserError(f"--width is {options.width}: choose a multiple of 32")
    if options.corpus is not None:
        refuse_overwrite([output], [options.corpus], "--output")
    card = output / CARD
    made = card.is_file() and MADE_BY in card.read_text(encoding="utf-8", errors="replace")
    if output.exists() and not made:
        raise UserError(
            f"{output} is no base that this command made: choose another folder with --output"
        )


def _work_folder(output: Path, options: BaseOptions) -> Path:
    """Make a folder beside `output`, named by the options, for an interrupted training's state."""
    fixed = {"steps": options.total_steps, "quick": False}
    # In the order in which earlier versions hash them: their interrupted trainings resume.
    decisive = {"seed": options.seed} | fixed | asdict(options) | fixed
    key = sha256(json.dumps(decisive, default=str).encode()).hexdigest()[:8]
    folder = output.parent / f".{output.name}-{key}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(cannot_write(output, error)) from error
    return folder


def _texts(corpus: Corpus, seed: int, documents: int = 20_000) -> Iterator[str]:
    """Yield what the tokenizer learns from: documents like those of the training."""
    rng = random.Random(f"{seed} tokenizer")
    for _ in range(documents):
        document = corpus.sample(rng)
        yield document.prompt + document.answer
