"""`judge base train`: tokenizer, training, and the folder that holds the result with its card."""

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file, write_text_atomic
from pt_app.core.flags import check, flag
from pt_app.judge_data.folder import replace_folder
from pt_app.judge_data.options import LexiconSize
from pt_app.pretrain.corpus import Corpus, grammar_sentences, real_sentences
from pt_app.pretrain.model import new_model, save
from pt_app.pretrain.tokenizer import train_tokenizer
from pt_app.pretrain.train import Recipe, Yardstick, fit

QUICK_STEPS = 2000
CARD, MADE_BY = "README.md", "Made by `judge base train`"
TEMPLATE = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class BaseOptions:
    """The flags of `judge base train`, and the model's size: they decide a base.

    On one kind of machine they decide it to the byte. `steps` is by default a full training's (at
    most 2 hours on 2 cores), or with `quick` a seventh of it. `corpus`, a TMX or TSV file of
    English and Portuguese, replaces the grammar's sentences.
    """

    seed: int = flag("seed of corpus, weights and order", 0, low=0)
    steps: int | None = flag("number of optimizer steps", None, low=1)
    quick: bool = False
    lexicon: LexiconSize = "full"
    corpus: Path | None = None
    max_words: int | None = flag("maximum length of a sentence of the corpus", None, low=3)
    vocab_size: int = flag("entries of the vocabulary", 2048, low=300)
    width: int = flag("hidden size", 128, low=32)
    layers: int = flag("number of layers", 5, low=2)

    @property
    def recipe(self) -> Recipe:
        """The optimizer steps and what happens at which of them."""
        if self.steps is not None:
            return Recipe(self.steps)
        return Recipe(QUICK_STEPS) if self.quick else Recipe()

    def command(self) -> str:
        """Write the command that builds this base."""
        corpus = f"--corpus {self.corpus.name}" if self.corpus else f"--lexicon {self.lexicon}"
        max_words = f" --max_words {self.max_words}" if self.max_words is not None else ""
        return (
            f"judge base train --output FOLDER --seed {self.seed} --steps {self.recipe.steps} "
            f"{corpus}{max_words}"
        )

    def check(self, output: Path) -> None:
        """Raise UserError for what a user can fix, before anything is written."""
        check(self)
        if self.max_words is not None and self.corpus is None:
            raise UserError("--max_words filters a corpus: name one with --corpus, or leave it out")
        if self.width % 32:
            raise UserError(f"--width is {self.width}: choose a multiple of 32")
        if self.corpus is not None:
            refuse_overwrite([output], [self.corpus], "--output")
        card = output / CARD
        made = card.is_file() and MADE_BY in card.read_text(encoding="utf-8", errors="replace")
        if output.exists() and not made:
            raise UserError(
                f"{output} is there and is no base that this command made: "
                "choose another folder with --output"
            )


def train_base(output: Path, options: BaseOptions) -> Path:
    """Train a tokenizer and a tiny model from random weights into the folder `output`.

    An interrupted training resumes where the same command is given again. Raises UserError for
    options out of range, a broken corpus, and an `output` that holds anything but a base made by
    this function.
    """
    options.check(output)
    seed, recipe = options.seed, options.recipe
    sentences = (
        grammar_sentences(options.lexicon)
        if options.corpus is None
        else real_sentences(options.corpus, options.max_words)
    )
    work = _work_folder(output, options)
    training, measuring = Corpus(sentences), Corpus(sentences, measuring=True)
    tokenizer = train_tokenizer(_texts(training, seed), options.vocab_size)
    model = new_model(tokenizer, options.width, options.layers - recipe.new_layers, seed)
    yardstick = Yardstick(measuring, tokenizer)
    measures = fit(model, tokenizer, training, yardstick, recipe, seed, work)
    made = work / "base"
    save(model, tokenizer, made)
    facts = {
        "command": f"`{options.command()}`",
        "corpus": sentences.description,
        "seed": seed,
        "steps": f"{recipe.steps} of {recipe.batch} documents",
        "parameters": f"{model.num_parameters():,}",
        "held-out loss": f"{measures.loss:.4f} nats a token, weights rounded to float16",
        "weights sha256": sha256_file(made / "model.safetensors"),
        "tokenizer sha256": sha256_file(made / "tokenizer.json"),
    }
    detected = {kind: f"{share:.2f}" for kind, share in measures.detected.items()}
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.format(made_by=MADE_BY, facts=_lines(facts), kinds=_lines(detected))
    write_text_atomic(made / CARD, text)
    replace_folder(made, output)
    shutil.rmtree(work)
    return output


def _lines(table: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in table.items())


def _work_folder(output: Path, options: BaseOptions) -> Path:
    """Make a folder beside `output`, named by the options, for an interrupted training's state."""
    decisive = asdict(options) | {"steps": options.recipe.steps, "quick": False}
    key = sha256(json.dumps(decisive, default=str).encode()).hexdigest()[:8]
    folder = output.parent / f".{output.name}-{key}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror})") from error
    return folder


def _texts(corpus: Corpus, seed: int, documents: int = 20_000) -> Iterator[str]:
    """Yield what the tokenizer learns from: documents like those of the training."""
    rng = random.Random(f"{seed} tokenizer")
    for _ in range(documents):
        document = corpus.sample(rng)
        yield document.prompt + document.answer
