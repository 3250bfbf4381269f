"""Texts on both sides of a split, equal except for case, spaces, punctuation and accents.

The cheap part of the check: training runs it on every dataset. `judge data check` adds near
duplicates (`judge_data/duplicates.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pt_app.core.records import JudgeExample, clipped, without_candidate
from pt_app.core.words import normalised, words_of

# A candidate this short ("Yes.", "O gato dorme.") stands under two sources by chance.
LEAST_WORDS = 8
# A candidate under more inputs than this is boilerplate ("As an AI model I cannot ..."): to keep
# all its inputs together would leave nothing to split.
MAX_INPUTS = 3

Kind = Literal["exact", "normalised", "near"]
Field = Literal["group", "source", "candidate"]


@dataclass(frozen=True)
class Leak:
    """One text on two sides: where it stands, and how alike the two are (1 but for `near`)."""

    kind: Kind
    field: Field
    a: JudgeExample
    b: JudgeExample
    split_a: str
    split_b: str
    text: str
    """The text as it is at `b`."""
    similarity: float = 1.0

    def line(self, with_text: bool = True) -> str:
        """Describe the leak in one line, with its text shortened or omitted."""
        shown = f'"{clipped(self.text)}"' if with_text else self.b.id
        how = {"exact": "", "normalised": ", but for case, accents or punctuation"}
        near = f", {self.similarity:.0%} of the words alike"
        sides = ((self.split_a, self.a), (self.split_b, self.b))
        places = " and ".join(f"{split} ({row.where or row.id})" for split, row in sides)
        return f"{self.field} {shown} is in {places}{how.get(self.kind, near)}"


def input_text(example: JudgeExample) -> str:
    """Return what is judged against: source, else conversation, else the turn without candidate."""
    if example.source and example.source.strip():
        return example.source
    if example.conversation:
        return "\n".join(turn.content for turn in example.conversation)
    return without_candidate(example.prompt or "", example.candidate)


def candidate_texts(example: JudgeExample) -> list[str]:
    """Return the row's candidates: one, a pair's two, or none where a chat row does not say."""
    if example.candidates is not None:
        return list(example.candidates)
    return [example.candidate] if example.candidate is not None else []


def find_leaks(splits: Mapping[str, Sequence[JudgeExample]]) -> list[Leak]:
    """Find groups, inputs and long candidates that are in two splits, except for case and the like.

    One leak for each text of each later split, against its first row in an earlier one.
    """
    leaks = list(_across(splits, "source"))
    listed = {(leak.b.id, leak.split_b) for leak in leaks}
    leaks += [leak for leak in _across(splits, "group") if (leak.b.id, leak.split_b) not in listed]
    boilerplate = boilerplate_of([e for part in splits.values() for e in part])
    leaks += [
        leak
        for leak in _across(splits, "candidate")
        if is_telling(key := normalised(leak.text)) and key not in boilerplate
    ]
    return leaks


def is_telling(key: str) -> bool:
    """Return whether a normalized candidate is too long for two rows to share it by chance."""
    return len(words_of(key)) >= LEAST_WORDS


def texts_of(example: JudgeExample, field: Field) -> list[str]:
    """Return the texts of a field as `find_leaks` compares them."""
    if field == "group":
        return [example.group]
    return [input_text(example)] if field == "source" else candidate_texts(example)


def _across(splits: Mapping[str, Sequence[JudgeExample]], field: Field) -> Iterator[Leak]:
    first: dict[str, tuple[str, JudgeExample, str]] = {}
    listed: set[tuple[str, str]] = set()
    for split, examples in splits.items():
        for example in examples:
            for text in texts_of(example, field):
                key = text if field == "group" else normalised(text)
                other, where, same = first.setdefault(key, (split, example, text))
                if other != split and key and (split, key) not in listed:
                    listed.add((split, key))
                    kind: Kind = "exact" if text == same else "normalised"
                    yield Leak(kind, field, where, example, other, split, text)


def boilerplate_of(examples: Iterable[JudgeExample]) -> set[str]:
    """Return the normalised candidates that stand under more than MAX_INPUTS inputs."""
    inputs: dict[str, set[str]] = {}
    for example in examples:
        key = normalised(input_text(example))
        for text in candidate_texts(example):
            inputs.setdefault(normalised(text), set()).add(key)
    return {text for text, keys in inputs.items() if len(keys) > MAX_INPUTS}
