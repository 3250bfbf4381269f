"""Verdicts as positions on their scale, and their agreement as a function of sums over rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray, IntArray, agreement
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.intervals import Statistic

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# What a verdict without a number is worth to the candidate; of a pair, to the first one.
_WORTH: dict[Verdict, float] = {"PASS": 1.0, "FAIL": 0.0, "A": 1.0, "tie": 0.5, "B": 0.0}


MAX_CLASSES = 12  # of a nominal scale: above this, classes that never occur are dropped


def headline(scale: Scale) -> str:
    """Return the name of the number that comes first wherever agreement on a scale is shown."""
    return "kappa" if numbers_of(scale) is None else "kappa_quadratic"


def numbers_of(scale: Scale) -> FloatArray | None:
    """Return the scale's values [K] if they are numbers; None for a nominal scale."""
    return np.array(scale.values, dtype=np.float64) if scale.task == "score" else None


def worth_of(scale: Scale) -> FloatArray:
    """Return what each verdict is worth to the (first) candidate [K]: its score, else 0 to 1."""
    return np.array([_WORTH.get(value, value) for value in scale.values], dtype=np.float64)


def positions(verdicts: Sequence[Verdict | None], scale: Scale, what: str) -> IntArray:
    """Return the position of each verdict on the scale, -1 for None.

    Raises:
        UserError: for a verdict off the scale; `what` names it in the message.
    """
    place: dict[Verdict | None, int] = {value: i for i, value in enumerate(scale.values)}
    place[None] = -1
    for row, verdict in enumerate(verdicts, start=1):
        if verdict not in place:
            where = f"{what} {verdict!r} in row {row}"
            raise UserError(f"{where} is off the scale {scale.name}: {scale.says()}")
    return np.array([place[verdict] for verdict in verdicts], dtype=np.int64)


def coded(
    labels: Sequence[Verdict], verdicts: Sequence[Verdict | None], scale: Scale
) -> tuple[IntArray, IntArray]:
    """Return the positions of labels and verdicts, as `positions` does."""
    return positions(labels, scale, "label"), positions(verdicts, scale, "verdict")


def count_failures_as_wrong(labels: IntArray, verdicts: IntArray, scale: Scale) -> IntArray:
    """Replace each -1 by the position farthest from the label, or by K on a nominal scale.

    If both ends of the scale are equally far, the lower one is taken.
    """
    numbers = numbers_of(scale)
    if numbers is None:
        return np.where(verdicts < 0, len(scale.values), verdicts)
    farthest = np.abs(numbers[:, None] - numbers[None, :]).argmax(-1)
    return np.where(verdicts < 0, farthest[labels], verdicts)


def distances(labels: IntArray, verdicts: IntArray, scale: Scale) -> FloatArray:
    """Return |verdict - label| in units of the scale; on a nominal scale 0 or 1. NaN for -1."""
    numbers = numbers_of(scale)
    if numbers is None:
        apart = (labels != verdicts).astype(np.float64)
    else:
        apart = np.abs(numbers[labels] - numbers[verdicts])
    return np.where(verdicts < 0, np.nan, apart)


def agreement_of_sums(
    labels: IntArray, scale: Scale, *judges: IntArray
) -> tuple[list["csr_array"], Statistic]:
    """Return each judge's columns, sparse [n, m], and the statistic of their sums.

    The columns are the cells of the table of labels and verdicts, the same cells for all judges;
    every agreement number is a function of their sums. Rows whose verdict is -1 count nowhere.
    """
    from scipy.sparse import csr_array

    numbers, used = numbers_of(scale), np.arange(len(scale.values) + 1)
    shape = (len(used) - 1, len(used))
    if numbers is not None:  # values that never occur change no number, but most of 0-100's cells
        used = np.unique(np.concatenate([labels, *judges]))
        used = used[used >= 0]
        numbers, shape = numbers[used], (len(used), len(used))
    elif len(scale.values) > MAX_CLASSES:  # nor do options, the column of parse failures stays
        used = np.unique(np.concatenate([labels, *judges, used[-1:]]))
        used = used[used >= 0]
        shape = (len(used) - 1, len(used))
    columns = []
    for verdicts in judges:
        rows = np.flatnonzero(verdicts >= 0)
        label, verdict = (np.searchsorted(used, part[rows]) for part in (labels, verdicts))
        cells = label * shape[1] + verdict
        entries = (np.ones(len(rows)), (rows, cells))
        columns.append(csr_array(entries, shape=(len(labels), shape[0] * shape[1])))

    def statistic(sums: FloatArray) -> dict[str, FloatArray]:
        tables = np.atleast_2d(sums)  # [resamples, cells]; without a row there is no cell
        return agreement(tables.reshape(len(tables), *shape), numbers)

    return columns, statistic
