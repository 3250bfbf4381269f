"""Write a dataset folder: rows in their splits, where each group went, and a data card.

All files are staged first. A new folder then appears whole; in a folder that exists, files are
replaced one by one, dataset.json last.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pt_app.core.dataset import SPLITS, DatasetCard, card_scale
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, sha256_file, write_text_atomic
from pt_app.core.records import JudgeExample
from pt_app.evidence import people
from pt_app.judge_data.card import TITLE, Card, data_card
from pt_app.judge_data.checking import CheckReport, check_examples
from pt_app.judge_data.options import NEAR
from pt_app.judge_data.rows import Row

FILES = (*(f"judge_{split}.json" for split in SPLITS), "splits.json", "README.md", "dataset.json")
MEASURED = ("sha256", "split", "checks", "agreement")
"""What dataset.json says of the rows as they are, measured again whenever they are written."""


@dataclass(frozen=True)
class FolderSummary:
    """What was written, for a terminal. `written` is false where the same bytes were there."""

    out: Path
    written: bool
    splits: Mapping[str, Sequence[JudgeExample]]
    report: CheckReport
    agreement: Card | None = None
    notes: tuple[str, ...] = ()

    def sizes(self) -> str:
        """List the rows and groups of each split in one line."""
        return ", ".join(
            f"{len(rows):,} {split} ({len({row.group for row in rows}):,} groups)"
            for split, rows in self.splits.items()
        )

    def lines(self) -> list[str]:
        """Summarise the folder in a few lines."""
        state = "" if self.written else " (already there, unchanged)"
        lines = [f"{self.out}{state}: {self.sizes()}", *self.notes]
        if self.agreement:
            lines += people.lines(self.agreement)
        return [*lines, *self.report.lines()]


def known_of(card: Card) -> Card:
    """Return what a card says that does not depend on the rows as they are."""
    return {name: value for name, value in card.items() if name not in MEASURED}


def write_folder(
    out: Path,
    splits: Mapping[str, Sequence[JudgeExample]],
    card: Card,
    how: Card,
    agreement: Card | None = None,
    replacing: bool = False,
    *,
    notes: tuple[str, ...] = (),
    title: str = TITLE,
    sections: Sequence[str] = (),
    as_row: Callable[[JudgeExample], Row] | None = None,
) -> FolderSummary:
    """Check the rows in their splits and write them with their card.

    Args:
        how: how the rows were split, for dataset.json; empty where they were generated so.
        agreement: the annotators' agreement, as `people.agreement_of` gives it.
        notes: lines for the summary.
        replacing: whether files of another command may be replaced.
        title, sections: heading and further parts, in Markdown, of README.md.
        as_row: how a row is written; by default `JudgeExample.as_row`.

    Raises UserError for a row that JSON cannot hold, and as `_write_files` does.
    """
    typed = DatasetCard.model_validate(known_of(card))
    scale = card_scale(typed, out / "dataset.json")
    near, by_row = how.get("near", NEAR), how.get("by") == "row"
    report = check_examples(splits, scale, near=near, by_row=by_row)
    filled, files = {split: rows for split, rows in splits.items() if rows}, dict[str, str]()
    for split, rows in filled.items():
        lines = (_line(row, as_row(row) if as_row else row.as_row(scale)) for row in rows)
        files[f"judge_{split}.json"] = "".join(lines)
    places = {row.group: split for split, rows in splits.items() for row in rows}
    files["splits.json"] = json.dumps(places, ensure_ascii=False, indent=0) + "\n"
    about = known_of(card) | {"task": typed.task, "scale": typed.scale}
    about |= {"split": dict(how)} if how else {}
    about["checks"] = report.summary()
    about |= {"agreement": agreement} if agreement else {}
    about["sha256"] = {name: sha256(text.encode()).hexdigest() for name, text in files.items()}
    files["README.md"] = data_card(about, splits, scale, sections, title)
    files["dataset.json"] = json.dumps(about, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    written = _write_files(out, files, replacing)
    return FolderSummary(out, written, filled, report, agreement, notes)


def _write_files(out: Path, files: Mapping[str, str], replacing: bool) -> bool:
    """Write a folder's files, the last one last; False where the same bytes were there.

    A folder that a killed run left with some of its files is completed, and the descriptions of the
    same rows by an earlier version are brought up to date. Raises UserError where other files of
    these names are there and `replacing` is false, and where the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder with --out")
    old = [name for name in FILES if (out / name).exists()]
    other = [name for name in old if not _holds(out / name, files.get(name))]
    if not other and len(old) == len(files):
        return False
    if other and not replacing and not _describes_the_same(out, files, other):
        remedy = "choose another folder with --out, delete it, or add to it with --append"
        raise UserError(f"{out / other[0]} is there and comes from another command: {remedy}")
    in_place = out.exists()
    staged = out / f".partial.{os.getpid()}" if in_place else _beside(out, "partial")
    try:
        staged.mkdir(parents=True)
        for name, text in files.items():
            write_text_atomic(staged / name, text)
        if in_place:
            for name in files:
                os.replace(staged / name, out / name)
            for name in set(old) - set(files):
                (out / name).unlink()
        else:
            staged.rename(out)
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return True


def _describes_the_same(out: Path, files: Mapping[str, str], other: Sequence[str]) -> bool:
    """Return whether the files that differ only describe the same rows of the same origin."""
    card = out / "dataset.json"
    if not card.is_file() or not set(other) <= {"README.md", card.name}:
        return False
    try:
        old = json.loads(card.read_bytes())
    except ValueError:
        return False
    new, keys = json.loads(files[card.name]), ("origin", "task", "scale", "sha256")
    return isinstance(old, dict) and all(old.get(key) == new.get(key) for key in keys)


def _holds(path: Path, text: str | None) -> bool:
    return text is not None and path.is_file() and path.read_bytes() == text.encode()


def keep_handmade(out: Path, card: Card) -> tuple[str, ...]:
    """Copy files that no command wrote to a folder `before`; a note says so.

    A row that is written again loses its unknown fields, and a chat row the wording of its answer.
    """
    hashes = card.get("sha256", {})
    rows = [path for split in SPLITS if (path := out / f"judge_{split}.json").exists()]
    handmade = [path for path in rows if hashes.get(path.name) != sha256_file(path)]
    if (out / "README.md").exists() and "checks" not in card:
        handmade.append(out / "README.md")
    if not handmade:
        return ()
    names = (out / f"before{number}" for number in ("", *range(2, 10_000)))
    before = next(path for path in names if not path.exists())
    before.mkdir()
    for path in handmade:
        shutil.copy2(path, before)
    return (f"{', '.join(path.name for path in handmade)} as they were are kept in {before}",)


def replace_folder(new: Path, out: Path) -> None:
    """Rename the folder `new`, on the same disk, to `out`, in place of a folder that is there."""
    before = _beside(out, "before")
    if out.exists():
        out.rename(before)
    new.rename(out)
    shutil.rmtree(before, ignore_errors=True)


def _beside(out: Path, what: str) -> Path:
    out = out.absolute()
    return out.with_name(f".{out.name}.{os.getpid()}.{what}")


def _line(example: JudgeExample, row: Row) -> str:
    """Write a row as a line of JSON; times of Parquet files become text."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
        line.encode("utf-8")
    except ValueError as error:  # NaN, or half of a surrogate pair
        problem = f"the row cannot be written as JSON ({error}): correct it"
        raise UserError(f"{example.where or example.id}: {problem}") from error
    return line + "\n"


def _as_text(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
