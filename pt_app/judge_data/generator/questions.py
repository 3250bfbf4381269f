"""Generated rows with several questions: is each kind of error there, the worst one, the score."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pt_app.core.dataset import DatasetCard, card_asks
from pt_app.core.records import JudgeExample, Place
from pt_app.core.state_rows import examples_of
from pt_app.judge_data.card import Card
from pt_app.judge_data.generator.errors import ERRORS, KINDS

STATE = ("source", "reference", "translation")
NONE = "none"


def questions_card() -> Card:
    """Return what dataset.json says of such rows."""
    kinds = {name: KINDS[name].remark for name in ERRORS}
    questions: Card = {
        name: {"type": "bool", "instructions": f"Is this an error of the translation: {remark}?"}
        for name, remark in kinds.items()
    }
    questions["worst"] = {
        "type": "choice",
        "instructions": "Which is the worst error of the translation?",
        "options": kinds | {NONE: "no error"},
    }
    questions["overall"] = {
        "type": "score",
        "instructions": "How good is the translation?",
        "scale": "0-10",
        "legend": {"0": "useless", "10": "perfect"},
    }
    return {"task": "questions", "state": [*STATE], "questions": questions}


def as_questions(rows: Sequence[JudgeExample], card: Card) -> Iterator[JudgeExample]:
    """Yield the examples of generated rows, one for each question."""
    asked = card_asks(DatasetCard.model_validate(card), Path("dataset.json"))
    assert isinstance(asked, tuple), "the card has the task questions"
    for number, row in enumerate(rows, 1):
        errors = [kind for kind in ERRORS if kind in (row.errors or ())]  # the heaviest is first
        labels: Card = {kind: kind in errors for kind in ERRORS}
        labels |= {"worst": errors[0] if errors else NONE}
        labels |= {"overall": row.label.verdict} if row.label else {}
        texts = zip(STATE, (row.source, row.reference, row.candidate), strict=True)
        value = {"id": row.id, "group": row.group, **dict(texts), "labels": labels}
        place = Place(Path("generated"), number, lines=True)
        yield from examples_of(value, place, STATE, asked, row.id)
