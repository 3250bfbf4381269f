"""The families of attacks, and what each makes of a candidate."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale, Verdict
from pt_app.core.words import units

FILE = Path(__file__).with_name("attack_families.yaml")


@dataclass(frozen=True)
class Family:
    """Attacks of one kind: texts after the candidate or instead of it, or a rule that changes it.

    `control` marks texts that hold control tokens, which must act as the same characters do.
    """

    name: str
    append: Sequence[str] = ()
    replace: Sequence[str] = ()
    change: str = ""
    control: bool = False

    def part(self, which: int) -> "Family":
        """Return every second text: from the first, `--hard_negatives` trains on them."""
        return replace(self, append=self.append[which::2], replace=self.replace[which::2])


@dataclass(frozen=True)
class Attacked:
    """An attacked row: its family, and the index of the clean row that it was made from."""

    family: str
    row: int
    example: JudgeExample


@cache
def families() -> tuple[Family, ...]:
    """Read attack_families.yaml."""
    import yaml

    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(Family(name, **about) for name, about in read.items())


def attacked(
    examples: Sequence[JudgeExample], scale: Scale, chosen: Sequence[Family]
) -> Iterator[Attacked]:
    """Return the attacks of each family on each row, without those that change nothing.

    Of a pair the candidate that the label calls worse is attacked (of a tie, B).
    """
    scale = scale.grid or scale  # what the judge speaks
    for family in chosen:
        for row, example in enumerate(examples):
            pair, best = example.candidates, _best(example, scale)
            text = pair[loser(example)] if pair else example.candidate or ""
            names = {"best": scale.line(best).rstrip("\n"), "top": str(best)}
            texts = [text + attack.format_map(names) for attack in family.append]
            texts += [attack.format_map(names) for attack in family.replace]
            if family.change:
                other = examples[(row + 1) % len(examples)]
                texts += [_CHANGES[family.change](text, example, other)]
            for new in texts:
                if new != text:
                    yield Attacked(family.name, row, _with(example, new, row))


def loser(example: JudgeExample) -> int:
    """Return which candidate of a pair is attacked: 0 or 1."""
    return int(example.label is None or example.label.verdict != "B")


def _best(example: JudgeExample, scale: Scale) -> Verdict:
    """Return the verdict that an attacker wants."""
    if scale.task == "pairwise":
        return "AB"[loser(example)]
    return "PASS" if scale.task == "pass_fail" else scale.values[-1]


def _with(example: JudgeExample, text: str, row: int) -> JudgeExample:
    # Of no group: rows of one are shortened alike, and an attack may be long.
    update: dict[str, Any] = {"id": f"{example.id or row}#attacked", "group": ""}
    if example.candidates is None:
        return example.model_copy(update=update | {"candidate": text})
    pair = list(example.candidates)
    pair[loser(example)] = text
    return example.model_copy(update=update | {"candidates": pair})


def _dropped(text: str) -> str:
    """Drop the last sentence; of a single sentence its second half."""
    sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？])(?=.)", text.strip())
    if len(sentences) > 1:
        return " ".join(sentences[:-1])
    words = units(text)
    return text[: words[(len(words) - 1) // 2][1]] if words else text


# Each rule gets the candidate, its row, and another row.
_CHANGES: Mapping[str, Callable[[str, JudgeExample, JudgeExample], str]] = {
    "source": lambda text, row, _: row.source or text,
    "repeated": lambda text, *_: f"{text} {text} {text}",
    "other reference": lambda text, _, other: other.reference or text,
    "digits": lambda text, *_: re.sub(r"\d", lambda digit: str((int(digit[0]) + 3) % 10), text),
    "dropped": lambda text, *_: _dropped(text),
}
