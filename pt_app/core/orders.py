"""Both orders of a pair: a judge that likes the first candidate is trained otherwise, and measured.

Trained on both orders (JudgeLM's swap augmentation, arXiv 2310.17631) a judge has nothing to gain
from a candidate's place; judged in both, its verdicts show how far it goes by it.
"""

import re
from collections.abc import Iterable, Sequence

from pt_app.core.records import JudgeExample, Label
from pt_app.core.verdicts import Verdict

_OTHER = {"A": "B", "B": "A"}
# Comments in which a candidate goes by its letter, number or place: in the other order they would
# speak of the wrong one.
_NAMES_A_CANDIDATE = re.compile(
    r"\b(?:candidate|answer|response|output|assistant|translation|option)"
    r"\s+(?:[ab12]|one|two)\b|\b(?:first|second|former|latter)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![\w'’.])[AB](?![\w'’])")


def flipped(verdict: Verdict | None) -> Verdict | None:
    """Return the verdict on the same pair in the other order; a tie stays one, None stays None."""
    return _OTHER.get(verdict, verdict) if isinstance(verdict, str) else verdict


def swapped(example: JudgeExample) -> JudgeExample | None:
    """Return a pair in its other order, its label flipped; None for a row that is no such pair.

    Comments that name a candidate are left out: the row then supervises its verdict alone.
    """
    if example.candidates is None or example.prompt is not None:
        return None
    label = example.label
    if label is not None:
        kept = (
            {} if names_a_candidate(label) else {"issues": label.issues, "feedback": label.feedback}
        )
        verdict = flipped(label.verdict)
        label = Label.model_validate({"verdict": verdict, **kept})
    update = {"id": f"{example.id}#swapped", "candidates": example.candidates[::-1], "label": label}
    return example.model_copy(update=update)


def names_a_candidate(label: Label) -> bool:
    """Return whether the comments of a label name a candidate by letter, number or position."""
    texts = [*label.issues, label.feedback]
    return any(_LETTER.search(text) or _NAMES_A_CANDIDATE.search(text) for text in texts)


def both_orders(examples: Sequence[JudgeExample]) -> list[JudgeExample]:
    """Put after each pair its other order; rows that are no pair stay single."""
    return [row for example in examples for row in (example, swapped(example)) if row is not None]


def consistency(
    verdicts: Iterable[Verdict | None], others: Iterable[Verdict | None]
) -> list[float | None]:
    """Return for each pair whether both orders have the same winner: 1, 0, None if unknown."""
    return [
        None if verdict is None or other is None else float(flipped(other) == verdict)
        for verdict, other in zip(verdicts, others, strict=True)
    ]


def first_preference(
    verdicts: Iterable[Verdict | None], others: Iterable[Verdict | None]
) -> list[float | None]:
    """Return for each pair the share of its two verdicts, without ties, for the first position.

    Over both orders a judge without position bias has a mean of a half.
    """
    shares: list[float | None] = []
    for pair in zip(verdicts, others, strict=True):
        winners = [verdict for verdict in pair if verdict in ("A", "B")]
        shares.append(winners.count("A") / len(winners) if winners and None not in pair else None)
    return shares
