"""Show prompts as the model reads them, and which of their tokens training supervises."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pt_app.core.dataset import DatasetCard, card_scale, read_card, read_rows
from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.core.orders import both_orders
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import Encoded, PromptEncoder
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale

SUPERVISED, CONTROL, PROMPT = "bold green", "cyan", "dim"
WIDTH = 80
# Where there is no colour, these marks stand for it; within data they are shown as escapes.
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
    if n < 1:
        raise UserError(f"-n {n} shows no row: ask for 1 or more")
    card = read_card(folder)
    rows = _rows_of(folder, card, split)
    scale = card_scale(card, folder / "dataset.json")
    encoder = encoder_of(card, scale, model, max_seq_length)
    console = Console(highlight=False)
    marked = console.color_system is None or console.no_color
    names = ("⟦supervised⟧", "‹control token›") if marked else ("supervised", "control")
    supervised, control = zip(names, (SUPERVISED, CONTROL), strict=True)
    legend = Text.assemble(supervised, ", ", control, "; the rest is read, not learned")
    console.print(legend, soft_wrap=True)
    for number, (row, encoded) in enumerate(_encoded(rows, n, encoder), start=1):
        heading = f"\nrow {number} of {len(rows)}, {' '.join(_shown(row.id).split())}"
        console.print(_heading(heading, row, encoded, encoder), soft_wrap=True)
        if isinstance(encoded, str):
            continue
        console.print(_tokens(encoded, encoder, marked), soft_wrap=True)
        for line in _id_lines(encoded, encoder) if ids else ():
            console.print(line, style=PROMPT, markup=False, soft_wrap=True)


def encoder_of(card: DatasetCard, scale: Scale, model: str, max_seq_length: int) -> PromptEncoder:
    """Build the encoder with which a model would be trained on a dataset."""
    from transformers.utils import logging

    from pt_app.models import bases

    logging.set_verbosity_error()  # the tokenizer warns of long rows, which are counted here
    tokenizer = bases.load_tokenizer(bases.resolve_tokenizer(model))
    template = Template.load(card.template, card.rubric)
    return PromptEncoder(tokenizer, template, scale, max_seq_length)


def _rows_of(folder: Path, card: DatasetCard, split: str) -> list[JudgeExample]:
    """Read one split as training reads it, pairs in both orders."""
    path = folder / f"judge_{split}.json"
    if not path.exists():
        there = ", ".join(sorted(p.name for p in folder.glob("judge_*.json"))) or "none"
        raise UserError(
            f"{path} is not there (of its kind: {there}): name a dataset folder, and one of its "
            "splits with --split"
        )
    rows = read_rows(path, card, split)
    return rows if split == "test" else both_orders(rows)


def _encoded(
    rows: Sequence[JudgeExample], n: int, encoder: PromptEncoder
) -> Iterator[tuple[JudgeExample, Encoded | str]]:
    """Yield the first `n` rows with their tokens, or with the reason why they do not fit.

    All rows of their groups are encoded with them, because a group is cut alike.
    """
    groups = {row.group for row in rows[:n]}
    together = [at for at, row in enumerate(rows) if row.group in groups]
    encoded, _ = encoder.fit([rows[at] for at in together])
    of_row = dict(zip(together, encoded, strict=True))
    for at, row in enumerate(rows[:n]):
        yield row, of_row[at].unfit or of_row[at]


def _heading(
    heading: str, row: JudgeExample, encoded: Encoded | str, encoder: PromptEncoder
) -> Text:
    """Add to a row's heading its verdict, its tokens, and whether it was cut."""
    verdict, *_ = (row.answer(encoder.scale) or "no label").split("\n")
    heading += f", {verdict}: "
    if isinstance(encoded, str):
        return Text(heading + _shown(encoded), style="bold red")
    prompt = encoded.prompt_length
    heading += f"{prompt} tokens of prompt + {len(encoded.input_ids) - prompt} supervised"
    if cut := len(encoder.prompt_ids(row)) - prompt:
        heading += f", cut by {cut} to fit {encoder.max_seq_length}"
    return Text(heading, style="bold")


def _tokens(encoded: Encoded, encoder: PromptEncoder, marked: bool) -> Text:
    """Return the text of a row's tokens; Text, so that no data is taken for markup."""
    text = Text()
    for supervised, start, end in _parts(encoded):
        opening, closing = "⟦⟧" if supervised and marked else ("", "")
        text.append(opening, SUPERVISED)
        for at, stop, control in _runs(encoded.input_ids, start, end, encoder):
            piece = _shown(_decoded(encoded.input_ids, at, stop, encoder))
            piece = f"‹{piece}›" if control and marked else piece
            text.append(piece, SUPERVISED if supervised else CONTROL if control else PROMPT)
        text.append(closing, SUPERVISED)
    return text


def _parts(encoded: Encoded) -> tuple[tuple[bool, int, int], ...]:
    """Return prompt and supervised part as (supervised, start, end)."""
    prompt = encoded.prompt_length
    return (False, 0, prompt), (True, prompt, len(encoded.input_ids))


def _runs(
    ids: Sequence[int], start: int, end: int, encoder: PromptEncoder
) -> Iterator[tuple[int, int, bool]]:
    """Yield runs of plain tokens, and each control token alone, as (start, end, control)."""
    control = {*encoder.tokenizer.added_tokens_decoder, *encoder.tokenizer.all_special_ids}
    runs = groupby(range(start, end), lambda at: at if ids[at] in control else None)
    for control_at, run in runs:
        first, *rest = run
        yield first, first + len(rest) + 1, control_at is not None


def _decoded(ids: Sequence[int], start: int, end: int, encoder: PromptEncoder) -> str:
    """Decode a run as it reads behind what precedes it: alone it may lose its first space."""
    decode = encoder.tokenizer.decode
    before, whole = (decode(ids[:at], clean_up_tokenization_spaces=False) for at in (start, end))
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(decode(ids[start:end], clean_up_tokenization_spaces=False))


def _id_lines(encoded: Encoded, encoder: PromptEncoder) -> Iterator[str]:
    """Yield ids and texts of the tokens, in lines of at most 80 columns if no token is longer."""
    for supervised, start, end in _parts(encoded):
        line = "supervised ids:" if supervised else "prompt ids:"
        for id_ in encoded.input_ids[start:end]:
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
