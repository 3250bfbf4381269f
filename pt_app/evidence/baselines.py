"""Rules without a language model that a judge must beat: constant, length, chrF, TF-IDF.

A fine-tuned judge is suspected of being no more than one of them (arXiv 2403.02839). Rows are
mappings with `candidate` or `candidates` (a pair), `source`, `reference`, `context`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from pt_app.core.metrics import FloatArray, IntArray
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.coding import numbers_of, positions
from pt_app.evidence.lengths import length

FOLDS = 5
MOST_TO_FIT = 5000  # rows; chrF takes about a millisecond each
SEED = 0

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Labelled:
    """Rows with the positions of their labels on the scale, and their groups."""

    rows: Sequence[Row]
    labels: IntArray
    groups: Sequence[Hashable]

    @staticmethod
    def of(
        rows: Sequence[Row], labels: Sequence[Verdict], groups: Sequence[Hashable], scale: Scale
    ) -> "Labelled":
        """Labels as verdicts of the scale."""
        return Labelled(rows, positions(labels, scale, "label"), groups)

    def take(self, index: IntArray) -> "Labelled":
        """Some of the rows."""
        return Labelled(
            [self.rows[i] for i in index], self.labels[index], [self.groups[i] for i in index]
        )


@dataclass(frozen=True)
class Baseline:
    """A rule's verdict on each row, or why there is none.

    `fitted` says on what: "" (nothing), "the training rows" or "the other rows of the file".
    """

    name: str
    verdicts: Sequence[Verdict] = ()
    fitted: str = ""
    missing: str = ""


def baselines(test: Labelled, scale: Scale, train: Labelled | None = None) -> list[Baseline]:
    """All rules on the test rows. Without training rows each is fitted on the other groups."""
    shown = tqdm(RULES.items(), desc="simple rules", disable=None)
    return [_one(name, rule, test, scale, train) for name, rule in shown]


def _one(
    name: str, rule: "_Rule", test: Labelled, scale: Scale, train: Labelled | None
) -> Baseline:
    missing = rule.missing(test, scale) or (train is not None and rule.missing(train, scale))
    if missing:
        return Baseline(name, missing=missing)
    if train is not None:
        found, fitted = rule.predict(_sampled(train), test, scale), "the training rows"
    else:
        found, fitted = _across(rule, test, scale), "the other rows of the file"
    verdicts = [scale.values[place] for place in found]
    return Baseline(name, verdicts, fitted if rule.fits(scale) else "")


def _sampled(train: Labelled) -> Labelled:
    if len(train.rows) <= MOST_TO_FIT:
        return train
    chosen = np.random.default_rng(SEED).choice(len(train.rows), MOST_TO_FIT, replace=False)
    return train.take(np.sort(chosen))


def _across(rule: "_Rule", test: Labelled, scale: Scale) -> IntArray:
    """Predict each fifth of the groups from the others."""
    names = list(dict.fromkeys(test.groups))
    fold_of = dict(
        zip(names, np.random.default_rng(SEED).permutation(len(names)) % FOLDS, strict=True)
    )
    fold = np.array([fold_of[group] for group in test.groups])
    found = np.zeros(len(test.rows), dtype=np.int64)
    for one in range(FOLDS):
        inside, outside = np.flatnonzero(fold == one), np.flatnonzero(fold != one)
        if len(inside) and len(outside):
            found[inside] = rule.predict(_sampled(test.take(outside)), test.take(inside), scale)
    return found


@dataclass(frozen=True)
class _Rule:
    """`predict` (train, test, scale) gives positions; `missing` says why it cannot, or ""."""

    predict: Callable[[Labelled, Labelled, Scale], IntArray]
    missing: Callable[[Labelled, Scale], str] = lambda *_: ""
    fits_pairs: bool = True

    def fits(self, scale: Scale) -> bool:
        return self.fits_pairs or scale.task != "pairwise"


def _majority(train: Labelled, test: Labelled, scale: Scale) -> IntArray:
    return np.full(len(test.rows), np.bincount(train.labels).argmax())


def _mean(train: Labelled, test: Labelled, scale: Scale) -> IntArray:
    numbers = numbers_of(scale)
    assert numbers is not None
    return np.full(len(test.rows), np.abs(numbers - numbers[train.labels].mean()).argmin())


def _no_numbers(test: Labelled, scale: Scale) -> str:
    return "" if scale.task == "score" else "verdicts are no numbers"


def _lengths(rows: Sequence[Row], scale: Scale) -> FloatArray:
    """Characters of the candidates, [n, 1 or 2]."""
    return np.array([[length(text) for text in _candidates(row, scale)] for row in rows], float)


def _length(train: Labelled, test: Labelled, scale: Scale) -> IntArray:
    """Of a pair the longer wins (equal: tie); else the label is regressed on the length."""
    if scale.task == "pairwise":
        return _higher(_lengths(test.rows, scale), scale)
    features = [
        np.log1p(np.concatenate([_lengths(part.rows, scale), _source_lengths(part.rows)], axis=1))
        for part in (train, test)
    ]
    return _regressed(features[0], train.labels, features[1], scale)


def _source_lengths(rows: Sequence[Row]) -> FloatArray:
    return np.array([[length(row.get("source") or "")] for row in rows], dtype=np.float64)


def _chrf(train: Labelled, test: Labelled, scale: Scale) -> IntArray:
    """Of a pair the nearer to the reference wins; else chrF is mapped to the labels' mean."""
    from sklearn.isotonic import IsotonicRegression

    scores = [_chrf_scores(part.rows, scale) for part in (train, test)]
    if scale.task == "pairwise":
        return _higher(scores[1], scale)
    numbers = numbers_of(scale)
    target = train.labels == 0 if numbers is None else numbers[train.labels]
    fitted = IsotonicRegression(increasing=numbers is not None or "auto", out_of_bounds="clip")
    return _nearest(fitted.fit(scores[0][:, 0], target).predict(scores[1][:, 0]), scale)


def _chrf_scores(rows: Sequence[Row], scale: Scale) -> FloatArray:
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()  # chrF2, as in the shared tasks (Popovic 2015)
    return np.array(
        [
            [chrf.sentence_score(t, [row["reference"]]).score for t in _candidates(row, scale)]
            for row in rows
        ]
    )


def _no_reference(test: Labelled, scale: Scale) -> str:
    without = sum(not row.get("reference") for row in test.rows)
    return f"{without} of {len(test.rows)} rows have no reference" if without else ""


def _tfidf(train: Labelled, test: Labelled, scale: Scale) -> IntArray:
    """Words and word pairs of candidate and source; of a pair the difference of the candidates."""
    from scipy.sparse import csr_array, hstack

    rows, count = [*train.rows, *test.rows], len(train.rows)
    texts = [_candidates(row, scale) for row in rows]
    if scale.task == "pairwise":
        flat = [text for pair in texts for text in pair]
        vectors = _vectors(flat, 2 * count)
        features = csr_array(vectors[::2] - vectors[1::2])
    else:
        sources = [row.get("source") or "" for row in rows]
        parts = (_vectors([one for (one,) in texts], count), _vectors(sources, count))
        features = csr_array(hstack(parts))
    return _regressed(features[:count], train.labels, features[count:], scale)


def _vectors(texts: Sequence[str], to_fit: int) -> Any:
    """TF-IDF vectors [n, words] of texts, by the words of the first `to_fit`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectorizer.fit([*texts[:to_fit], "no text at all is an error"])
    return vectorizer.transform(texts)


def _regressed(x: Any, labels: IntArray, at: Any, scale: Scale) -> IntArray:
    """Ridge regression of scores, logistic regression of other verdicts."""
    from sklearn.linear_model import LogisticRegression, Ridge

    numbers = numbers_of(scale)
    if numbers is not None:
        return _nearest(Ridge().fit(x, numbers[labels]).predict(at), scale)
    if len(np.unique(labels)) < 2:
        return np.full(at.shape[0], labels[0])
    found: IntArray = LogisticRegression(max_iter=1000).fit(x, labels).predict(at)
    return found


def _nearest(values: FloatArray, scale: Scale) -> IntArray:
    """The position whose number is nearest; of a pass/fail chance of the first value, its side."""
    numbers = numbers_of(scale)
    if numbers is None:
        return (values < 0.5).astype(np.int64)
    nearest: IntArray = np.abs(np.asarray(values)[:, None] - numbers).argmin(axis=1)
    return nearest


def _higher(pairs: FloatArray, scale: Scale) -> IntArray:
    """The position of A, B or tie by which of two numbers is higher."""
    a, b, tie = (scale.values.index(value) for value in ("A", "B", "tie"))
    return np.where(pairs[:, 0] > pairs[:, 1], a, np.where(pairs[:, 0] < pairs[:, 1], b, tie))


def _candidates(row: Row, scale: Scale) -> Sequence[str]:
    if scale.task == "pairwise":
        return row.get("candidates") or ("", "")
    return (row.get("candidate") or "",)


def _no_candidate(test: Labelled, scale: Scale) -> str:
    name = "candidates" if scale.task == "pairwise" else "candidate"
    without = sum(row.get(name) is None for row in test.rows)
    return f"{without} of {len(test.rows)} rows have no {name} of their own" if without else ""


def _no_candidate_or_reference(test: Labelled, scale: Scale) -> str:
    return _no_candidate(test, scale) or _no_reference(test, scale)


RULES = {
    "majority": _Rule(_majority),
    "mean": _Rule(_mean, _no_numbers),
    "length": _Rule(_length, _no_candidate, fits_pairs=False),
    "chrF": _Rule(_chrf, _no_candidate_or_reference, fits_pairs=False),
    "TF-IDF": _Rule(_tfidf, _no_candidate),
}
