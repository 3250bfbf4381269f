"""A first look at a judge: rows that are typed, piped in or of a test set, answered one by one.

`judge score` is for files of rows, `judge eval` for numbers.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from pt_app.core import console
from pt_app.core.dataset import draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import parse_json
from pt_app.core.formatting import UNDEFINED, number, shortened, visible
from pt_app.core.grids import USUAL
from pt_app.core.prompt_templates import row_fields
from pt_app.core.records import Place
from pt_app.core.verdicts import Scale
from pt_app.judge import Judge, Judgement

MAX_BARS, BAR = 11, 40  # bars, and characters of the longest
STDIN = Path("stdin")
NOT_SHOWN = {"id", "judge", "probabilities", "answer", "problem"}
Row = dict[str, Any]


def try_rows(judge: Judge, feedback: bool = False) -> None:
    """Judge rows from stdin: field by field at a terminal, else one JSON object per line.

    Raises:
        UserError: for a judge of several questions, whether a row comes or not, and for a piped row
            that cannot be judged; at a terminal it is said, and the next row is asked for.
    """
    scale = judge.info.scale
    if not sys.stdin.isatty():
        for place, row in piped_rows(sys.stdin):
            show(judged(judge, row, place, feedback), scale)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (else a terminal cuts a pasted line after 4,095 bytes)
    print(f"{judge.name}, scale {scale.name}: type a row, or paste it as JSON; Ctrl-D ends")
    with suppress(EOFError):
        for count in range(1, sys.maxsize):
            try:
                row = typed_row(judge.info.row_fields)
                place = Place(STDIN, count, lines=False)
                show(judged(judge, row, place, feedback), scale)
            except UserError as error:
                print(error)
            except UnicodeDecodeError as error:
                print(f"that is not UTF-8 ({error.reason}): type it again")
    print()


def piped_rows(lines: Iterable[str]) -> Iterable[tuple[Place, Row]]:
    """Yield the rows of JSON Lines with their places; raises UserError for a line that is none."""
    try:
        for count, line in enumerate(lines, start=1):
            if line.strip():
                yield Place(STDIN, count, lines=True), _object(line, count)
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8 ({error.reason}): convert it") from error


def typed_row(names: Sequence[str], ask: Callable[[str], str] = input) -> Row:
    """Ask for each field of a row; a JSON object as the first answer is the whole row.

    A field that is left empty is none, but for a candidate, which may be an empty text.
    """
    row: Row = {}
    for name in names:
        text = ask(f"{name}: ")
        if not row and name == names[0] and text.lstrip().startswith("{"):
            return _object(text, 1)
        if text and name == "conversation":
            row[name] = [{"role": "user", "content": text}]
        elif text or name.startswith("candidate"):
            row[name] = text
    return row


def _object(line: str, count: int) -> Row:
    row = parse_json(line, STDIN, count)
    if not isinstance(row, dict):
        raise UserError(
            f"{STDIN}, line {count}: not a JSON object: give fields, as in docs/DATA.md"
        )
    return row


def judged(judge: Judge, row: Row, place: Place, feedback: bool = False) -> Judgement:
    """Judge one row; raises UserError if it cannot be judged."""
    (judgement,) = judge.score([row], feedback=feedback, places=[place])
    if judgement.problem:
        raise UserError(judgement.problem)
    if judgement.status == "too_long":
        limit = f"max_seq_length {judge.info.max_seq_length}"
        raise UserError(f"{place}: prompt and verdict do not fit {limit}: shorten the row")
    return judgement


def try_examples(adapter: Path, data: Path, base: str | None, rows: int = 3) -> None:
    """Judge a few test rows of a dataset folder, and print them with label and verdict.

    Raises:
        UserError: as `Judge.load` and `read_dataset`, and for data of another scale.
    """
    dataset, judge = read_dataset(data, allow_leaks=True), Judge.load(adapter, base=base)
    scale = judge.info.scale
    if dataset.scale != scale:
        raise UserError(
            f"{data} has the scale {dataset.scale.name}, the judge {scale.name}: "
            "name data of the judge's scale"
        )
    for count, example in enumerate(draw(dataset.test, rows, seed=0), start=1):
        texts = {"prompt": example.prompt, **row_fields(example)}
        _show_lines({name: text for name, text in texts.items() if text is not None})
        _show_lines({"label": example.label and example.label.verdict})
        show(judged(judge, example.as_row(scale), Place(data, count, lines=False)), scale)


def show(judgement: Judgement, scale: Scale) -> None:
    """Print what a judgement holds, its distribution as bars, and its whole answer, if there is."""
    values = {field.name: getattr(judgement, field.name) for field in fields(judgement)}
    shown = {name for name, value in values.items() if value is not None} | {"verdict", "abstain"}
    names = [name for name in values if name in shown - NOT_SHOWN]
    _show_lines({name.replace("_", " "): values[name] for name in names})
    if judgement.probabilities:
        console.show(_bars(folded(judgement.probabilities, scale)))
    if judgement.answer is not None:
        print(visible(judgement.answer.strip()))
    print(flush=True)


def folded(probabilities: Mapping[str, float], scale: Scale) -> dict[str, float]:
    """Sum the probabilities of neighbours, so that at most `MAX_BARS` are left.

    They are summed by the bins that the judge speaks, if these are few enough, else by ten of equal
    width, of which the last holds the top value too.
    """
    shown = scale if len(scale.bins) <= MAX_BARS else scale.with_grid(USUAL)
    titles = [f"{own[0]} to {own[-1]}" if len(own) > 1 else str(own[0]) for own in shown.bins]
    return dict(zip(titles, shown.gathered(list(probabilities.values())), strict=True))


def _bars(chances: Mapping[str, float]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    for name, chance in chances.items():
        table.add_row(Text(name), Text(number(chance)), Text("█" * round(BAR * chance)))
    return table


def _show_lines(values: Mapping[str, object]) -> None:
    for name, value in values.items():
        print(f"{name + ':':13} {_written(value)}")


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: UNDEFINED, True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, float) else visible(shortened(str(value)))
