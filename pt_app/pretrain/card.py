"""The card of a base: how it was made and what was measured, as README.md in its folder."""

from collections.abc import Mapping
from pathlib import Path

from pt_app.core.files import sha256_file, write_text_atomic

CARD, WEIGHTS, TOKENIZER = "README.md", "model.safetensors", "tokenizer.json"
MADE_BY = "Made by `judge base train`"

_TEXT = """---
license: apache-2.0
language: [en, pt]
library_name: transformers
---

# A tiny base for English-Portuguese judges

{made_by}: a byte-level BPE tokenizer and a Qwen2 model, both trained from nothing. It knows the
sentences below and the differences between two of them; no score in its text follows from a
translation. It is for demos, tests and first tries without a network, under an adapter.

| | |
|---|---|
{rows}

Detection rate: how often the likeliest next token names the one difference of a held-out
candidate (`none`: that there is no difference).

| kind | detected |
|---|---|
{kinds}
"""


def write_card(folder: Path, facts: Mapping[str, object], detected: Mapping[str, float]) -> None:
    """Write the card beside the weights and tokenizer, whose hashes it adds to `facts`."""
    hashes = {
        "weights sha256": sha256_file(folder / WEIGHTS),
        "tokenizer sha256": sha256_file(folder / TOKENIZER),
    }
    rows = [f"| {name} | {value} |" for name, value in {**facts, **hashes}.items()]
    kinds = [f"| {kind} | {share:.2f} |" for kind, share in detected.items()]
    text = _TEXT.format(made_by=MADE_BY, rows="\n".join(rows), kinds="\n".join(kinds))
    write_text_atomic(folder / CARD, text)


def read_card(folder: Path) -> dict[str, str]:
    """The facts of a base's card by name, and the detection rate of each kind."""
    facts: dict[str, str] = {}
    for line in (folder / CARD).read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and len(cells := line.strip("| ").split(" | ")) == 2:
            facts[cells[0]] = cells[1]
    return facts


def is_base(folder: Path) -> bool:
    """Whether a folder holds a base that `judge base train` made."""
    card = folder / CARD
    return card.is_file() and MADE_BY in card.read_text(encoding="utf-8", errors="replace")
