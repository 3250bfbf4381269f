"""Scores of a learned metric: by rank as they are, as verdicts only through a fitted mapping.

COMET exceeds 1, and the worst MetricX is 25: such a score is not a verdict. Kappa, and whatever
else needs verdicts, is measured on the isotonic map of the scores to the labels of other rows.
"""

from collections.abc import Mapping

import numpy as np

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.results import SCHEMA, DataUsed, JsonObject, JudgeResults, Leaks, Results
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.judge_numbers import add_sources
from pt_app.evidence.ranks import rank_agreement
from pt_app.judge_data.labels import LabelReader
from pt_app.judge_data.rows import Row
from pt_app.judge_data.verdict_files import FileRow, Judged, Rows, VerdictFile, VerdictTable

ANY = Scale("score", "any", ())  # of labels that are numbers of no scale
Metrics = Mapping[str, Rows]
"""The rows of each metric by its name."""


def read_scores(source: VerdictFile, lower: bool) -> dict[str, Judged]:
    """Read the rows of each metric, with `label` and `score` (higher is better; None if absent).

    Args:
        lower: Whether lower scores are better in the file.

    Raises:
        UserError: A label or score is not a number, or no row has a label.
    """
    names = (source.columns.label, source.columns.verdict)
    readers = [(name, LabelReader(ANY, numbers=source.numbers(name))) for name in names]

    def read(row: FileRow) -> Row | None:
        cells = [r.read(source.meant(row.cell(name)), row.place, name) for name, r in readers]
        label, score = (None if number is None else float(number) for number in cells)
        score = -score if lower and score is not None else score
        return None if label is None else {"label": label, "score": score}

    return source.judged(read)


def rank_results(metrics: Metrics, about: JsonObject) -> Results:
    """Return the results.json of metrics that are measured by rank alone."""
    rows = next(iter(metrics.values()))
    groups = {row["group"] for row in rows}
    return Results(
        schema=SCHEMA,
        leaks=Leaks(n=0, examples=[]),
        task="metric",
        scale=ANY.name,
        data=DataUsed.model_validate({**about, "n": len(rows), "groups": len(groups)}),
        models=[_model(name, rows) for name, rows in metrics.items()],
        baselines=[],
        ceiling=None,
        comparisons=[],
    )


def _model(name: str, rows: Rows) -> JudgeResults:
    sample = Resampler([row["group"] for row in rows])
    labels, scores = _columns(rows)
    model = JudgeResults(
        id=name,
        name=name,
        metrics=rank_agreement(labels, scores, sample),
        parse_failures=int(np.isnan(scores).sum()),
        n=len(rows),
        groups=sample.groups,
        few_groups=sample.few_groups,
    )
    kept = [i for i in range(len(rows)) if not np.isnan(scores[i])]
    groups = [rows[i]["group"] for i in kept]
    if len(set(groups)) < len(groups):
        systems = [rows[i].get("system") for i in kept]
        add_sources(model, labels[kept], scores[kept], systems, groups)
    return model


def _columns(rows: Rows) -> tuple[FloatArray, FloatArray]:
    """Return labels and scores, [n] each; a score of None becomes NaN."""
    labels, scores = ([row[name] for row in rows] for name in ("label", "score"))
    return np.array(labels, dtype=np.float64), np.array(scores, dtype=np.float64)


def as_verdicts(
    metrics: Metrics, validation: Mapping[str, Judged], scale: Scale, file: str, measured: str
) -> VerdictTable:
    """Turn the scores of metrics into verdicts by isotonic regression on validation rows.

    Args:
        file: The file of the validation rows, for messages.
        measured: The file of the rows of the metrics, for messages.

    Raises:
        UserError: A metric has no validation rows, or a label is off the scale.
    """
    judges = {}
    for name, rows in metrics.items():
        if name not in validation:
            raise UserError(f'{file} has no rows of "{name}": give all metrics validation rows')
        fitted = [row for _, row in validation[name].values()]
        verdicts = _fitted_verdicts(fitted, _columns(rows)[1], scale)
        pairs = zip(rows, verdicts, strict=True)
        judges[name] = [row | _as_verdict(row, verdict, scale, measured) for row, verdict in pairs]
    notes = [f"scores are mapped to {scale.name} by isotonic regression on {file}"]
    return VerdictTable(scale, judges, {}, notes)


def _fitted_verdicts(validation: Rows, scores: FloatArray, scale: Scale) -> list[Verdict | None]:
    """Return the verdict nearest to the fitted value of each score; None for a score of NaN."""
    from sklearn.isotonic import IsotonicRegression

    labels, validated = _columns(validation)
    scored = ~np.isnan(validated)
    fitted = IsotonicRegression(out_of_bounds="clip").fit(validated[scored], labels[scored])
    numbers = np.array(scale.values, dtype=np.float64)
    expected = fitted.predict(np.nan_to_num(scores))
    places = np.abs(expected[:, None] - numbers).argmin(axis=1)
    return [None if np.isnan(s) else scale.values[p] for s, p in zip(scores, places, strict=True)]


def _as_verdict(row: Row, verdict: Verdict | None, scale: Scale, measured: str) -> Row:
    label = scale.normalise(row["label"])
    if label is None:
        problem = f"label {row['label']:g} is off the scale {scale.name}"
        raise UserError(f"{measured}, {row['id']}: {problem}: name another --scale")
    status = "parse_failure" if verdict is None else "ok"
    return {"label": label, "verdict": verdict, "status": status}
