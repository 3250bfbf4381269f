"""`judge data relabel`: the same annotator labels rows again, blind.

How far they agree with themselves is as far as a judge can be expected to agree with them.
"""

import csv
import io
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path

from pt_app.core.dataset import JudgeData, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import read_text, refuse_overwrite, write_json_atomic, write_text_atomic
from pt_app.core.records import JudgeExample
from pt_app.core.results import JsonObject
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence import people
from pt_app.evidence.coding import coded
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import agreement_metrics
from pt_app.judge_data.card import table
from pt_app.judge_data.folder import raw_card
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.options import Reading
from pt_app.judge_data.reading.tables import open_table

# A spreadsheet runs a cell that starts so as a formula (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
ONESELF = "Agreement with oneself"  # a section of the data card
MAX_NAMED = 10  # rows of another label
Again = Sequence[tuple[JudgeExample, Verdict]]
"""Rows with their second verdicts."""


def write_blind(folder: Path, n: int, out: Path, seed: int = 0) -> list[str]:
    """Write `n` rows of a dataset as CSV, shuffled and without their labels.

    Labels are drawn evenly, so that rare ones are labelled again too. Returns lines that say what
    to do next. Raises UserError for a file that is there, and for more rows than the dataset has.
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
    cells = [_cells(row) for row in _evenly(rows, n, seed)]
    used = [name for name in cells[0] if any(row[name] for row in cells)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*used, "verdict", "comment"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(cells)
    # The byte order mark makes spreadsheets read the file as UTF-8.
    write_text_atomic(out, "\ufeff" + text.getvalue())
    return [
        f"{out}: {n} rows, shuffled, without labels",
        f"fill in the column verdict ({data.scale.says()}), then:",
        f"judge data relabel {folder} --read {out}",
    ]


def read_back(folder: Path, file: Path, encoding: str = "") -> list[str]:
    """Compare a filled-in file with the labels; keep the agreement in dataset.json and its card.

    Returns the agreement and the rows to look at, in lines. Raises UserError for a row that is not
    of this dataset or has two verdicts, a verdict off the scale, and a file without any verdict.
    """
    data = read_dataset(folder, allow_leaks=True)
    own = {opaque(row.id): row for row in _rows(data)}
    filled = open_table(str(file), Reading(encoding=encoding))
    if not {"row", "verdict"} <= set(filled.columns):
        raise UserError(f"{file} has no columns row and verdict: read back the file as written")
    reader = LabelReader(data.scale).on(filled, ["verdict"])
    verdicts: dict[str, Verdict] = {}
    empty = 0
    for place, value in filled.rows():
        name = str(value.get("row")).strip()
        if name not in own:
            problem = f"{name!r} is no row of {folder}"
            raise place.error("row", problem, "leave that column as it is")
        verdict = reader.verdict(value.get("verdict"), place, "verdict")
        if verdict is None:
            empty += 1
        elif (earlier := verdicts.setdefault(name, verdict)) != verdict:
            problem = f"{verdict}, but an earlier line of row {name} says {earlier}"
            raise place.error("verdict", problem, "keep one of the two")
    again = [(own[name], verdict) for name, verdict in verdicts.items()]
    if not again:
        raise UserError(f"{file}: no verdict is filled in: fill in that column and read it again")
    agreement = _agreement(again, data.scale)
    rows = people.self_table(agreement)
    _keep(data, agreement, table(people.ROW, rows))
    return [
        f"{len(again)} rows labelled again, {empty} left empty",
        *reader.notes(),
        *(f"  {name}: {value} {interval} (n {n})" for name, value, interval, n in rows),
        *_farthest(again, data.scale),
    ]


def _agreement(again: Again, scale: Scale) -> JsonObject:
    """Measure first against second labels: exact agreement and kappa, with intervals by group."""
    first = [row.label.verdict for row, _ in again if row.label]
    second = [verdict for _, verdict in again]
    sample = Resampler([row.group for row, _ in again])
    metrics = agreement_metrics(sample, *coded(first, second, scale), scale)
    score = scale.task == "score"
    names = {"exact": "exact" if score else "accuracy", "kappa": "kappa"}
    names |= {"kappa_quadratic": "kappa_quadratic"} if score else {}
    return {name: metrics[metric].as_json() for name, metric in names.items()}


def _cells(row: JudgeExample) -> dict[str, str]:
    """Return a row's name and texts by their columns, safe for a spreadsheet."""
    texts: dict[str, str | None] = {"row": opaque(row.id), "source": row.source}
    texts["conversation"] = "\n".join(f"{t.role}: {t.content}" for t in row.conversation or ())
    texts |= {name: getattr(row, name) for name in ("context", "reference", "candidate")}
    texts["candidate_a"], texts["candidate_b"] = row.candidates or ("", "")
    return {name: f"'{t}" if t and t.startswith(_FORMULA) else t or "" for name, t in texts.items()}


def opaque(name: str) -> str:
    """Return a row's name in the file, which tells nothing of its split or label."""
    return "r" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _rows(data: JudgeData) -> list[JudgeExample]:
    return [*data.train, *data.val, *data.test]


def _evenly(rows: Sequence[JudgeExample], n: int, seed: int) -> list[JudgeExample]:
    """Draw rows label by label in turns, then shuffle them."""
    rng = random.Random(seed)
    by_label: dict[str, list[JudgeExample]] = defaultdict(list)
    for row in rng.sample(rows, len(rows)):
        by_label[str(row.label.verdict if row.label else "")].append(row)
    turns = chain.from_iterable(zip_longest(*map(reversed, by_label.values())))
    return rng.sample([row for row in turns if row is not None][:n], n)


def _keep(data: JudgeData, agreement: JsonObject, body: str) -> None:
    """Write the agreement into dataset.json and, where there is one, into the card."""
    path, page = data.path / "dataset.json", data.path / "README.md"
    about = raw_card(data.path)
    if page.exists():
        # In place of such a section, else before the checks, else at the end.
        place = rf"(?ms)^## {ONESELF}\n.*?(?=^## |\Z)|(?=^## Checks\n)|\Z"
        section = f"## {ONESELF}\n\n{body}\n\n"
        text = read_text(page).replace("\r\n", "\n")
        card = re.sub(place, lambda _: section, text, count=1)
        write_text_atomic(page, card)
    write_json_atomic(path, about | {"self_agreement": agreement})


def _farthest(again: Again, scale: Scale) -> list[str]:
    """Name the rows that got another label, farthest first."""
    changed = sorted(
        (
            -abs(float(first) - float(second)) if scale.task == "score" else 0.0,
            row.id,
            f"  {row.id} ({row.where}): {first}, then {second}",
        )
        for row, second in again
        if row.label and (first := row.label.verdict) != second
    )
    heading = [f"{len(changed)} rows to look at again, farthest first:"] if changed else []
    more = [f"  and {len(changed) - MAX_NAMED} more"] if len(changed) > MAX_NAMED else []
    return [*heading, *(line for _, _, line in changed[:MAX_NAMED]), *more]
