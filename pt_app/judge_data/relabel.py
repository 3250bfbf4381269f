"""`judge data relabel`: the same person labels rows again, blind.

How far they agree with themselves is as far as a judge can be expected to agree with them.
"""

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from pt_app.core.dataset import JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic, write_text_atomic
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people
from pt_app.evidence.coding import numbers_of
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import summarise
from pt_app.judge_data.card import ONESELF, table, with_section
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.options import Reading
from pt_app.judge_data.reading.tables import open_table

TEXTS = (
    "source",
    "conversation",
    "context",
    "reference",
    "candidate",
    "candidate_a",
    "candidate_b",
)
HEAD = ("row", *TEXTS, "verdict", "comment")
# A spreadsheet runs a cell that starts so as a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
WORST = 10


def write_blind(folder: Path, n: int, out: Path, seed: int = 0) -> list[str]:
    """Write `n` rows of a dataset as CSV, shuffled and without their labels; say how to go on.

    Labels are drawn evenly, so that rare ones are labelled again too. Raises UserError for a file
    that is there, and for more rows than the dataset has.
    """
    refuse_overwrite([out], [folder])
    data = read_dataset(folder, allow_leaks=True)
    rows = [row for row in _rows(data) if row.prompt is None]
    if not rows:
        raise UserError(f"{folder} holds rows of chat alone, whose texts cannot be told apart")
    if not 0 < n <= len(rows):
        raise UserError(f"-n is {n}: choose 1 to {len(rows)}, the rows of {folder}")
    if out.exists():
        raise UserError(f"{out} is there, maybe filled in: choose another --out, or delete it")
    drawn = _evenly(rows, n, random.Random(seed))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    held = {name for row in drawn for name in texts_of(row)}
    used = [name for name in HEAD if name not in TEXTS or name in held]
    writer.writerow(used)
    for row in drawn:
        cells = {"row": opaque(row.id), **texts_of(row)}
        writer.writerow([_guarded(cells.get(name, "")) for name in used])
    # The mark makes spreadsheets read the file as UTF-8.
    write_text_atomic(out, "\ufeff" + text.getvalue())
    return [
        f"{out}: {n} rows, shuffled, without labels",
        f"fill in the column verdict ({data.scale.says()}), then:",
        f"judge data relabel {folder} --read {out}",
    ]


def read_back(folder: Path, file: Path, encoding: str = "") -> list[str]:
    """Compare a filled-in file with the labels; keep the agreement in dataset.json and its card.

    Raises UserError for a row that is not of this dataset, a verdict off the scale, and a file in
    which nothing is filled in.
    """
    data = read_dataset(folder, allow_leaks=True)
    known = {opaque(row.id): row for row in _rows(data)}
    filled = open_table(str(file), Reading(encoding=encoding))
    if not {"row", "verdict"} <= set(filled.columns):
        raise UserError(f"{file} has no columns row and verdict: read back the file as written")
    reader = LabelReader(data.scale).on(filled, ["verdict"])
    again: dict[str, tuple[JudgeExample, Verdict]] = {}
    empty = 0
    for place, value in filled.rows():
        name = str(value["row"]).strip()
        if name not in known:
            raise place.error(
                "row", f"{name!r} is no row of {folder}", "leave that column as it is"
            )
        verdict = reader.verdict(value["verdict"], place, "verdict")
        if verdict is None:
            empty += 1
            continue
        again[name] = (known[name], verdict)
    if not again:
        raise UserError(f"{file}: no verdict is filled in: fill in that column and read it again")
    agreement = self_agreement(list(again.values()), data.scale)
    _keep(data, agreement)
    lines = [f"{len(again)} rows labelled again, {empty} left empty", *reader.notes()]
    lines += _told(agreement)
    return lines + _worst(list(again.values()), data.scale)


def self_agreement(pairs: Sequence[tuple[JudgeExample, Verdict]], scale: Scale) -> dict[str, Any]:
    """Measure first against second labels: exact agreement and kappa, with intervals by group."""
    first = [row.label.verdict for row, _ in pairs if row.label]
    second = [verdict for _, verdict in pairs]
    sample = Resampler([row.group for row, _ in pairs])
    metrics = summarise(first, second, second, sample, scale).metrics
    exact = metrics["exact" if scale.task == "score" else "accuracy"].as_json()
    agreement = {"exact": exact, "kappa": metrics["kappa"].as_json()}
    if scale.task == "score":
        agreement["kappa_quadratic"] = metrics["kappa_quadratic"].as_json()
    return agreement


def texts_of(row: JudgeExample) -> dict[str, str]:
    """Give a row's texts by their column."""
    first, second = row.candidates or (None, None)
    turns = "\n".join(f"{turn.role}: {turn.content}" for turn in row.conversation or ())
    cells = (row.source, turns, row.context, row.reference, row.candidate, first, second)
    return {name: text for name, text in zip(TEXTS, cells, strict=True) if text}


def opaque(name: str) -> str:
    """Give a row's name in the file, which tells nothing of its split or label."""
    return "r" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _rows(data: JudgeData) -> list[JudgeExample]:
    return [*data.train, *data.val, *data.test]


def _evenly(rows: Sequence[JudgeExample], n: int, rng: random.Random) -> list[JudgeExample]:
    """Draw rows label by label in turns, then shuffle them."""
    by_label: dict[str, list[JudgeExample]] = {}
    for row in rng.sample(list(rows), len(rows)):
        by_label.setdefault(str(row.label.verdict if row.label else ""), []).append(row)
    drawn: list[JudgeExample] = []
    while len(drawn) < n:
        for left in by_label.values():
            if left and len(drawn) < n:
                drawn.append(left.pop())
    return rng.sample(drawn, n)


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _keep(data: JudgeData, agreement: Mapping[str, Any]) -> None:
    """Write the agreement into dataset.json and, where there is one, into the card."""
    path, page = data.path / "dataset.json", data.path / "README.md"
    about = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if page.exists():
        body = table(people.ROW, people.self_table(agreement))
        text = with_section(page.read_text("utf-8"), ONESELF, body)
        write_text_atomic(page, text)
    write_json_atomic(path, about | {"self_agreement": dict(agreement)})


def _told(agreement: Mapping[str, Any]) -> list[str]:
    rows = people.self_table(agreement)
    return [f"  {name}: {value} {interval} (n {n})" for name, value, interval, n in rows]


def _worst(pairs: Sequence[tuple[JudgeExample, Verdict]], scale: Scale) -> list[str]:
    """Name the rows that were labelled otherwise, farthest first."""
    numbers = numbers_of(scale)

    def distance(pair: tuple[JudgeExample, Verdict]) -> float:
        row, verdict = pair
        assert row.label is not None, "a dataset's rows have labels"
        if numbers is None:
            return float(row.label.verdict != verdict)
        return float(np.abs(float(row.label.verdict) - float(verdict)))

    wrong = sorted(
        (pair for pair in pairs if distance(pair)), key=lambda p: (-distance(p), p[0].id)
    )
    lines = [f"{len(wrong)} rows to look at again, farthest first:"] if wrong else []
    lines += [
        f"  {row.id} ({row.where}): {row.label.verdict if row.label else ''}, then {verdict}"
        for row, verdict in wrong[:WORST]
    ]
    more = [f"  and {len(wrong) - WORST} more"] if len(wrong) > WORST else []
    return lines + more
