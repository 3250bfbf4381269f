"""The orders in which a judge is trained and asked: of the candidates of a pair, and of options.

Trained on both orders of a pair (JudgeLM's swap augmentation, arXiv 2310.17631) a judge has nothing
to gain from a candidate's place; judged in both, its verdicts show how far it goes by it. The
options of a question are listed in an order of the row.
"""

import re
from collections.abc import Sequence

from pt_app.core.records import JudgeExample, Label
from pt_app.core.settings import Order
from pt_app.core.verdicts import Scale, Verdict

_OTHER = {"A": "B", "B": "A"}
# Comments in which a candidate goes by its letter, number or place: in the other order they would
# speak of the wrong one.
_NAMES_A_CANDIDATE = re.compile(
    r"\b(?:candidate|answer|response|output|assistant|translation|option)"
    r"\s+(?:[ab12]|one|two)\b|\b(?:first|second|former|latter)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![\w'’.])[AB](?![\w'’])")


def order_of(order: Order, scale: Scale) -> Order | None:
    """Return the order in which pairs are judged; None if the verdicts are not about pairs."""
    return order if scale.task == "pairwise" else None


def flipped(verdict: Verdict | None) -> Verdict | None:
    """Return the verdict on the same pair in the other order; a tie stays one, None stays None."""
    return _OTHER.get(verdict, verdict) if isinstance(verdict, str) else verdict


def mean_of_orders(given: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    """Return the mean probabilities of A, B and tie on a pair that was judged in both orders.

    Candidates that change places change their means, too, and nothing else.

    Args:
        given: in the order of the letters that are returned.
        other: in the other order, in that order's own letters.
    """
    a, b, tie = other
    return tuple((p + q) / 2 for p, q in zip(given, (b, a, tie), strict=True))


def swapped(example: JudgeExample) -> JudgeExample | None:
    """Return a pair in its other order, its label flipped; None for a row that is no such pair.

    Comments that name a candidate are left out: the row then supervises its verdict alone.
    """
    if example.candidates is None or example.prompt is not None:
        return None
    label = example.label
    if label is not None:
        kept = Label(verdict=label.verdict) if names_a_candidate(label) else label
        label = kept.model_copy(update={"verdict": flipped(label.verdict)})
    update = {"id": f"{example.id}#swapped", "candidates": example.candidates[::-1], "label": label}
    return example.model_copy(update=update)


def names_a_candidate(label: Label) -> bool:
    """Return whether the comments of a label name a candidate by letter, number or position."""
    texts = [*label.issues, label.feedback]
    return any(_LETTER.search(text) or _NAMES_A_CANDIDATE.search(text) for text in texts)


def both_orders(examples: Sequence[JudgeExample]) -> list[JudgeExample]:
    """Put after each pair its other order; rows that are no pair stay single."""
    return [row for example in examples for row in (example, swapped(example)) if row is not None]


def answers_of(
    examples: Sequence[JudgeExample], seed: int | None
) -> tuple[list[JudgeExample], list[float]]:
    """Return an example for each answer that is supervised, and its share of its label.

    A label that annotators share out over several verdicts is one answer for each of these,
    weighted by its share: the soft cross-entropy over the lines of verdicts. In a pack they have
    one prompt.

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
