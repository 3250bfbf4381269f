"""How much each answer to a question counts in the loss."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pt_app.core.records import JudgeExample


def balanced(
    answers: Sequence[JudgeExample], shares: Sequence[float], weights: Mapping[str, float]
) -> list[float]:
    """Weight answers so that each question counts as much as its weight says, not as its labels.

    The mean weight of a label is 1.

    Args:
        answers: the examples that are supervised.
        shares: of each answer, its share of its label.
        weights: of questions; 1 for others.
    """
    labels: Counter[str] = Counter()
    for answer, share in zip(answers, shares, strict=True):
        labels[answer.asks] += share  # type: ignore[assignment]  # a Counter sums floats, too
    every, total = sum(labels.values()), sum(weights.get(name, 1.0) for name in labels)
    scaled = {n: weights.get(n, 1.0) / total * every / count for n, count in labels.items()}
    return [share * scaled[a.asks] for a, share in zip(answers, shares, strict=True)]
