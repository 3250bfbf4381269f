"""How long a candidate is, for every statistic of lengths: in characters, in any script."""

from collections.abc import Sequence


def length(text: str) -> int:
    """Count the characters of a candidate; words would need blanks between them."""
    return len(text)


def longer(pair: Sequence[str]) -> str:
    """Say which candidate of a pair is the longer one: "A", "B", or "tie" of equal ones."""
    first, second = map(length, pair)
    return "A" if first > second else "B" if first < second else "tie"


def share_won_by_longer(pairs: Sequence[Sequence[str]], verdicts: Sequence[object]) -> float:
    """Give the share of pairs that the longer candidate wins, between 0 and 1.

    A tie, and a pair of equal lengths, counts as half, so that 0.5 means that length tells nothing.
    Raises ZeroDivisionError without a pair.
    """
    found = [(longer(pair), verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    won = sum(0.5 if "tie" in (one, verdict) else one == verdict for one, verdict in found)
    return won / len(found)
