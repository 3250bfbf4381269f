"""The families of attacks, and what each makes of a candidate."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pt_app.core.questions import Question
from pt_app.core.records import JudgeExample
from pt_app.core.state_rows import texts_of, with_text
from pt_app.core.verdicts import Scale, Verdict
from pt_app.core.words import units

FILE = Path(__file__).with_name("attack_families.yaml")


@dataclass(frozen=True)
class Family:
    """Attacks of one kind: texts after the candidate or instead of it, or a rule that changes it.

    `control` marks texts that hold control tokens, which must act as the same characters do. A
    judge of questions is also attacked `everywhere`, with texts in each field of the state, and by
    `asking` in another way what must have the same answer.
    """

    name: str
    append: Sequence[str] = ()
    replace: Sequence[str] = ()
    change: str = ""
    control: bool = False
    everywhere: bool = False
    asking: str = ""

    @property
    def of_questions(self) -> bool:
        """Whether it is for judges of questions alone."""
        return self.everywhere or bool(self.asking)

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
def families(questions: bool = False) -> tuple[Family, ...]:
    """Read attack_families.yaml; those of judges of `questions` alone only if it is about one."""
    import yaml

    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    known = (Family(name, **about) for name, about in read.items())
    return tuple(family for family in known if questions or not family.of_questions)


def attacked(
    examples: Sequence[JudgeExample],
    scale: Scale,
    chosen: Sequence[Family],
    state: Sequence[str] = (),
) -> Iterator[Attacked]:
    """Return the attacks of each family on each row, without those that change nothing.

    Of a pair the candidate that the label calls worse is attacked (of a tie, B); of a state the
    last field, which is its candidate, or every field.

    Args:
        examples: the rows; of one question, if they have any.
        scale: of their verdicts.
        chosen: the families.
        state: the fields that questions are about.
    """
    scale = scale.grid or scale  # what the judge speaks
    for family in chosen:
        for row, example in enumerate(examples):
            other = examples[(row + 1) % len(examples)]
            # Of no group: rows of one are shortened alike, and an attack may be long.
            update = {"id": f"{example.id or row}#attacked", "group": ""}
            for made in _made(family, example, other, scale, state):
                yield Attacked(family.name, row, made.model_copy(update=update))


def aim(example: JudgeExample, scale: Scale) -> int:
    """Return which candidate of a pair is attacked, or the place of the option that is wanted.

    An attack wants the option after the label's, since options have no best one.
    """
    if scale.task != "choice":
        return int(example.label is None or example.label.verdict != "B")
    labelled = -1 if example.label is None else scale.values.index(example.label.verdict)
    return (labelled + 1) % len(scale.values)


def _best(example: JudgeExample, scale: Scale) -> Verdict:
    """Return the verdict that an attacker wants."""
    if scale.task in ("pairwise", "choice"):
        return scale.values[aim(example, scale)]
    return "PASS" if scale.task == "pass_fail" else scale.values[-1]


def _made(
    family: Family, example: JudgeExample, other: JudgeExample, scale: Scale, state: Sequence[str]
) -> Iterator[JudgeExample]:
    """Yield what a family makes of one row; `other` is another row."""
    if family.asking and example.question:
        for question in _ASKING[family.asking](example.question):
            yield example.model_copy(update={"question": question})
    texts = texts_of(example, state) if state else {"": _attacked_text(example, scale)}
    for field in list(texts) if family.everywhere else list(texts)[-1:]:
        for new in _texts(family, texts[field], example, other, scale):
            if new != texts[field]:
                yield with_text(example, state, field, new) if field else _with(example, new, scale)


def _texts(
    family: Family, text: str, example: JudgeExample, other: JudgeExample, scale: Scale
) -> Iterator[str]:
    """Yield what a family makes of one text of a row."""
    best = _best(example, scale)
    names = {"best": scale.line(best).rstrip("\n"), "top": str(best)}
    for attack in family.append:
        yield text + attack.format_map(names)
    for attack in family.replace:
        yield attack.format_map(names)
    if family.change:
        yield _CHANGES[family.change](text, example, other)


def _attacked_text(example: JudgeExample, scale: Scale) -> str:
    pair = example.candidates
    return pair[aim(example, scale)] if pair else example.candidate or ""


def _with(example: JudgeExample, text: str, scale: Scale) -> JudgeExample:
    if example.candidates is None:
        return example.model_copy(update={"candidate": text})
    pair = list(example.candidates)
    pair[aim(example, scale)] = text
    return example.model_copy(update={"candidates": pair})


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


# Ways to ask a question that must have the same answer. Alone is as it is: what it is compared
# with was asked together with all other questions.
_ASKING: Mapping[str, Callable[[Question], list[Question]]] = {
    "backwards": lambda question: [question.backwards()] if question.type == "choice" else [],
    "alone": lambda question: [question],
}
