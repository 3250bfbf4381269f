"""Shows prompts as the model will read them, and which of their tokens training supervises."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.core.records import JudgeExample

if TYPE_CHECKING:
    from rich.text import Text

    from pt_app.core.prompts import Encoded, PromptEncoder

SUPERVISED, CONTROL, PROMPT = "bold green", "cyan", "dim"
WIDTH = 80
# Where there is no colour, marks say it; within data they are shown as escapes.
_MARKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "⟦⟧‹›"}


def preview(
    folder: Path,
    *,
    model: str = "tiny",
    n: int = 3,
    split: str = "train",
    ids: bool = False,
    max_seq_length: int = 512,
) -> None:
    """Print the first `n` rows of a split as their tokens, the supervised ones in bold green.

    Where the output has no colour, they are ⟦marked⟧, and control tokens ‹so›. Rows are cut to
    `max_seq_length` tokens as training cuts them. Escape sequences, invisible characters and these
    marks within data are shown as \\u.... Raises UserError for rows that cannot be read.
    """
    from rich.console import Console

    if n < 1:
        raise UserError(f"-n {n} shows no row: ask for 1 or more")
    rows, encoder = _prepare(folder, model, split, max_seq_length)
    encoded = _encoded(rows, n, encoder)
    console = Console(highlight=False)
    marked = console.color_system is None or console.no_color
    console.print(_legend(marked), soft_wrap=True)
    for number, (row, one) in enumerate(zip(rows, encoded, strict=False), start=1):
        console.print()
        console.print(_heading(row, number, len(rows), one, encoder), soft_wrap=True)
        if isinstance(one, str):
            continue
        console.print(_tokens(one, encoder, marked), soft_wrap=True)
        for line in _id_lines(one, encoder) if ids else ():
            console.print(line, style=PROMPT, markup=False, soft_wrap=True)


def _prepare(
    folder: Path, model: str, split: str, max_seq_length: int
) -> tuple[list[JudgeExample], "PromptEncoder"]:
    """Read one split as training lays it out, and build the encoder that it would use."""
    from pt_app.core.dataset import card_scale, read_card, read_rows
    from pt_app.core.orders import both_orders
    from pt_app.core.prompt_templates import Template
    from pt_app.core.prompts import PromptEncoder
    from pt_app.models import bases

    path = folder / f"judge_{split}.json"
    if not path.exists():
        known = ", ".join(sorted(p.name for p in folder.glob("judge_*.json"))) or "none"
        raise UserError(
            f"{path} is not there (of its kind: {known}): name a dataset folder, and one of its "
            "splits with --split"
        )
    card = read_card(folder)
    rows = read_rows(path, card, split)
    rows = rows if split == "test" else both_orders(rows)
    tokenizer = bases.load_tokenizer(bases.resolve_tokenizer(model))
    scale = card_scale(card, folder / "dataset.json")
    template = Template.load(card.template, card.rubric)
    return rows, PromptEncoder(tokenizer, template, scale, max_seq_length)


def _encoded(
    rows: Sequence[JudgeExample], n: int, encoder: "PromptEncoder"
) -> list["Encoded | str"]:
    """Encode the first `n` rows; of one that does not fit say why.

    All rows of their groups are encoded with them, because a group is cut alike.
    """
    groups = {row.group for row in rows[:n]}
    together = [at for at, row in enumerate(rows) if row.group in groups]
    encoded, _ = encoder.fit([rows[at] for at in together])
    of_row = dict(zip(together, encoded, strict=True))
    return [of_row[at].unfit or of_row[at] for at in range(len(rows[:n]))]


def _legend(marked: bool) -> "Text":
    from rich.text import Text

    supervised, control = (
        ("⟦supervised⟧", "‹control token›") if marked else ("supervised", "control")
    )
    return Text.assemble(
        (supervised, SUPERVISED), ", ", (control, CONTROL), "; the rest is read, not learned"
    )


def _heading(
    row: JudgeExample, number: int, count: int, one: "Encoded | str", encoder: "PromptEncoder"
) -> "Text":
    """Say in one line which row it is, its verdict, its tokens, and whether it was cut."""
    from rich.text import Text

    verdict = (row.answer(encoder.scale) or "no label").partition("\n")[0]
    said = f"row {number} of {count}, {' '.join(_shown(row.id).split())}, {verdict}: "
    if isinstance(one, str):
        return Text(said + _shown(one), style="bold red")
    prompt = one.prompt_length
    said += f"{prompt} tokens of prompt + {len(one.input_ids) - prompt} supervised"
    if cut := len(encoder.prompt_ids(row)) - prompt:
        said += f", cut by {cut} to fit {encoder.max_seq_length}"
    return Text(said, style="bold")


def _tokens(one: "Encoded", encoder: "PromptEncoder", marked: bool) -> "Text":
    """Give the text of a row's tokens; Text, so that no data is taken for markup."""
    from rich.text import Text

    text = Text()
    for supervised, start, end in _parts(one):
        text.append("⟦" if supervised and marked else "", SUPERVISED)
        for at, stop, control in _runs(one.input_ids, start, end, encoder):
            piece = _shown(_decoded(one.input_ids, at, stop, encoder))
            piece = f"‹{piece}›" if control and marked else piece
            text.append(piece, SUPERVISED if supervised else CONTROL if control else PROMPT)
        text.append("⟧" if supervised and marked else "", SUPERVISED)
    return text


def _parts(one: "Encoded") -> tuple[tuple[bool, int, int], ...]:
    """Give prompt and supervised part as (supervised, start, end)."""
    return (False, 0, one.prompt_length), (True, one.prompt_length, len(one.input_ids))


def _runs(
    ids: Sequence[int], start: int, end: int, encoder: "PromptEncoder"
) -> Iterator[tuple[int, int, bool]]:
    """Give stretches of plain tokens, and each control token alone, as (start, end, control)."""
    control = {*encoder.tokenizer.added_tokens_decoder, *encoder.tokenizer.all_special_ids}
    at = start
    while at < end:
        stop = at + 1
        while ids[at] not in control and stop < end and ids[stop] not in control:
            stop += 1
        yield at, stop, ids[at] in control
        at = stop


def _decoded(ids: Sequence[int], start: int, end: int, encoder: "PromptEncoder") -> str:
    """Decode a stretch as it reads after what precedes it: alone it may lose its first space."""
    decode = encoder.tokenizer.decode
    before, whole = (decode(ids[:at], clean_up_tokenization_spaces=False) for at in (start, end))
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(decode(ids[start:end], clean_up_tokenization_spaces=False))


def _id_lines(one: "Encoded", encoder: "PromptEncoder") -> Iterator[str]:
    """Give each token's id and text, lines of at most 80 columns where tokens are no longer."""
    for supervised, start, end in _parts(one):
        line = "supervised ids:" if supervised else "prompt ids:"
        for id_ in one.input_ids[start:end]:
            piece = encoder.tokenizer.decode([id_], clean_up_tokenization_spaces=False)
            entry = f" {id_} {json.dumps(_shown(piece), ensure_ascii=False)}"
            if len(line) + len(entry) > WIDTH:
                yield line
                line = " "
            line += entry
        yield line


def _shown(text: str) -> str:
    """Show what a terminal would obey, and the marks of this page, as escapes."""
    return visible(text).translate(_MARKS)
