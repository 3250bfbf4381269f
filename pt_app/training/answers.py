"""What a dataset that declares questions supervises: answers, their weights, orders of options.

A label that annotators share out over several verdicts is one answer for each of these, weighted by
its share: the soft cross-entropy over the lines of verdicts. In a pack they have one prompt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from pt_app.core.records import JudgeExample, Label


def answers_of(
    examples: Sequence[JudgeExample], seed: int | None
) -> tuple[list[JudgeExample], list[float]]:
    """Return an example for each answer that is supervised, and its share of its label.

    Args:
        examples: rows with a question each.
        seed: of the order in which each row lists the options of a choice; None: as declared.
            Rows are encoded once for all epochs, so that a row has one order.
    """
    answers, shares = [], []
    for example in examples:
        question = example.question
        assert question is not None, "a row without a question among those of declared questions"
        if seed is not None:
            question = question.shuffled(f"{seed}/{example.id}/{question.name}")
            example = example.model_copy(update={"question": question})
        of_values = dict(zip(question.scale.values, example.shares, strict=False))
        for verdict, share in of_values.items():
            if share:
                label = Label(verdict=verdict)
                answers.append(example.model_copy(update={"label": label}))
                shares.append(share)
        if not of_values:
            answers.append(example)
            shares.append(1.0)
    return answers, shares


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
