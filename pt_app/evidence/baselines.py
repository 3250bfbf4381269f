"""Baselines without a language model that a judge must beat: constants, length, chrF, TF-IDF.

A fine-tuned judge may be no more than one of them (arXiv 2403.02839).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from tqdm import tqdm

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.records import JudgeExample
from pt_app.core.results import Prediction
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import numbers_of, positions

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FOLDS = 5
MAX_TRAINING_ROWS = 5000  # chrF takes about a millisecond per row
SEED = 0

Texts = JudgeExample | Prediction
Features: TypeAlias = "FloatArray | csr_array"  # [n, features]


@dataclass(frozen=True)
class Labelled:
    """Rows with the positions of their labels on the scale, and their groups."""

    rows: Sequence[Texts]
    labels: IntArray
    groups: Sequence[Hashable]

    @staticmethod
    def of(
        rows: Sequence[Texts], labels: Sequence[Verdict], groups: Sequence[Hashable], scale: Scale
    ) -> "Labelled":
        """Make them of labels that are verdicts of the scale."""
        return Labelled(rows, positions(labels, scale, "label"), groups)

    @staticmethod
    def of_examples(examples: Sequence[JudgeExample], scale: Scale) -> "Labelled":
        """Make them of rows of a dataset; the candidate of a chat row is a part of its prompt."""
        rows = [
            row if row.prompt is None else row.model_copy(update={"candidate": None})
            for row in examples
        ]
        labels = [row.label.verdict for row in examples if row.label is not None]
        return Labelled.of(rows, labels, [row.group for row in examples], scale)

    def take(self, index: IntArray) -> "Labelled":
        """Return the rows of these indices."""
        return Labelled(
            [self.rows[i] for i in index], self.labels[index], [self.groups[i] for i in index]
        )


@dataclass(frozen=True)
class Baseline:
    """A baseline's verdict on each row, or why there is none.

    `fitted` says on what: None (nothing), "the training rows", how many of them ("5,000 of the
    12,000 training rows") or "the other rows of the file".
    `expected` has the scores before they were rounded to verdicts; empty if there are none.
    """

    name: str
    verdicts: Sequence[Verdict] = ()
    fitted: str | None = None
    missing: str = ""
    expected: Sequence[float] = ()

    @staticmethod
    def of(name: str, values: FloatArray, scale: Scale, fitted: str | None) -> "Baseline":
        """Make one of its values: scores on a scale of numbers, else positions."""
        numbers = numbers_of(scale)
        expected = () if numbers is None else np.clip(values, numbers[0], numbers[-1]).tolist()
        places = values.astype(np.int64) if numbers is None else _nearest(values, numbers)
        verdicts = [scale.values[place] for place in places]
        return Baseline(name, verdicts, fitted, expected=expected)

    def take(self, index: Sequence[int]) -> "Baseline":
        """Return the same for the rows of these indices."""
        expected = [self.expected[i] for i in index] if self.expected else ()
        return replace(self, verdicts=[self.verdicts[i] for i in index], expected=expected)


def fit_baselines(test: Labelled, scale: Scale, train: Labelled | None = None) -> list[Baseline]:
    """Return all baselines on the test rows, fitted on `train`, or on the test's other groups."""
    baselines = []
    for name, rule in tqdm(RULES.items(), desc="baselines", disable=None):
        if missing := rule.missing(test, scale) or (rule.missing(train, scale) if train else ""):
            baselines.append(Baseline(name, missing=missing))
            continue
        if train is not None:
            values, fitted = rule.predict(_sampled(train), test, scale), _fitted_on(len(train.rows))
        else:
            values, fitted = _cross_predicted(rule, test, scale), "the other rows of the file"
        is_fitted = rule.fits_pairs or scale.task != "pairwise"
        baselines.append(Baseline.of(name, values, scale, fitted if is_fitted else None))
    return baselines


def _fitted_on(rows: int) -> str:
    some = f"{MAX_TRAINING_ROWS:,} of the {rows:,} " if rows > MAX_TRAINING_ROWS else "the "
    return f"{some}training rows"


def _sampled(train: Labelled) -> Labelled:
    if len(train.rows) <= MAX_TRAINING_ROWS:
        return train
    chosen = np.random.default_rng(SEED).choice(len(train.rows), MAX_TRAINING_ROWS, replace=False)
    return train.take(np.sort(chosen))


def _cross_predicted(rule: "_Rule", test: Labelled, scale: Scale) -> FloatArray:
    """Predict each fifth of the groups from the others."""
    names = list(dict.fromkeys(test.groups))
    folds = np.random.default_rng(SEED).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, folds, strict=True))
    fold_of_row = np.array([fold_of[group] for group in test.groups])
    values = np.zeros(len(test.rows))
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(fold_of_row == fold), np.flatnonzero(fold_of_row != fold)
        if len(inside) and len(outside):
            values[inside] = rule.predict(_sampled(test.take(outside)), test.take(inside), scale)
    return values


@dataclass(frozen=True)
class _Rule:
    """How a baseline predicts values from (train, test, scale), and what it needs for that.

    Values are scores on a scale of numbers, else positions.
    `needs` are fields of each row, or "numbers" if the verdicts must be numbers. Without
    `fits_pairs` nothing is fitted for pairs.
    """

    predict: Callable[[Labelled, Labelled, Scale], FloatArray]
    needs: tuple[str, ...] = ()
    fits_pairs: bool = True

    def missing(self, test: Labelled, scale: Scale) -> str:
        """Return what the rows lack, or ""."""
        if "numbers" in self.needs and scale.task != "score":
            return "verdicts are not numbers"
        name = "candidates" if scale.task == "pairwise" else "candidate"
        lacking = {
            f"{name} of their own": sum(getattr(row, name) is None for row in test.rows),
            "reference": sum(not row.reference for row in test.rows),
        }
        for what, n in lacking.items():
            if n and what.startswith(self.needs):
                return f"{n} of {len(test.rows)} rows have no {what}"
        return ""


def _majority(train: Labelled, test: Labelled, scale: Scale) -> FloatArray:
    place, numbers = np.bincount(train.labels).argmax(), numbers_of(scale)
    return np.full(len(test.rows), float(place if numbers is None else numbers[place]))


def _mean(train: Labelled, test: Labelled, scale: Scale) -> FloatArray:
    numbers = numbers_of(scale)
    assert numbers is not None
    return np.full(len(test.rows), numbers[train.labels].mean())


def _length(train: Labelled, test: Labelled, scale: Scale) -> FloatArray:
    """Let the longer of a pair win (equal: tie); else regress the label on the lengths."""
    if scale.task == "pairwise":
        return _higher(_lengths(test.rows, scale), scale)
    features = [np.log1p(_lengths(part.rows, scale)) for part in (train, test)]
    return _regressed(features[0], train.labels, features[1], scale)


def _lengths(rows: Sequence[Texts], scale: Scale) -> FloatArray:
    """Count the characters of each row's `_texts`, [n, 2]."""
    return np.array([[len(text) for text in _texts(row, scale)] for row in rows], dtype=np.float64)


def _chrf(train: Labelled, test: Labelled, scale: Scale) -> FloatArray:
    """Let the nearer of a pair to the reference win; else map chrF to the labels' mean."""
    from sklearn.isotonic import IsotonicRegression

    scores = [_chrf_scores(part.rows, scale) for part in (train, test)]
    if scale.task == "pairwise":
        return _higher(scores[1], scale)
    numbers = numbers_of(scale)
    target = train.labels == 0 if numbers is None else numbers[train.labels]
    fitted = IsotonicRegression(increasing=numbers is not None or "auto", out_of_bounds="clip")
    values: FloatArray = fitted.fit(scores[0][:, 0], target).predict(scores[1][:, 0])
    return (values < 0.5).astype(np.float64) if numbers is None else values


def _chrf_scores(rows: Sequence[Texts], scale: Scale) -> FloatArray:
    """Return the chrF2 of both candidates of a pair [n, 2], else of the candidate [n, 1]."""
    from sacrebleu.metrics.chrf import CHRF

    score = CHRF().sentence_score  # chrF2, as in the shared tasks (Popovic 2015)
    count = 2 if scale.task == "pairwise" else 1
    texts = [(_texts(row, scale)[:count], [row.reference or ""]) for row in rows]
    return np.array([[score(text, reference).score for text in own] for own, reference in texts])


def _tfidf(train: Labelled, test: Labelled, scale: Scale) -> FloatArray:
    """Regress on words and word pairs of candidate and source, or on a pair's difference."""
    from scipy.sparse import csr_array, hstack

    texts = [_texts(row, scale) for row in (*train.rows, *test.rows)]
    count = len(train.rows)
    if scale.task == "pairwise":
        vectors = _vectors([text for pair in texts for text in pair], 2 * count)
        features = csr_array(vectors[::2] - vectors[1::2])
    else:
        columns = [list(column) for column in zip(*texts, strict=True)]
        features = csr_array(hstack([_vectors(column, count) for column in columns]))
    return _regressed(features[:count], train.labels, features[count:], scale)


def _vectors(texts: Sequence[str], to_fit: int) -> "csr_array":
    """Return the TF-IDF vectors [n, words] of texts, with the words of the first `to_fit`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([*texts[:to_fit], "no text at all is an error"])  # an empty vocabulary raises
    return vectorizer.transform(texts)


def _regressed(x: Features, labels: IntArray, at: Features, scale: Scale) -> FloatArray:
    """Predict by ridge regression of scores, or logistic regression of other verdicts."""
    from sklearn.linear_model import LogisticRegression, Ridge

    numbers = numbers_of(scale)
    if numbers is not None:
        return np.asarray(Ridge().fit(x, numbers[labels]).predict(at), np.float64)
    if len(np.unique(labels)) < 2:
        return np.full(at.shape[0], float(labels[0]))
    return np.asarray(LogisticRegression(max_iter=1000).fit(x, labels).predict(at), np.float64)


def _nearest(values: FloatArray, numbers: FloatArray) -> IntArray:
    """Return the position of the number nearest to each value."""
    return np.asarray(np.abs(values[:, None] - numbers).argmin(axis=1), np.int64)


def _higher(pairs: FloatArray, scale: Scale) -> FloatArray:
    """Return the position of A, B or tie by which of two numbers [n, 2] is higher."""
    a, b, tie = (scale.values.index(value) for value in ("A", "B", "tie"))
    places = np.where(pairs[:, 0] > pairs[:, 1], a, np.where(pairs[:, 0] < pairs[:, 1], b, tie))
    return places.astype(np.float64)


def _texts(row: Texts, scale: Scale) -> Sequence[str]:
    """Return both candidates of a pair, else the candidate and its source."""
    if scale.task == "pairwise":
        return row.candidates or ("", "")
    return row.candidate or "", row.source or ""


RULES = {
    "majority": _Rule(_majority),
    "mean": _Rule(_mean, ("numbers",)),
    "length": _Rule(_length, ("candidate",), fits_pairs=False),
    "chrF": _Rule(_chrf, ("candidate", "reference"), fits_pairs=False),
    "TF-IDF": _Rule(_tfidf, ("candidate",)),
}
