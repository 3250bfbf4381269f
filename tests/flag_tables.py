"""The tables of flags in docs/, made of the tables in the code: python -m tests.flag_tables.

A page says where: `<!-- flags: data import -->`, then the table, then `<!-- end of flags -->`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import typer

from pt_app.cli import app
from pt_app.core.flags import Flag, flags_of
from pt_app.core.settings import table
from pt_app.pretrain import settings

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS: dict[str, type] = {
    "tok_train": settings.TokenizerSettings,
    "fetch_data": settings.FetchSettings,
    "base_train": settings.BaseSettings,
    "mid_train": settings.MidSettings,
    "chat_sft": settings.SftSettings,
    "base_eval": settings.EvalSettings,
    "report": settings.ReportSettings,
    "chat_cli": settings.TalkSettings,
    "chat_web": settings.ServeSettings,
    "train_gpt2": settings.Gpt2Settings,
    "train": settings.SmallSettings,
    "inference": settings.InferenceSettings,
}
SECTION = re.compile(r"(<!-- flags: (.+?) -->\n).*?(<!-- end of flags -->)", re.DOTALL)


def flags_of_command(words: str) -> list[Flag]:
    """The flags of a `judge` command; those of the recipes for "recipes".

    "scripts.NAME" names a script of the from-scratch track; "scripts.NAME beside OTHER" those of
    its flags that another script does not have, or has with another default.
    """
    if words == "recipes":
        return list(table(None).values())
    if words.startswith("scripts."):
        name, _, other = words.removeprefix("scripts.").partition(" beside ")
        known = {(each.name, each.default) for each in flags_of(SCRIPTS[other])} if other else set()
        return [e for e in flags_of(SCRIPTS[name]) if (e.name, e.default) not in known]
    command: Any = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]
    flags: list[Flag] = command.callback.flags
    return flags


def commands() -> Iterator[str]:
    """All `judge` commands with flags of their own."""

    def below(command: Any, words: list[str]) -> Iterator[str]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, [*words, name])
        if getattr(command.callback, "flags", None):
            yield " ".join(words)

    yield from below(typer.main.get_command(app), [])


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown(flags: Iterable[Flag], other_names: bool = False) -> str:
    """Write flags as a table; with the other names that a settings file may use for them."""
    header = ["flag", "default", *(["also"] if other_names else []), ""]
    rows = [header, ["---"] * len(header)]
    for each in flags:
        default = each.shown_default or ("off" if each.item is bool else "")
        default = "required" if each.default is MISSING else default
        unit = f" {each.unit}" if each.unit and re.search(r"\d", default) else ""
        also = [", ".join(f"`{name}`" for name in each.also.split())] if other_names else []
        choices = f"; {', '.join(f'`{name}`' for name in each.choices if name)}"
        text = each.help + (choices if each.choices else "")
        named = each.name.upper() if each.positional else each.option
        rows.append([f"`{named}`", f"{default}{unit}", *also, text])
    return "".join(f"| {' | '.join(map(cell, row))} |\n".replace("|  |", "| |") for row in rows)


def made(page: str) -> str:
    """A page with its tables made again."""

    def section(match: re.Match[str]) -> str:
        name = match[2]
        return match[1] + markdown(flags_of_command(name), name == "recipes") + match[3]

    return SECTION.sub(section, page)


REFERENCE = """# Flags

All flags of the recipes and of the `judge` commands, as `--help` shows them. This page is made of
the code: `python -m tests.flag_tables` writes it.

## Recipes

`judge train` and both recipes take these; `judge doctor`, `estimate` and `prefetch` take them
beside their own. `--config FILE` reads them from a YAML or JSON file, whose keys are the names
without dashes or, of transformers, TRL and peft, those of the third column: `lora.lora_alpha` is a
key of the section `lora`. A key of a section is also found by both names joined: `lora: {r: 8}` is
`lora_r`. A file with two names of one setting is refused. The command line overrules the file.
`--preset small_data` is a settings file of this package (`pt_app/core/presets/`), which both
overrule: for under 2,000 rows on a pretrained base.

<!-- flags: recipes -->
<!-- end of flags -->
"""


def reference() -> str:
    """docs/FLAGS.md: all flags."""
    sections = (
        f"\n## judge {name}\n\n<!-- flags: {name} -->\n<!-- end of flags -->\n"
        for name in commands()
    )
    return made(REFERENCE + "".join(sections))


def pages() -> dict[Path, str]:
    """What each page must be."""
    own = {path: made(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("*.md"))}
    return own | {DOCS / "FLAGS.md": reference()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
