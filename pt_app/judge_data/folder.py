"""Writes a dataset folder: rows in their splits, where each group went, and what is known of them.

Everything is written aside and renamed at the end: a folder is the old one or the new one.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.errors import UserError
from pt_app.eval_model.data import (
    SPLITS,
    DatasetCard,
    card_scale,
    check_ids,
    read_card,
    read_places,
    read_splits,
)
from pt_app.eval_model.records import JudgeExample
from pt_app.eval_model.verdicts import Scale
from pt_app.evidence import people
from pt_app.judge_data.card import data_card
from pt_app.judge_data.checking import CheckReport, check_examples
from pt_app.judge_data.groups import place_units, strata_of, units_of
from pt_app.judge_data.splitting import SplitPlan, place

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
    folds: Sequence["FolderSummary"] = field(default=())

    def lines(self) -> list[str]:
        """Say in a few lines what lies where."""
        sizes = ", ".join(f"{n:,} {s} ({self.groups[s]:,} groups)" for s, n in self.rows.items())
        state = "" if self.written else " (already there, unchanged)"
        lines = [f"{self.out}{state}: {sizes}", *self.notes]
        if self.agreement:
            lines += people.lines(self.agreement)
        return [*lines, *self.report.lines()]


def build_folder(
    out: Path,
    examples: Sequence[JudgeExample],
    card: Mapping[str, Any],
    plan: SplitPlan,
    *,
    append: bool = False,
    progress: bool = True,
) -> FolderSummary:
    """Split the examples, check them, and write the folder; with `append` beside its own rows.

    `card` is what dataset.json is to say of task, scale, template, rubric, origin and licence.
    Raises UserError for two rows with one id, a folder that another command wrote (unless
    `append`), rows that cannot be split, and a card of another task or scale than the folder's.
    """
    out = Path(out)
    old: dict[str, list[JudgeExample]] = {}
    if append and (out / "dataset.json").exists():
        old, card = _existing(out, card)
    rows = [*(row for part in old.values() for row in part), *examples]
    check_ids(rows)
    was = [split for split, part in old.items() for _ in part]
    places = read_places(out) if append else {}
    before = [*was, *(places.get(example.group) for example in examples)]
    placement = place(rows, before, plan, progress)
    splits: dict[str, list[JudgeExample]] = {split: [] for split in SPLITS}
    for example, split in zip(placement.examples, placement.split_of, strict=True):
        if split is not None:
            splits[split].append(example)
    return _write(out, splits, card, plan, placement.notes, replacing=append)


def split_folder(folder: Path, plan: SplitPlan, progress: bool = True) -> FolderSummary:
    """Split a folder's rows anew; groups that its splits.json names stay, unless `plan.anew`.

    With `plan.folds` the folder stays as it is, and `folds/1` on are written below it. Raises
    UserError as `build_folder` does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: make a dataset folder with `judge data import`")
    card = _raw_card(folder)
    old = read_splits(folder, read_card(folder), optional=SPLITS)
    rows = [row for part in old.values() for row in part]
    if plan.folds:
        return _write_folds(folder, rows, card, plan, progress)
    places = {} if plan.anew else read_places(folder)
    placement = place(rows, [places.get(row.group) for row in rows], plan, progress)
    splits: dict[str, list[JudgeExample]] = {split: [] for split in SPLITS}
    for example, split in zip(placement.examples, placement.split_of, strict=True):
        if split is not None:
            splits[split].append(example)
    return _write(folder, splits, card, plan, placement.notes, replacing=True)


def _existing(
    out: Path, card: Mapping[str, Any]
) -> tuple[dict[str, list[JudgeExample]], dict[str, Any]]:
    """Read the rows and the card of a folder that rows are added to."""
    own = _raw_card(out)
    read = read_card(out)
    for name in ("task", "scale"):
        if card.get(name, getattr(read, name)) != getattr(read, name):
            raise UserError(
                f"{out / 'dataset.json'}, field {name}: {getattr(read, name)}, but that of the new "
                f"rows is {card[name]}: add them to a folder of their own"
            )
    imports = [*own.get("imports", ()), *card.get("imports", ())]
    return read_splits(out, read, optional=SPLITS), own | {"imports": imports}


def _raw_card(folder: Path) -> dict[str, Any]:
    """Give dataset.json as it stands: `read_card` puts a template's whole path into it."""
    path = folder / "dataset.json"
    read_card(folder)  # says what is wrong with it
    card: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return card


def _write_folds(
    folder: Path,
    rows: Sequence[JudgeExample],
    card: Mapping[str, Any],
    plan: SplitPlan,
    progress: bool,
) -> FolderSummary:
    """Write one folder a fold: its test part is the fold, its training part all other rows."""
    units = units_of(rows, plan.near, progress)
    shares = {str(fold): 1.0 for fold in range(1, plan.folds + 1)}
    where = place_units(units, strata_of(rows), shares, plan.seed)
    fold_of = {row: where[unit.name] for unit in units for row in unit.rows}
    made = []
    for fold in shares:
        splits = {
            "train": [row for i, row in enumerate(rows) if fold_of[i] != fold],
            "val": [],
            "test": [row for i, row in enumerate(rows) if fold_of[i] == fold],
        }
        own = dict(card) | {"fold": f"{fold}/{plan.folds}"}
        made.append(_write(folder / "folds" / fold, splits, own, plan, (), replacing=True))
    test_rows = {f"fold {one.out.name}": one.rows["test"] for one in made}
    test_groups = {f"fold {one.out.name}": one.groups["test"] for one in made}
    all_written = any(one.written for one in made)
    return FolderSummary(
        folder / "folds", all_written, test_rows, test_groups, made[0].report, (), None, made
    )


def _write(
    out: Path,
    splits: Mapping[str, Sequence[JudgeExample]],
    card: Mapping[str, Any],
    plan: SplitPlan,
    notes: tuple[str, ...],
    replacing: bool,
) -> FolderSummary:
    rows = [row for part in splits.values() for row in part]
    known = DatasetCard.model_validate({k: v for k, v in card.items() if k not in MEASURED})
    scale = card_scale(known, out / "dataset.json")
    report = check_examples(splits, scale, near=plan.near, by_row=plan.by == "row")
    agreement = people.agreement_of(rows, scale)
    how = {"by": plan.by, "ratios": list(plan.ratios), "seed": plan.seed, "near": plan.near}
    if plan.folds:
        how |= {"by": "group", "folds": plan.folds}
    about = {k: v for k, v in card.items() if k not in MEASURED}
    about |= {"task": known.task, "scale": known.scale, "split": how, "checks": report.summary()}
    files = texts_of_folder(splits, scale, about, agreement)
    written = write_files(out, files, replacing)
    return FolderSummary(
        out,
        written,
        {split: len(part) for split, part in splits.items() if part},
        {split: len({row.group for row in part}) for split, part in splits.items()},
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
        f"judge_{split}.json": "".join(
            json.dumps(row.as_row(scale), ensure_ascii=False, allow_nan=False) + "\n"
            for row in part
        )
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
    """Write a folder's files, all or none; False where the same bytes were there.

    Raises UserError where other files of these names are there and `replacing` is false, and where
    the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder with --out")
    if all((out / name).exists() == (name in files) for name in FILES) and all(
        (out / name).read_bytes() == text.encode() for name, text in files.items()
    ):
        return False
    there = [name for name in FILES if (out / name).exists()]
    if there and not replacing:
        raise UserError(
            f"{out / there[0]} is there and comes from another command: choose another folder "
            "with --out, add to it with --append, or delete it"
        )
    aside = out / f".partial.{os.getpid()}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _flushed(aside / name, text)
        for name in files:
            os.replace(aside / name, out / name)
        for name in (name for name in there if name not in files):
            (out / name).unlink()
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): choose another folder"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _flushed(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
