"""Show prompts as the model reads them, and which of their tokens training supervises."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pt_app.core.dataset import DatasetCard, card_asks, find_folder, read_card, read_rows
from pt_app.core.errors import UserError
from pt_app.core.formatting import visible
from pt_app.core.grids import AUTO, choose_grid
from pt_app.core.orders import answers_of, both_orders
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import Encoded, PromptEncoder
from pt_app.core.questions import Asked
from pt_app.core.records import JudgeExample
from pt_app.core.settings import Settings

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
    chat_template: str = "",
    grid: str = AUTO,
) -> None:
    """Print the first `n` rows of a split as their tokens, the supervised ones in bold green.

    Where the output has no colour, they are ⟦marked⟧, and control tokens ‹so›. Rows are those that
    training reads: pairs in both orders, and cut to `max_seq_length` tokens; `grid` as in training.
    Escape sequences, invisible characters and these marks within data are shown as \\u.... Raises
    UserError for rows that cannot be read.
    """
    if n < 1:
        raise UserError(f"-n {n} shows no row: ask for 1 or more")
    card = read_card(find_folder(folder))
    path = folder / f"judge_{split}.json"
    if not path.exists():
        there = ", ".join(sorted(p.name for p in folder.glob("judge_*.json"))) or "none"
        remedy = "name one of its splits with --split"
        raise UserError(f"{path} is not there (of its kind: {there}): {remedy}")
    rows = read_rows(path, card, split)
    train = rows if split == "train" else _train_rows(folder, card)
    asked, why = choose_grid(grid, card_asks(card, folder / "dataset.json"), train, others=rows)
    read, shares = _as_read(rows, split)
    encoder = encoder_of(card, asked, model, max_seq_length, chat_template)
    # The rows of a group are cut alike, so all of them are encoded.
    names = dict.fromkeys(row.id for row in read)  # a row of questions has several answers
    numbers = {name: number for number, name in enumerate(names, start=1)}
    chosen = {at: row for at, row in enumerate(read) if numbers[row.id] <= n}
    groups = {row.group for row in chosen.values()}
    together = [at for at, row in enumerate(read) if row.group in groups]
    encoded = dict(zip(together, encoder.fit([read[at] for at in together])[0], strict=True))
    console = Console(highlight=False)
    marked = console.color_system is None or console.no_color
    words = ("⟦supervised⟧", "‹control token›") if marked else ("supervised", "control")
    supervised, control = zip(words, (SUPERVISED, CONTROL), strict=True)
    legend = Text.assemble(supervised, ", ", control, "; the rest is read, not learned")
    console.print(legend, soft_wrap=True)
    if why:
        console.print(why, markup=False, soft_wrap=True)
    for at, row in chosen.items():
        name = f"\nrow {numbers[row.id]} of {len(names)}, {' '.join(_shown(row.id).split())}"
        name += f", {row.asks}" if row.asks else ""
        name += f", share {shares[at]:.2g}" if shares[at] < 1 else ""
        console.print(_heading(name, row, encoded[at], encoder), soft_wrap=True)
        if encoded[at].unfit:
            continue
        console.print(_tokens(encoded[at], encoder, marked), soft_wrap=True)
        for line in _id_lines(encoded[at], encoder) if ids else ():
            console.print(line, style=PROMPT, markup=False, soft_wrap=True)


def _as_read(
    rows: Sequence[JudgeExample], split: str
) -> tuple[Sequence[JudgeExample], Sequence[float]]:
    """Return rows as they are trained or validated, and the share of each in its label.

    Pairs are in both orders. Questions have a row for each answer, whose options training lists in
    an order drawn by the default seed.
    """
    if split != "test" and rows[0].asks:
        return answers_of(rows, Settings.seed if split == "train" else None)
    rows = rows if split == "test" else both_orders(rows)
    return rows, [1.0] * len(rows)


def _train_rows(folder: Path, card: DatasetCard) -> list[JudgeExample]:
    path = folder / "judge_train.json"
    return read_rows(path, card, "train") if path.exists() else []


def encoder_of(
    card: DatasetCard, asked: Asked, model: str, max_seq_length: int, chat_template: str = ""
) -> PromptEncoder:
    """Build the encoder with which a model would be trained on a dataset."""
    from transformers.utils import logging

    from pt_app.models import bases

    logging.set_verbosity_error()  # the tokenizer warns of long rows, which are counted here
    tokenizer = bases.load_tokenizer(bases.resolve_tokenizer(model), chat_template)
    template = Template.load(card.template, card.rubric)
    return PromptEncoder(tokenizer, template, asked, max_seq_length)


def _heading(name: str, row: JudgeExample, encoded: Encoded, encoder: PromptEncoder) -> Text:
    """Describe a row: its verdict, its tokens, and whether it was cut."""
    verdict, *_ = (row.answer(encoder.scale_of(row)) or "no label").split("\n")
    if encoded.unfit:
        return Text(f"{name}, {verdict}: {_shown(encoded.unfit)}", style="bold red")
    prompt = encoded.prompt_length
    sizes = f"{prompt} tokens of prompt + {len(encoded.input_ids) - prompt} supervised"
    if cut := len(encoder.prompt_ids(row)) - prompt:
        sizes += f", cut by {cut} to fit {encoder.max_seq_length}"
    return Text(f"{name}, {verdict}: {sizes}", style="bold")


def _tokens(encoded: Encoded, encoder: PromptEncoder, marked: bool) -> Text:
    """Return the text of a row's tokens; Text, so that no data is taken for markup."""
    prompt, answer = Text(), Text()
    for piece, supervised, control in _pieces(encoded, encoder):
        shown = f"‹{_shown(piece)}›" if control and marked else _shown(piece)
        if supervised:
            answer.append(shown, SUPERVISED)
        else:
            prompt.append(shown, CONTROL if control else PROMPT)
    return Text.assemble(prompt, "⟦", answer, "⟧") if marked else prompt + answer


def _pieces(encoded: Encoded, encoder: PromptEncoder) -> Iterator[tuple[str, bool, bool]]:
    """Yield the text of each run of plain tokens, and of each control token alone.

    Returns:
        The text, whether it is supervised, and whether it is a control token.
    """
    ids, decode = encoded.input_ids, encoder.tokenizer.decode
    control = {*encoder.tokenizer.added_tokens_decoder, *encoder.tokenizer.all_special_ids}

    def run_of(at: int) -> tuple[bool, int | None]:
        return at >= encoded.prompt_length, at if ids[at] in control else None

    for (supervised, control_at), run in groupby(range(len(ids)), run_of):
        places = list(run)
        start, end = places[0], places[-1] + 1
        # As it reads behind what precedes it: alone it may lose its first space.
        before, whole = (
            decode(ids[:at], clean_up_tokenization_spaces=False) for at in (start, end)
        )
        alone = decode(ids[start:end], clean_up_tokenization_spaces=False)
        text = whole[len(before) :] if whole.startswith(before) else alone
        yield text, supervised, control_at is not None


def _id_lines(encoded: Encoded, encoder: PromptEncoder) -> Iterator[str]:
    """Yield the ids of prompt and answer with their texts, in lines of 80 columns if they fit."""
    ids, start = encoded.input_ids, encoded.prompt_length
    for name, part in (("prompt", ids[:start]), ("supervised", ids[start:])):
        line = f"{name} ids:"
        for id_ in part:
            text = encoder.tokenizer.decode([id_], clean_up_tokenization_spaces=False)
            entry = f" {id_} {json.dumps(_shown(text), ensure_ascii=False)}"
            if len(line) + len(entry) > WIDTH:
                yield line
                line = " "
            line += entry
        yield line


def _shown(text: str) -> str:
    """Show what a terminal would obey, and the marks of this page, as escapes."""
    return visible(text).translate(_MARKS)
