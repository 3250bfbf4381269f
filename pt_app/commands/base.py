"""`judge base`: the tiny offline base, and how it is made."""

from pathlib import Path

from pt_app.commands.flags import Commands, flag
from pt_app.pretrain.options import BaseOptions

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
    options: BaseOptions,
) -> None:
    """Train a tokenizer and a tiny base from scratch; at most 2 hours on 2 cores."""
    from pt_app.core import console
    from pt_app.pretrain.build import train_base

    console.start()
    print(f"base: {train_base(output, options)}")
