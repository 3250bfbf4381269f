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
from pt_app.core.questions import Question
from pt_app.core.results import Comparison, Metric, Stored
from pt_app.core.verdicts import Verdict
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
        scale: the name of the question's scale.
        options: the answers that were fitted, in the order of the scores; empty for a score.
        intercept: what each score is at probabilities of 0.
        weights: by question and answer, how much a probability of 1 adds to each score. Of a score
            there is one, the answer before it is rounded to the scale; of options one for each,
            whose highest wins; of two options one, which is above 0 for the second; of one option
            none.
    """

    question: str
    rows: int
    metric: str
    combined: Metric
    direct: Metric
    difference: Comparison
    scale: str
    options: list[str] = Field(default_factory=list)
    intercept: list[float]
    weights: dict[str, dict[str, list[float]]]


def combine(
    asked: Question,
    validation: tuple[Labelled, Sequence[Distributions]],
    test: tuple[Labelled, Sequence[Distributions]],
    direct: Sequence[Verdict | None],
) -> Combined:
    """Fit the weights of other questions for one of them, and measure the combination.

    Args:
        asked: which is combined of the others.
        validation: labelled rows to fit on, with the distributions of the other questions.
        test: the same, to measure on.
        direct: the judge's own verdicts on the test rows.

    Raises:
        UserError: for too few rows, and validation rows of one group.
    """
    question, scale = asked.name, asked.scale
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

    coefficients, intercept = fitted.weights
    weights: dict[str, dict[str, list[float]]] = {}
    for column, (name, answer) in enumerate(places):
        weights.setdefault(name, {})[answer] = [float(row[column]) for row in coefficients]
    return Combined(
        question=question,
        rows=len(features),
        metric=head,
        combined=measured(own.verdicts),
        direct=measured(direct),
        difference=compare(labels, own.verdicts, direct, sample, scale, ("combined", "direct")),
        scale=scale.name,
        options=_options(asked, fitted),
        intercept=intercept.tolist(),
        weights=weights,
    )


def _options(asked: Question, fitted: Regression) -> list[str]:
    """Return the answers whose scores were fitted, as a judge's answers name them."""
    if asked.type == "score":
        return []
    typed = [asked.typed(asked.scale.values[place]) for place in fitted.classes]
    return [str(value).lower() if asked.type == "bool" else str(value) for value in typed]


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
