"""Several questions combined into one: weights of their distributions, fitted on labelled rows.

The weights are fitted on validation rows, and measured on test rows beside the judge's own answer
to the question that they stand for.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from pt_app.core.errors import UserError
from pt_app.core.formatting import NAMES, p_value, with_n
from pt_app.core.metrics import FloatArray
from pt_app.core.results import Comparison, Metric, Stored
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.baselines import Baseline, Labelled
from pt_app.evidence.coding import headline
from pt_app.evidence.comparison import compare
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.probe import Regression
from pt_app.evidence.summary import summarise

MIN_ROWS = 30  # validation rows; on fewer the weights are those of their noise
Distributions = Mapping[str, Mapping[str, float]]
"""The probabilities of the answers to each question about a row."""


class Combined(Stored):
    """What `combined.json` holds.

    Attributes:
        question: the question whose labels were fitted.
        rows: the validation rows of the fit.
        metric: the name of the headline number.
        combined, direct: that number of the combination, and of the judge asked directly.
        difference: combined - direct, on the same rows.
        weights: by question and answer, how much a probability of 1 adds to the score; of options
            to the log odds of each, in the order of `options`.
        options: the verdicts that the weights are of; empty for a score.
    """

    question: str
    rows: int
    metric: str
    combined: Metric
    direct: Metric
    difference: Comparison
    weights: dict[str, dict[str, list[float]]]
    options: list[Verdict] = Field(default_factory=list)


def combine(
    question: str,
    scale: Scale,
    validation: tuple[Labelled, Sequence[Distributions]],
    test: tuple[Labelled, Sequence[Distributions]],
    direct: Sequence[Verdict | None],
) -> Combined:
    """Fit the weights of other questions for one of them, and measure the combination.

    Args:
        question: which is combined of the others.
        scale: its scale.
        validation: labelled rows to fit on, with the distributions of the other questions.
        test: the same, to measure on.
        direct: the judge's own verdicts on the test rows.

    Raises:
        UserError: for too few rows, and validation rows of one group.
    """
    for name, (rows, _) in (("validation", validation), ("test", test)):
        if len(rows.rows) < MIN_ROWS:
            problem = f"{len(rows.rows)} {name} rows have a label for {question}"
            raise UserError(f"{problem}: {MIN_ROWS} are needed; label more")
    if len(set(validation[0].groups)) < 2:
        problem = f"all validation rows that have a label for {question} are of one group"
        raise UserError(f"{problem}: the fit needs two or more; split the data again")
    places = [(name, answer) for name, of in validation[1][0].items() for answer in of]
    features, at = (_features(places, distributions) for _, distributions in (validation, test))
    fitted = Regression.fit(validation[0], features, scale)
    own = Baseline.of("combined", fitted.predict(at), scale, "validation rows")
    labels = [scale.values[place] for place in test[0].labels]
    sample, head = Resampler(test[0].groups), headline(scale)

    def measured(verdicts: Sequence[Verdict | None]) -> Metric:
        return summarise(labels, verdicts, sample, scale).metrics[f"{head}_strict"]

    weights: dict[str, dict[str, list[float]]] = {}
    coefficients: FloatArray = np.empty((0, len(places)))
    if fitted.model is not None:
        coefficients = np.atleast_2d(fitted.model.coef_ / fitted.unit)
    for column, (name, answer) in enumerate(places):
        weights.setdefault(name, {})[answer] = [float(row[column]) for row in coefficients]
    return Combined(
        question=question,
        rows=len(features),
        metric=head,
        combined=measured(own.verdicts),
        direct=measured(direct),
        difference=compare(labels, own.verdicts, direct, sample, scale, ("combined", "direct")),
        weights=weights,
        options=[] if scale.task == "score" else [scale.values[i] for i in _classes(fitted)],
    )


def _classes(fitted: Regression) -> list[int]:
    """Return the positions of the verdicts that the rows of the coefficients are of."""
    if fitted.model is None:
        return []
    classes = [int(place) for place in fitted.model.classes_]
    return classes if len(classes) > 2 else classes[1:]  # of two, the odds of the second


def _features(
    places: Sequence[tuple[str, str]], distributions: Sequence[Distributions]
) -> FloatArray:
    rows = [[of_row[name][answer] for name, answer in places] for of_row in distributions]
    return np.array(rows, dtype=np.float64)


def lines(found: Combined) -> list[str]:
    """Describe a combination in a few lines."""
    name, difference = NAMES[found.metric], found.difference
    said = [
        f"{found.question}: {name} of the combination {with_n(found.combined)}",
        f"asked directly: {with_n(found.direct)}",
        f"combined - direct: {with_n(difference)}"
        + ("" if difference.p is None else f", p {p_value(difference.p)}"),
    ]
    return [*said, f"weights of {', '.join(found.weights)}, from {found.rows} validation rows"]
