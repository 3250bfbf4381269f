"""Rows of a dataset that declares questions: from a row on disk to an example for each question.

{"id": "t-104", "ticket": "One cup is broken.", "reply": "Sorry! A new cup leaves today.",
 "labels": {"apologises": true, "offer": {"votes": {"replacement": 2, "refund": 1}},
            "quality": {"annotators": {"ana": 2, "rui": 1}}}}
"""

import json
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pt_app.core.choosing import choose, resolved_rule
from pt_app.core.questions import Declared, Question
from pt_app.core.records import (
    Annotation,
    Cells,
    JudgeExample,
    Label,
    Place,
    RowError,
    as_name,
    checked,
    clipped,
    one_line,
)
from pt_app.core.verdicts import Verdict
from pt_app.core.words import is_unicode

MAX_VOTES = 1e15  # a sum of such counts is a number still
RESERVED = ("id", "group", "meta", "labels")  # no field of the state may have such a name


def as_declared(name: str, value: Declared | Mapping[str, object]) -> Declared:
    """Read the declaration of a question; raises UserError for one that is malformed."""
    return checked(Declared, value, f"questions.{name}")


def state_of(value: Cells, fields: Sequence[str], place: Place) -> dict[str, str]:
    """Return the texts of a row's state by field; raises UserError for one that is missing."""
    texts = {}
    for name in fields:
        text = _text(value.get(name))
        if text is None:
            raise place.error(
                name, "the row has none", "the state needs it: write it, or leave the row out"
            )
        if not isinstance(text, str) or not is_unicode(text):
            raise place.error(name, "it is no text", "write a text, a number, or JSON of these")
        texts[name] = text
    return texts


def _text(cell: object) -> object:
    """Return the text of a cell; None where it has none, and what is no text as it is."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list | dict):
        try:  # a Parquet file may hold dates and decimals within an object
            return json.dumps(cell, ensure_ascii=False, default=str, allow_nan=False)
        except (TypeError, ValueError):  # a key that is no text; NaN
            return cell
    if isinstance(cell, numbers.Real) and cell in (math.inf, -math.inf):
        return cell
    return as_name(cell) or None  # pandas has NaN for a missing text


def texts_of(example: JudgeExample, fields: Sequence[str]) -> dict[str, str]:
    """Return the texts of the state of a row that was read, by field."""
    return state_of(example.row or {}, fields, Place(Path(example.where), 0, lines=False))


def with_text(example: JudgeExample, fields: Sequence[str], field: str, text: str) -> JudgeExample:
    """Return a row with another text in a field of its state."""
    row, place = {**(example.row or {}), field: text}, Place(Path(example.where), 0, lines=False)
    made = state_example(row, place, fields, example.id)
    changed = ("row", "source", "candidate", "state")
    return example.model_copy(update={name: getattr(made, name) for name in changed})


def examples_of(
    value: Cells, place: Place, fields: Sequence[str], questions: Sequence[Question], name: str
) -> Iterator[JudgeExample]:
    """Make an example of a row and each of the questions that it has a label for.

    Args:
        value: the row.
        place: where it is, for messages.
        fields: of the state.
        questions: that are declared.
        name: the id of a row that has none.

    Raises:
        UserError: for a field of the state that is missing, and for a label that cannot be read or
            belongs to no question.
    """
    bare = state_example(value, place, fields, name)
    labels = value.get("labels")
    if labels is None:
        labels = {}
    if not isinstance(labels, Mapping):
        raise place.error("labels", "they are no object", "write {question: label}")
    declared = {question.name: question for question in questions}
    for label in labels:
        if label not in declared:
            raise unknown_question(label, declared, place)
    for question in questions:
        if (cell := labels.get(question.name)) is not None:
            update = {"question": question, **label_of(cell, question, place)}
            yield bare.model_copy(update=update)


def state_example(value: Cells, place: Place, fields: Sequence[str], name: str) -> JudgeExample:
    """Make the record of a row about which nothing is asked yet.

    The last field is the candidate, and the others are what it is judged against.
    """
    texts = state_of(value, fields, place)
    *others, candidate = texts.values()
    source = "\n".join(others) if others else candidate
    meta = value.get("meta") or {}
    if not isinstance(meta, dict):
        raise place.error("meta", "it is no object", "write {name: value}")
    own = as_name(value.get("id")) or name
    if not isinstance(own, str) or not is_unicode(own):
        raise place.error("id", "it is no name", "write a text or a number")
    return JudgeExample(
        id=own,
        group=one_line(str(as_name(value.get("group")) or source)),
        source=source,
        candidate=candidate,
        state="\n".join(f"{field}: {text}" for field, text in texts.items()),
        meta=meta,
        row=value,
        where=place.where,
    )


def unknown_question(name: str, declared: Iterable[str], place: Place) -> RowError:
    """Return the error of a label of a question that is not declared."""
    remedy = f"declared are {', '.join(declared)}"
    return place.error(f"labels.{name}", "there is no such question", remedy)


def label_of(cell: object, question: Question, place: Place) -> dict[str, object]:
    """Return label, shares and annotators of a cell: a value, votes, or annotators.

    Raises:
        RowError: for a cell that is none of these.
    """
    at = f"labels.{question.name}"
    if not isinstance(cell, Mapping):
        return {"label": Label(verdict=verdict_of(cell, question, place, at))}
    kind, given = next(iter(cell.items()), ("", None))
    if len(cell) != 1 or not isinstance(given, Mapping):
        kind, given = "", {}
    if kind == "votes":
        counts = dict.fromkeys(question.scale.values, 0.0)
        for option, count in given.items():
            is_count = isinstance(count, int | float) and not isinstance(count, bool)
            if not is_count or not 0 <= count <= MAX_VOTES:
                shown = clipped(json.dumps(count, default=str))
                problem = f"{shown} is no number of votes"
                remedy = f"give 0 or more, at most {MAX_VOTES:.0e}"
                raise place.error(f"{at}.votes.{option}", problem, remedy)
            counts[verdict_of(option, question, place, f"{at}.votes")] += float(count)
        return _shared(counts, question, place, f"{at}.votes")
    if kind == "annotators":
        people = [
            Annotation(
                rater=name, verdict=verdict_of(one, question, place, f"{at}.annotators.{name}")
            )
            for name, one in given.items()
            if one is not None  # a rater who said nothing
        ]
        counts = {value: sum(p.verdict == value for p in people) for value in question.scale.values}
        return _shared(counts, question, place, f"{at}.annotators") | {"annotators": people}
    raise place.error(
        at, "it is no label", 'give a value, {"votes": {...}} or {"annotators": {...}}'
    )


def _shared(
    counts: Mapping[Verdict, float], question: Question, place: Place, at: str
) -> dict[str, object]:
    """Return votes as shares, and the verdict that they stand for."""
    total = sum(counts.values())
    if not total:
        problem = "all votes are 0" if at.endswith("votes") else "there is none"
        raise place.error(at, problem, "give one, or leave the question out of the row")
    shares = tuple(counts[value] / total for value in question.scale.values)
    rule = resolved_rule("auto", question.scale)
    return {"label": Label(verdict=choose(shares, question.scale, rule)), "shares": shares}


def verdict_of(cell: object, question: Question, place: Place, at: str) -> Verdict:
    """Read a label; raises UserError for what is none of the question, at the field `at`."""
    verdict = question.verdict(cell)
    if verdict is None:
        shown = json.dumps(cell, ensure_ascii=False, default=str)
        raise place.error(at, f"{shown} is not allowed", question.says())
    return verdict
