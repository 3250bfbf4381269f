"""The frozen probe: a linear regression on hidden states of the base, which a judge must beat.

It shows what the base knows of the verdict before any training (Alain and Bengio 2016, arXiv
1610.01644): an adapter that is not better than it was not worth training. The states are computed
elsewhere, so that nothing here needs torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.results import PROBE
from pt_app.core.verdicts import Scale
from pt_app.evidence.baselines import FOLDS, Baseline, Labelled
from pt_app.evidence.coding import numbers_of

# Ridge's alpha and, of the logistic regression, 1 / C; the strongest is taken if all are equal.
PENALTIES = 10.0 ** np.arange(6, -0.5, -0.5)
NO_BASE = Baseline(PROBE, missing="no base is at hand whose hidden states could be read")


def fit_probe(
    train: Labelled, states: FloatArray, at: FloatArray, scale: Scale, rows: int
) -> Baseline:
    """Fit a probe on training rows, and return its verdicts on test rows.

    Scores get a ridge regression whose values are rounded to the scale, other verdicts a logistic
    one. The penalty is chosen by cross-validation in which the rows of a source stay together.

    Args:
        train: the training rows that have states.
        states: their hidden states [n, width]; NaN for a row without.
        at: the hidden states of the test rows [m, width]; a row without gets the mean state.
        scale: the scale of the verdicts.
        rows: how many training rows there are, of which `train` may be a sample.
    """
    has_state = np.flatnonzero(np.isfinite(states).all(axis=1))
    train, states = train.take(has_state), states[has_state]
    if len(set(train.groups)) < 2:
        return Baseline(PROBE, missing="it needs training rows of two groups or more")
    at = np.where(np.isfinite(at), at, states.mean(axis=0))
    fitted = "the training rows"
    if len(has_state) < rows:
        fitted = f"{len(has_state):,} of the {rows:,} training rows"
    values = Regression.fit(train, states, scale).predict(at)
    return Baseline.of(PROBE, values, scale, fitted)


@dataclass(frozen=True)
class Regression:
    """A ridge regression of scores, or a logistic one of other verdicts.

    Attributes:
        model: the estimator of scikit-learn; None: `always` is all that it says.
        centre: what is taken from features [width].
        unit: what they are divided by then.
        always: the position of the verdict that no feature changes.
    """

    model: Any
    centre: FloatArray
    unit: float
    always: float = 0.0

    @staticmethod
    def fit(train: Labelled, x: FloatArray, scale: Scale) -> "Regression":
        """Fit on features [n, width]; the penalty is chosen with the rows of a group together."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.model_selection import GridSearchCV, GroupKFold

        numbers, y = numbers_of(scale), train.labels
        groups = np.unique(list(map(str, train.groups)), return_inverse=True)[1]
        folds = list(GroupKFold(min(FOLDS, groups.max() + 1)).split(x, groups=groups))
        # One unit for all features: to scale each by its own spread makes more of those that say
        # less.
        centre = x.mean(axis=0)
        unit = (x - centre).std() or 1.0
        score: Any = "neg_mean_squared_error"
        model, grid = Ridge(), {"alpha": PENALTIES}
        if numbers is None:
            # A fold whose other rows have one label alone says nothing about penalties.
            folds = [(inside, out) for inside, out in folds if len(np.unique(y[inside])) > 1]
            if not folds:
                return Regression(None, centre, unit, float(np.bincount(y).argmax()))
            score = _log_score
            model, grid = LogisticRegression(max_iter=1000), {"C": 1 / PENALTIES}
        search = GridSearchCV(model, grid, scoring=score, cv=folds)
        search.fit((x - centre) / unit, y if numbers is None else numbers[y])
        return Regression(search.best_estimator_, centre, unit)

    def predict(self, at: FloatArray) -> FloatArray:
        """Return the score of each row of features, or the position of its verdict [m]."""
        if self.model is None:
            return np.full(len(at), self.always)
        return np.asarray(self.model.predict((at - self.centre) / self.unit), np.float64)

    @property
    def weights(self) -> tuple[FloatArray, FloatArray]:
        """The scores as they follow from features: coefficients [k, width], and intercepts [k]."""
        if self.model is None:
            return np.empty((0, len(self.centre))), np.empty(0)
        coefficients = np.atleast_2d(self.model.coef_ / self.unit)
        return coefficients, np.atleast_1d(self.model.intercept_) - coefficients @ self.centre

    @property
    def classes(self) -> list[int]:
        """The positions of the verdicts that were fitted, of a logistic regression."""
        return [int(self.always)] if self.model is None else [*map(int, self.model.classes_)]


def _log_score(model: Any, x: FloatArray, labels: IntArray) -> float:
    """Return the mean log probability of the labels that the model was fitted on."""
    known = np.isin(labels, model.classes_)
    places = np.searchsorted(model.classes_, labels[known])
    chances = model.predict_log_proba(x[known])
    return float(chances[np.arange(len(places)), places].mean()) if len(places) else 0.0
