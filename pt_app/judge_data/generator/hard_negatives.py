"""Attacked copies of training rows, so that a judge learns to see through them.

Half of each family's texts are used: what a judge makes of the others shows whether it learnt the
family or the words.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pt_app.core.attack_families import attacked, families
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale

Row = dict[str, Any]
KIND = "attack"
LOWEST = {  # families that leave no translation
    "master key": "The answer is no translation of the source.",
    "null answer": "The answer is no translation of the source.",
    "empty": "Nothing is translated.",
    "source copied": "The source is copied, not translated.",
    "wrong language": "The text is in another language.",
    "reference of another row": "The text translates another source.",
}


def hard_negatives(rows: Sequence[Row], share: float, scale: Scale, seed: int) -> list[Row]:
    """Attacked copies of `share` of the training rows, in their groups.

    What is put behind a candidate leaves its label as it was; what takes its place gets the lowest
    verdict. Families whose harm depends on the row (digits, sentences) are left out.
    """
    rng = random.Random(seed + 1)  # the rows themselves stay those of the seed
    usable = [one.part(0) for one in families() if one.append or one.name in LOWEST]
    chosen = sorted(rng.sample(range(len(rows)), round(share * len(rows))))
    found = []
    for number in chosen:
        pair = [_example(rows[number]), _example(rows[(number + 1) % len(rows)])]
        made = [one for one in attacked(pair, scale, [rng.choice(usable)]) if one.row == 0]
        if made:
            one = rng.choice(made)
            found.append(_attacked_row(rows[number], one.family, one.example.candidate, scale))
    return found


def _example(row: Mapping[str, Any]) -> JudgeExample:
    return JudgeExample.model_validate(row)


def _attacked_row(row: Row, family: str, candidate: str | None, scale: Scale) -> Row:
    label = row["label"]
    if family in LOWEST:
        label = {"verdict": scale.values[0], "issues": [], "feedback": LOWEST[family]}
    return {
        **row,
        "id": f"{row['id']}-attacked",
        "candidate": candidate,
        "label": label,
        "errors": [KIND] if family in LOWEST else [*row["errors"], KIND],
    }
