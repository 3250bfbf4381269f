"""Writes a dataset folder: rows in their splits, where each group went, and what is known of them.

All files are written aside first. A new folder then appears whole; in one that is there, files are
replaced one by one, dataset.json last.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.dataset import SPLITS, DatasetCard, card_scale
from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.evidence import people
from pt_app.judge_data.card import data_card
from pt_app.judge_data.checking import CheckReport, check_examples
from pt_app.judge_data.options import NEAR

FILES = (*(f"judge_{split}.json" for split in SPLITS), "splits.json", "README.md", "dataset.json")
MEASURED = ("sha256", "split", "checks", "agreement")
"""What dataset.json says of the rows as they are, made anew whenever they are written."""


@dataclass(frozen=True)
class FolderSummary:
    """What was written, for a terminal. `written` is false where the same bytes were there."""

    out: Path
    written: bool
    rows: Mapping[str, int]
    groups: Mapping[str, int]
    report: CheckReport
    notes: tuple[str, ...] = ()
    agreement: Mapping[str, Any] | None = None

    def lines(self) -> list[str]:
        """Say in a few lines what lies where."""
        sizes = ", ".join(f"{n:,} {s} ({self.groups[s]:,} groups)" for s, n in self.rows.items())
        state = "" if self.written else " (already there, unchanged)"
        lines = [f"{self.out}{state}: {sizes}", *self.notes]
        if self.agreement:
            lines += people.lines(self.agreement)
        return [*lines, *self.report.lines()]


def known_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a card says that does not hang on the rows as they are."""
    return {name: value for name, value in card.items() if name not in MEASURED}


def write_folder(
    out: Path,
    splits: Mapping[str, Sequence[JudgeExample]],
    card: Mapping[str, Any],
    how: Mapping[str, Any],
    *,
    notes: tuple[str, ...] = (),
    agreement: Mapping[str, Any] | None = None,
    replacing: bool = False,
) -> FolderSummary:
    """Check the rows in their splits and write them with their card; `how` they were split.

    Raises UserError as `write_files` does.
    """
    known = DatasetCard.model_validate(known_of(card))
    scale = card_scale(known, out / "dataset.json")
    report = check_examples(
        splits, scale, near=how.get("near", NEAR), by_row=how.get("by") == "row"
    )
    about = known_of(card) | {"task": known.task, "scale": known.scale}
    about |= {"split": dict(how), "checks": report.summary()}
    written = write_files(out, texts_of_folder(splits, scale, about, agreement), replacing)
    filled = {split: part for split, part in splits.items() if part}
    return FolderSummary(
        out,
        written,
        {split: len(part) for split, part in filled.items()},
        {split: len({row.group for row in part}) for split, part in filled.items()},
        report,
        notes,
        agreement,
    )


def texts_of_folder(
    splits: Mapping[str, Sequence[JudgeExample]],
    scale: Scale,
    about: Mapping[str, Any],
    agreement: Mapping[str, Any] | None = None,
    sections: Sequence[str] = (),
) -> dict[str, str]:
    """Give the text of every file of a folder, `dataset.json` last.

    `sections` are further parts of the README, as Markdown.
    """
    files = {
        f"judge_{split}.json": "".join(_line(row, scale) for row in part)
        for split, part in splits.items()
        if part
    }
    places = {row.group: split for split, part in splits.items() for row in part}
    files["splits.json"] = json.dumps(places, ensure_ascii=False, indent=0) + "\n"
    about = dict(about) | ({"agreement": agreement} if agreement else {})
    about["sha256"] = {name: sha256(text.encode()).hexdigest() for name, text in files.items()}
    files["README.md"] = data_card(about, splits, scale, sections)
    files["dataset.json"] = json.dumps(about, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    return files


def write_files(out: Path, files: Mapping[str, str], replacing: bool) -> bool:
    """Write a folder's files; False where the same bytes were there.

    Raises UserError where other files of these names are there and `replacing` is false, and where
    the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder with --out")
    there = [name for name in FILES if (out / name).exists()]
    if set(there) == set(files) and all(
        (out / name).read_bytes() == text.encode() for name, text in files.items()
    ):
        return False
    if there and not replacing:
        raise UserError(
            f"{out / there[0]} is there and comes from another command: choose another folder "
            "with --out, add to it with --append, or delete it"
        )
    here = out.exists()
    aside = out / f".partial.{os.getpid()}" if here else _beside(out, "partial")
    try:
        aside.mkdir(parents=True)
        for name, text in files.items():
            _write_flushed(aside / name, text)
        if here:
            for name in files:
                os.replace(aside / name, out / name)
            for name in set(there) - set(files):
                (out / name).unlink()
        else:
            aside.rename(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def keep_handmade(out: Path, card: Mapping[str, Any]) -> tuple[str, ...]:
    """Copy files that no command wrote as they are to a folder `before`, and say so.

    A row that is written anew loses the fields that nobody knows, and a chat row the words of its
    answer.
    """
    hashes = card.get("sha256", {})
    rows = [out / name for name in FILES if name.startswith("judge_")]
    made = [path for path in rows if path.exists() and hashes.get(path.name) != sha256_file(path)]
    if (out / "README.md").exists() and "checks" not in card:
        made.append(out / "README.md")
    if not made:
        return ()
    free = (out / f"before{number}" for number in ("", *range(2, 10_000)))
    before = next(path for path in free if not path.exists())
    before.mkdir()
    for path in made:
        shutil.copy2(path, before)
    return (f"{', '.join(path.name for path in made)} as they were are kept in {before}",)


def replace_folder(new: Path, out: Path) -> None:
    """Put the folder `new`, beside it on the same disk, where `out` is or was."""
    before = _beside(out, "before")
    if out.exists():
        out.rename(before)
    new.rename(out)
    shutil.rmtree(before, ignore_errors=True)


def _beside(out: Path, what: str) -> Path:
    out = out.absolute()
    return out.with_name(f".{out.name}.{os.getpid()}.{what}")


def _write_flushed(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _line(row: JudgeExample, scale: Scale) -> str:
    """Write a row as a line of JSON; times of Parquet files become text."""
    try:
        line = json.dumps(row.as_row(scale), ensure_ascii=False, allow_nan=False, default=_as_text)
        line.encode("utf-8")
    except ValueError as error:  # NaN or half a surrogate pair
        raise UserError(
            f"{row.where or row.id}: the row cannot be written as JSON ({error}): correct it"
        ) from error
    return line + "\n"


def _as_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
