"""`judge base`: the tiny offline base, and how it is made."""

from pathlib import Path

from pt_app.commands.flags import Commands
from pt_app.core.flags import flag
from pt_app.judge_data.options import LexiconSize

base = Commands(help="The tiny offline base (--model tiny).")


@base.command("path")
def base_path() -> None:
    """Print the path of the shipped tiny base, for stock transformers and peft."""
    from pt_app.models.bases import shipped

    print(shipped())


@base.command("train")
def base_train(
    *,
    output: Path = flag("output folder"),
    seed: int = flag("seed of corpus, weights and order", 0),
    quick: bool = flag("train a weak base within 6 minutes", False),
    steps: int | None = flag("number of optimizer steps; default: a full training", None),
    lexicon: LexiconSize = flag("lexicon of the grammar", "full"),
    corpus: Path | None = flag("parallel corpus (TMX, TSV) instead of the grammar", None),
    max_words: int | None = flag(
        "maximum length of a sentence of the corpus; longer ones are skipped", None, unit="words"
    ),
) -> None:
    """Train a tokenizer and a tiny base from scratch; at most 2 hours on 2 cores."""
    from pt_app.core import console
    from pt_app.pretrain.build import BaseOptions, train_base

    console.start()
    options = BaseOptions(seed, steps, quick, lexicon, corpus, max_words)
    print(f"base: {train_base(output, options)}")
