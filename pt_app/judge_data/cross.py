"""`judge data split --folds`: a dataset folder for each fold, so that every row is tested once."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pt_app.core.dataset import read_card
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.records import JudgeExample
from pt_app.judge_data.duplicates import links
from pt_app.judge_data.groups import place_units, strata_of, units_of
from pt_app.judge_data.options import SplitPlan
from pt_app.judge_data.splitting import gap_line, with_own_group
from pt_app.judge_data.writing import FolderSummary, replace_folder, write_folder

FOLDS, TEMPLATE = "folds", "template"


@dataclass(frozen=True)
class FoldsSummary:
    """What was written below `out`, one folder a fold, for a terminal."""

    out: Path
    folds: Sequence[FolderSummary]
    gap: str

    def lines(self) -> list[str]:
        """Say in a line each what a fold tests, and whether it leaks."""
        lines = [f"{self.out}: {len(self.folds)} folds; train one with --data_dir {self.out / '1'}"]
        for number, fold in enumerate(self.folds, start=1):
            sizes = ", ".join(
                f"{n:,} {s} ({fold.groups[s]:,} groups)" for s, n in fold.rows.items()
            )
            lines.append(f"  {number}: {sizes}, {'LEAK' if fold.report.failed else 'no leak'}")
        return [*lines, self.gap]


def write_folds(
    folder: Path,
    rows: Sequence[JudgeExample],
    card: Mapping[str, Any],
    plan: SplitPlan,
    agreement: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> FoldsSummary:
    """Write `folder`/folds/1 on: the test part is the fold, the training part all other rows.

    Folds that were there are replaced, all or none. Raises UserError for fewer groups than folds,
    and where `folds` holds something else.
    """
    out = folder / FOLDS
    _check_replaceable(out)
    rows = [with_own_group(row) for row in rows]
    units = units_of(rows, links(rows, plan.near, progress))
    names = [str(fold) for fold in range(1, plan.folds + 1)]
    where = place_units(units, strata_of(rows), dict.fromkeys(names, 1.0), plan.seed)
    fold_of = {row: where[unit.name] for unit in units for row in unit.rows}
    tests = {name: [row for i, row in enumerate(rows) if fold_of[i] == name] for name in names}
    aside = folder / f".{FOLDS}.{os.getpid()}.partial"
    try:
        made = []
        for name, test in tests.items():
            train = [row for i, row in enumerate(rows) if fold_of[i] != name]
            own = dict(card) | {"fold": f"{name}/{plan.folds}"} | _template(folder, aside / name)
            splits = {"train": train, "val": [], "test": test}
            how = plan.about()
            made.append(write_folder(aside / name, splits, own, how, agreement=agreement))
        replace_folder(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return FoldsSummary(out, made, gap_line({f"fold {name}": tests[name] for name in names}))


def _check_replaceable(out: Path) -> None:
    strange = [path for path in sorted(out.glob("*")) if not path.name.isdigit()]
    if strange or out.is_file():
        raise UserError(f"{strange[0] if strange else out} is no fold: move it away first")


def _template(folder: Path, fold: Path) -> dict[str, str]:
    """Copy a template that is a folder, and say so in the card: each fold stands alone."""
    name = read_card(folder).template
    if not Path(name).is_dir():
        return {}
    Template.load(name).save(fold / TEMPLATE)
    return {"template": TEMPLATE}
