"""`judge base`: the tiny offline base, and how it is made."""

from pathlib import Path
from typing import Annotated

import typer

from pt_app.commands.flags import Lexicons

base = typer.Typer(help="The tiny offline base (--model tiny).")


@base.command("path")
def base_path() -> None:
    """Print the path of the shipped tiny base, for stock transformers and peft."""
    from pt_app.models.bases import shipped

    print(shipped())


@base.command("train")
def base_train(
    output: Annotated[Path, typer.Option(help="output folder")],
    seed: Annotated[int, typer.Option(help="seed of corpus, weights and order")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="train a weak base within 6 minutes")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="number of optimizer steps; default: a full training")
    ] = None,
    lexicon: Annotated[Lexicons, typer.Option(help="lexicon of the grammar")] = "full",
    corpus: Annotated[
        Path | None, typer.Option(help="parallel corpus (TMX, TSV) instead of the grammar")
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max_words", help="maximum words per corpus sentence; longer ones are skipped"
        ),
    ] = None,
) -> None:
    """Train a tokenizer and a tiny base from scratch; at most 2 hours on 2 cores."""
    from pt_app.pretrain.build import BaseOptions, train_base

    options = BaseOptions(seed, steps, quick, lexicon, corpus, max_words)
    print(f"base: {train_base(output, options)}")
