"""A learned metric's scores: by rank as they are, as verdicts only after a fitted mapping.

COMET exceeds 1, MetricX is 25 at worst: such a score is no verdict. Kappa and what else needs
verdicts is measured of the isotonic map of the scores to the labels of other rows.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.verdicts import Scale
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.judge_numbers import source_numbers
from pt_app.evidence.ranks import rank_agreement
from pt_app.judge_data.cells import is_empty
from pt_app.judge_data.labels import key_of
from pt_app.judge_data.numbers import AmbiguousNumberError, Numbers
from pt_app.judge_data.verdict_files import FileRow, Rows, VerdictFile, VerdictTable

ANY = "any"  # the scale of labels that are numbers of no scale


def read_scores(source: VerdictFile, file: str, lower: bool) -> dict[str, Rows]:
    """Rows of each metric with `label` and `score` (higher is better; None where absent).

    Raises UserError for what is no number.
    """
    columns, found = source.columns, dict[str, Rows]()
    label_of, score_of = (_Numbers(source, name) for name in (columns.label, columns.verdict))
    for row in source.rows:
        label, score = label_of(row), score_of(row)
        if label is None:
            continue
        name = row.judge if columns.judge else "metric"
        one = {"model": name, "id": row.id, "group": row.group, "label": label}
        one["score"] = -score if lower and score is not None else score
        found.setdefault(name, []).append(one | source.more_of(row))
    if not found:
        raise UserError(f"{file}: no row has a label in column {columns.label}: name another")
    return found


class _Numbers:
    """Reads the numbers of a column of a file, which are of no scale."""

    def __init__(self, source: VerdictFile, column: str) -> None:
        table = source.table
        cells = partial(source.cells, column)
        self._read = Numbers(cells, delimiter=table.delimiter, decimal=table.decimal).read
        self._column, self._meanings = column, source.meanings

    def __call__(self, row: FileRow) -> float | None:
        cell = row.cell(self._column)
        cell = cell if is_empty(cell) else self._meanings.get(key_of(cell), cell)
        if is_empty(cell):
            return None
        try:
            number = self._read(cell)
        except AmbiguousNumberError as error:
            remedy = "name the decimal sign, --decimal point or --decimal comma"
            raise row.place.error(self._column, str(error), remedy) from error
        if number is None:
            remedy = "write a number; empty: none"
            raise row.place.error(self._column, f"{cell!r} is no number", remedy)
        return float(number)


def rank_results(metrics: Mapping[str, Rows], about: Mapping[str, Any]) -> dict[str, Any]:
    """results.json of metrics by rank alone."""
    rows = next(iter(metrics.values()))
    groups = {row["group"] for row in rows}
    return {
        "schema": 1,
        "leaks": {"n": 0, "examples": []},
        "task": "metric",
        "scale": ANY,
        "data": {**about, "n": len(rows), "groups": len(groups)},
        "models": [_model(name, rows) for name, rows in metrics.items()],
        "baselines": [],
        "ceiling": None,
        "comparisons": [],
    }


def _model(name: str, rows: Rows) -> dict[str, Any]:
    sample = Resampler([row["group"] for row in rows])
    labels, scores = _columns(rows)
    found: dict[str, Any] = {
        "id": name,
        "name": name,
        "metrics": rank_agreement(labels, scores, sample),
        "parse_failures": int(np.isnan(scores).sum()),
        "n": len(rows),
        "groups": sample.groups,
        "few_groups": sample.few_groups,
    }
    kept = [i for i in range(len(rows)) if not np.isnan(scores[i])]
    groups = [rows[i]["group"] for i in kept]
    if len(set(groups)) < len(groups):
        systems = [rows[i].get("system") for i in kept]
        found |= source_numbers(labels[kept], scores[kept], systems, groups)
    return found


def _columns(rows: Rows) -> tuple[FloatArray, FloatArray]:
    labels = np.array([row["label"] for row in rows], dtype=np.float64)
    scores = np.array(
        [np.nan if r["score"] is None else r["score"] for r in rows], dtype=np.float64
    )
    return labels, scores


def as_verdicts(
    metrics: Mapping[str, Rows],
    validation: Mapping[str, Rows],
    scale: Scale,
    file: str,
    measured: str,
) -> VerdictTable:
    """The metrics' scores as verdicts of `scale`, by isotonic regression on validation rows.

    `file` holds the validation rows, `measured` those of the metrics.

    Raises UserError for a metric without validation rows, or labels off the scale.
    """
    judges = {}
    for name, rows in metrics.items():
        if name not in validation:
            raise UserError(f'{file} has no rows of "{name}": give all metrics validation rows')
        labels, scores = _columns(validation[name])
        verdicts = _mapped(labels, scores, _columns(rows)[1], scale)
        judges[name] = [
            row | _as_verdict(row, verdict, scale, measured)
            for row, verdict in zip(rows, verdicts, strict=True)
        ]
    notes = [f"scores are mapped to {scale.name} by isotonic regression on {file}"]
    return VerdictTable(scale, judges, {}, notes)


def _mapped(labels: FloatArray, scores: FloatArray, at: FloatArray, scale: Scale) -> Sequence[Any]:
    from sklearn.isotonic import IsotonicRegression

    known = ~np.isnan(scores)
    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores[known], labels[known])
    numbers = np.array(scale.values, dtype=np.float64)
    expected = fitted.predict(np.nan_to_num(at))
    places = np.abs(expected[:, None] - numbers).argmin(axis=1)
    return [None if np.isnan(s) else scale.values[p] for s, p in zip(at, places, strict=True)]


def _as_verdict(
    row: Mapping[str, Any], verdict: Any, scale: Scale, measured: str
) -> dict[str, Any]:
    label = scale.normalise(row["label"])
    if label is None:
        raise UserError(
            f"{measured}, {row['id']}: label {row['label']:g} is off the scale {scale.name}: "
            "name another --scale"
        )
    status = "parse_failure" if verdict is None else "ok"
    return {"label": label, "verdict": verdict, "constrained": None, "status": status}
