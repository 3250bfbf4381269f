"""What a judge knows beyond how frequent verdicts are: log loss and entropy against a prior."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pt_app.core.verdicts import Scale, Verdict


@dataclass(frozen=True)
class Prior:
    """How frequent the lines of a scale are: what a judge can say that reads no row.

    Attributes:
        scale: the scale.
        probabilities: of each line.
    """

    scale: Scale
    probabilities: Mapping[str, float]

    @staticmethod
    def of(labels: Sequence[Verdict], scale: Scale) -> "Prior":
        """Count each line half a time more than it occurs (Krichevsky and Trofimov 1981)."""
        counts, lines = Counter(map(scale.line, labels)), scale.lines()
        total = len(labels) + len(lines) / 2
        return Prior(scale, {line: (counts[line] + 0.5) / total for line in lines})

    @property
    def entropy(self) -> float:
        """The entropy of the distribution, in nats."""
        return entropy(tuple(self.probabilities.values()))

    def surprise(self, label: Verdict) -> float:
        """Return -log p of a label's line, in nats."""
        return -math.log(self.probabilities[self.scale.line(label)])


def surprise(probabilities: Sequence[float], label: Verdict, scale: Scale) -> float:
    """Return -log p of a label's line, in nats, from the probabilities of the scale's lines."""
    chance = probabilities[scale.lines().index(scale.line(label))]
    return -math.log(max(chance, 1e-300))  # float64 may underflow


def entropy(probabilities: Sequence[float]) -> float:
    """Return the entropy of a distribution, in nats."""
    return -sum(chance * math.log(chance) for chance in probabilities if chance > 0)
