"""How much each answer to a question counts in the loss, and each row in what it is divided by."""

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


def counts_of_rows(
    members: Sequence[Sequence[int]], weights: Sequence[float], tokens: Sequence[int]
) -> list[float]:
    """Return what each answer adds to the divisor of its step's loss: each row as much.

    It is the mean over all rows, not the weights of the labels that a step happens to have: divided
    by these, a label that few steps have would count less, and with it its question.

    Args:
        members: the answers of each row.
        weights: of the answers.
        tokens: supervised tokens of each answer.
    """
    mean = sum(w * n for w, n in zip(weights, tokens, strict=True)) / len(members)
    counts = [0.0] * len(weights)
    for own in members:
        for answer in own:
            counts[answer] = mean / len(own)
    return counts
