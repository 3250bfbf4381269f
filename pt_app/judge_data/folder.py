"""Dataset folders made of examples: written, added to, split again, and folds.

All files of a folder are staged first. A new folder then appears whole; in a folder that exists,
files are replaced one by one, dataset.json last.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pt_app.core.dataset import (
    SPLITS,
    DatasetCard,
    card_asks,
    check_ids,
    find_folder,
    members_of,
    read_card,
    read_places,
    read_splits,
)
from pt_app.core.errors import UserError
from pt_app.core.files import cannot_write, read_json, sha256_file, write_text_atomic
from pt_app.core.prompt_templates import Template
from pt_app.core.questions import Asked, questions_in
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.evidence import people
from pt_app.judge_data.card import Card, data_card
from pt_app.judge_data.checking import CheckReport, check_asked
from pt_app.judge_data.options import NEAR, SplitPlan
from pt_app.judge_data.rows import Row
from pt_app.judge_data.splitting import (
    Placement,
    gap_line,
    group_of,
    links_of,
    place,
    place_units,
    strata_of,
    units_of,
    with_own_group,
)

FILES = (*(f"judge_{split}.json" for split in SPLITS), "splits.json", "README.md", "dataset.json")
MEASURED = ("sha256", "split", "checks", "agreement")
"""What dataset.json says of the rows as they are, measured again whenever they are written."""
# What several imports into one folder may differ in; the card then lists all of them.
JOINED = ("origin", "licence", "label_rule")
FOLDS, TEMPLATE = "folds", "template"


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
            f"{len(members_of(rows)):,} {split} ({len({row.group for row in rows}):,} groups)"
            for split, rows in self.splits.items()
        )

    def lines(self) -> list[str]:
        """Summarise the folder in a few lines."""
        state = "" if self.written else " (already there, unchanged)"
        lines = [f"{self.out}{state}: {self.sizes()}", *self.notes]
        if self.agreement:
            lines += _agreement_lines(self.agreement)
        return [*lines, *self.report.lines()]


def _agreement(rows: Sequence[JudgeExample], asked: Asked) -> Card | None:
    """Measure the agreement among annotators, of several questions for each by its name."""
    if isinstance(asked, Scale):
        return people.agreement_of(rows, asked)
    each = {}
    for question in asked:
        own = [row for row in rows if row.asks == question.name]
        if agreement := people.agreement_of(own, question.scale):
            each[question.name] = agreement
    return each or None


def _agreement_lines(agreement: Card) -> list[str]:
    if "units" in agreement:
        return people.lines(agreement)
    return [f"{name}: {line}" for name, own in agreement.items() for line in people.lines(own)]


def build_folder(
    out: Path, examples: Sequence[JudgeExample], card: Card, plan: SplitPlan, append: bool = False
) -> FolderSummary:
    """Split the examples, check them, and write the folder; with `append` beside its own rows.

    `card` is what dataset.json is to say of task, scale, template, rubric, origin and licence.
    Examples without id or group get one. Raises UserError for two rows with one id, a folder that
    another command wrote (unless `append`), rows that cannot be split, and a card of another task
    or scale than the folder's.
    """
    old, places, notes = list[JudgeExample](), dict[str, str](), list[str]()
    if append and any((out / name).exists() for name in FILES):
        old, places = _placed_rows(out)
        card, examples, notes = _joined(out, card, examples)
        _check_by(out, places, card, plan)
    rows = [*old, *(_named(e, len(old) + i) for i, e in enumerate(examples, start=1))]
    check_ids(rows)
    placement = place(rows, plan, places, len(old))
    return _write(out, placement, card, plan, notes, replacing=append)


def split_folder(folder: Path, plan: SplitPlan) -> list[str]:
    """Split a folder's rows again; groups that its splits.json names stay, unless `plan.anew`.

    With `plan.folds` the folder stays as it is, and `folds/1` and up are written below it. Returns
    lines that describe what was written. Raises UserError as `build_folder` does, and for rows that
    would have to be left out.
    """
    card = raw_card(find_folder(folder))
    parts = read_splits(folder, read_card(folder), optional=SPLITS)
    rows = [row for part in parts.values() for row in part]
    if not rows:
        raise UserError(f"{folder} holds no rows: name a folder with judge_train.json")
    if plan.folds:
        return _write_folds(folder, rows, card, plan)
    places = {} if plan.anew else read_places(folder)
    _check_by(folder, places, card, plan)
    placement = place(rows, plan, places, len(rows))
    if placement.left_out:
        row = placement.left_out[0]
        problem = "its texts are in groups that splits.json places in two splits"
        remedy = f"split them again with `judge data split {folder} --anew`"
        raise UserError(f"{row.where or row.id}: {problem}: {remedy}")
    stay = ["every group stays where splits.json has it; --anew places them again"]
    notes = [] if placement.placed else stay
    return _write(folder, placement, card, plan, notes, replacing=True).lines()


def _named(example: JudgeExample, number: int) -> JudgeExample:
    """Give an example an id and a group where it has none."""
    named = {"id": example.id or f"row-{number}", "group": example.group or group_of(example)}
    return example.model_copy(update=named)


def _placed_rows(out: Path) -> tuple[list[JudgeExample], dict[str, str]]:
    """Read a folder's rows, and the split of each of their groups."""
    parts = read_splits(out, read_card(out), optional=SPLITS)
    rows = [row for part in parts.values() for row in part]
    places: dict[str, str] = {}
    for split, part in parts.items():
        for row in part:
            if places.setdefault(row.group, split) != split:
                problem = f"it is in {places[row.group]} too"
                remedy = f"split the rows again first, `judge data split {out} --anew`"
                raise UserError(f"{row.where}, field group: {problem}: {remedy}")
    return rows, places | read_places(out)


def _check_by(folder: Path, places: Mapping[str, str], card: Card, plan: SplitPlan) -> None:
    """Raise UserError where groups were placed by another rule than the plan's."""
    was = card.get("split", {}).get("by", "group")
    if places and was != plan.by:
        again = f"split it again with `judge data split {folder} --by {plan.by} --anew`"
        raise UserError(f"{folder} was split by {was}: add --by {was}, or {again}")


def _joined(
    out: Path, card: Card, examples: Sequence[JudgeExample]
) -> tuple[Card, Sequence[JudgeExample], list[str]]:
    """Join the card of new rows with the folder's own; the new rows keep their own rubric."""
    own, read = raw_card(out), read_card(out)
    for name, was in (("task", read.task), ("scale", read.scale)):
        if (new := card.get(name, was)) != was:
            problem = f"{was}, but that of the new rows is {new}"
            remedy = "add them to a folder of their own"
            raise UserError(f"{out / 'dataset.json'}, field {name}: {problem}: {remedy}")
    if read.task == "questions":  # its rows cannot keep a rubric of their own
        for name in ("state", "questions", "rubric"):
            if card.get(name, own.get(name)) != own.get(name):
                problem = f"field {name}: that of the new rows is another one"
                remedy = "add rows of the same questions, to the word"
                raise UserError(f"{out / 'dataset.json'}, {problem}: {remedy}")
    joined = dict(card) | own
    if "rubric" not in own:  # its rows were read with the template's
        joined.pop("rubric", None)
    for name in JOINED:
        texts = filter(None, (own.get(name, ""), card.get(name, "")))
        joined |= {name: text} if (text := "; ".join(dict.fromkeys(texts))) else {}
    joined["imports"] = [*own.get("imports", ()), *card.get("imports", ())]
    rubric = card.get("rubric")
    if rubric and rubric != own.get("rubric"):
        examples = [
            e if e.rubric or e.prompt is not None else e.model_copy(update={"rubric": rubric})
            for e in examples
        ]
    template = joined["template"] = own.get("template", read.template)
    other = card.get("template", template)
    notes = [f"template stays {template}, not {other}"] if other != template else []
    return joined, examples, notes


def raw_card(folder: Path) -> Card:
    """Return dataset.json as it stands: `read_card` puts a template's whole path into it."""
    path = folder / "dataset.json"
    read_card(folder)  # raises UserError where something is wrong with it
    return read_json(path) if path.exists() else {}


def _asked(card: Card, out: Path) -> Asked:
    return card_asks(DatasetCard.model_validate(_unmeasured(card)), out / "dataset.json")


def _write(
    out: Path, placement: Placement, card: Card, plan: SplitPlan, notes: list[str], replacing: bool
) -> FolderSummary:
    """Write the placed rows; dataset.json keeps how those placed before were split."""
    # Agreement is measured within the rows' own groups, however the rows were split.
    rows = [with_own_group(row) for part in placement.splits.values() for row in part]
    before = card.get("split", {})
    how = plan.about() if placement.placed or not before else dict(before)
    torn = {row.id for row in placement.left_out}
    if left_out := before.get("left_out", 0) + len(torn):
        how["left_out"] = left_out
    kept = keep_handmade(out, card) if replacing else ()
    all_notes = (*kept, *notes, *placement.notes)
    agreement = _agreement(rows, _asked(card, out))
    return write_folder(out, placement.splits, card, how, agreement, replacing, notes=all_notes)


def _write_folds(
    folder: Path, rows: Sequence[JudgeExample], card: Card, plan: SplitPlan
) -> list[str]:
    """Write `folder`/folds/1 and up: a fold is the test part, all other rows the training part.

    Folds that were there are replaced, all or none. Returns lines about what each fold tests, and
    whether it leaks. Raises UserError for fewer groups than folds, and where `folds` holds
    something else.
    """
    asked = _asked(card, folder)
    agreement = _agreement(rows, asked)
    out = folder / FOLDS
    foreign = [path for path in sorted(out.glob("*")) if not path.name.isdecimal()]
    if foreign or out.is_file():
        raise UserError(f"{foreign[0] if foreign else out} is no fold: move it away first")
    rows = [with_own_group(row) for row in rows]
    units = units_of(rows, links_of(rows, plan.near))
    names = [str(fold) for fold in range(1, plan.folds + 1)]
    fold_of_unit = place_units(units, strata_of(rows), dict.fromkeys(names, 1.0), plan.seed)
    fold_of = {row: fold_of_unit[unit.name] for unit in units for row in unit.rows}
    tests = {name: [row for i, row in enumerate(rows) if fold_of[i] == name] for name in names}
    staged = folder / f".{FOLDS}.{os.getpid()}.partial"
    lines = [f"{out}: {plan.folds} folds; train one with --data_dir {out / '1'}"]
    try:
        for name, test in tests.items():
            train = [row for i, row in enumerate(rows) if fold_of[i] != name]
            own = dict(card) | {"fold": f"{name}/{plan.folds}"} | _template(folder, staged / name)
            splits = {"train": train, "val": [], "test": test}
            fold = write_folder(staged / name, splits, own, plan.about(), agreement)
            state = "LEAK" if fold.report.failed else "no leak"
            lines.append(f"  {name}: {fold.sizes()}, {state}")
            labelled = {row.asks for row in train}
            lines += [
                f"  warning: no training row of fold {name} has a label for {question.name}"
                for question in questions_in(asked)
                if question.name not in labelled
            ]
        replace_folder(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return [*lines, gap_line({f"fold {name}": tests[name] for name in names})]


def _template(folder: Path, fold: Path) -> dict[str, str]:
    """Copy a template that is a folder, and name it for the card: a fold needs no other folder."""
    name = read_card(folder).template
    if not Path(name).is_dir():
        return {}
    Template.load(name).save(fold / TEMPLATE)
    return {"template": TEMPLATE}


# --- writing ---


def _unmeasured(card: Card) -> Card:
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
    generated: Mapping[str, object] | None = None,
    as_row: Callable[[JudgeExample], Row] | None = None,
) -> FolderSummary:
    """Check the rows in their splits and write them with their card.

    Args:
        how: how the rows were split, for dataset.json; empty where they were generated so.
        agreement: the annotators' agreement, as `people.agreement_of` gives it.
        notes: lines for the summary.
        replacing: whether files of another command may be replaced.
        generated: what the generator put into the rows and left out, for README.md.
        as_row: how a row is written; by default `JudgeExample.as_row`.

    Raises UserError for a row that JSON cannot hold, and as `_write_files` does.
    """
    typed = DatasetCard.model_validate(_unmeasured(card))
    asked = card_asks(typed, out / "dataset.json")
    near, by_row = how.get("near", NEAR), how.get("by") == "row"
    report = check_asked(splits, asked, near=near, by_row=by_row)
    filled, files = {split: rows for split, rows in splits.items() if rows}, dict[str, str]()
    for split, rows in filled.items():
        # One for each row, whose examples are one line.
        firsts = (rows[own[0]] for own in members_of(rows))
        lines = (_line(row, as_row(row) if as_row else row.as_row(asked)) for row in firsts)
        files[f"judge_{split}.json"] = "".join(lines)
    places = {row.group: split for split, rows in splits.items() for row in rows}
    files["splits.json"] = json.dumps(places, ensure_ascii=False, indent=0) + "\n"
    about = _unmeasured(card) | {"task": typed.task, "scale": typed.scale}
    about |= {"split": dict(how)} if how else {}
    about["checks"] = report.summary()
    about |= {"agreement": agreement} if agreement else {}
    about["sha256"] = {name: sha256(text.encode()).hexdigest() for name, text in files.items()}
    files["README.md"] = data_card(about, splits, asked, generated)
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
        remedy = "choose another folder with --out, or delete it"
        hint = "`judge data import --append` adds rows to a folder"
        problem = "is there and comes from another command"
        raise UserError(f"{out / other[0]} {problem}: {remedy} ({hint})")
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
    except (OSError, UserError) as error:
        raise UserError(cannot_write(out, error.__cause__ or error)) from error
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
