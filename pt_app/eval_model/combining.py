"""`judge combine`: ask a judge several questions, and fit what they say of another one."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pt_app.core.dataset import JudgeData, draw, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, write_json_atomic
from pt_app.core.questions import Question
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Verdict
from pt_app.evidence.baselines import Labelled
from pt_app.evidence.combining import Combined, Distributions, combine
from pt_app.judge import Answer, Judge

log = logging.getLogger(__name__)
COMBINED = "combined.json"
AnsweredRows = list[tuple[JudgeExample, dict[str, Answer]]]


def combine_questions(
    adapter: Path,
    data: Path,
    question: str,
    out: Path | None = None,
    *,
    of: Sequence[str] = (),
    base: str | None = None,
    rows: int = 0,
) -> Combined:
    """Fit on validation rows what other questions say of one, and measure it on test rows.

    Args:
        adapter: the folder of the judge.
        data: the dataset folder.
        question: the question to predict from the others.
        out: where combined.json is written; default: the adapter's evaluation.
        of: the questions that are combined; default: all others of the judge.
        base: the path of the adapter's base, if it was a folder.
        rows: the number of rows of each split, drawn by the seed 0; 0: all.

    Raises:
        UserError: for an unknown question, and too few rows.
    """
    dataset = read_dataset(data)
    asked = _question(dataset, question)
    path = (out or adapter / "evaluation") / COMBINED
    refuse_overwrite([path], [data])
    judge = Judge.load(adapter, base=base)
    if any(q.name == question and q.content != asked.content for q in judge.info.questions):
        problem = f"{question} is another question in {data} than in {adapter}"
        raise UserError(f"{problem}: name the data that it was trained on")
    others = list(of) or [q.name for q in judge.info.questions if q.name != question]
    if not others or question in others:
        raise UserError(f"{question} is to be combined of other questions: name some with --of")
    splits = (draw(dataset.about([asked]).val, rows, 0), draw(dataset.about([asked]).test, rows, 0))
    val, test = (_answered(judge, part, [*others, question]) for part in splits)
    direct: list[Verdict | None] = [answers[question].verdict for _, answers in test]
    both = tuple((_labelled(part, asked), _distributions(part, others)) for part in (val, test))
    found = combine(asked, both[0], both[1], direct)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, found.as_json())
    return found


def _question(dataset: JudgeData, name: str) -> Question:
    for question in dataset.questions:
        if question.name == name:
            return question
    known = ", ".join(question.name for question in dataset.questions) or "none"
    raise UserError(f'{dataset.path} declares no question "{name}": it declares {known}')


def _answered(judge: Judge, rows: Sequence[JudgeExample], names: Sequence[str]) -> AnsweredRows:
    """Ask about rows; those that are too long are left out, and counted."""
    answers = judge.ask_all([row.row or {} for row in rows], names, progress=True)
    both = zip(rows, answers, strict=True)
    kept = [(row, own) for row, own in both if all(a.probabilities for a in own.values())]
    if left_out := len(rows) - len(kept):
        log.warning("%d of %d rows are too long for the judge, and left out", left_out, len(rows))
    return kept


def _labelled(rows: AnsweredRows, question: Question) -> Labelled:
    return Labelled.of_examples([row for row, _ in rows], question.scale)


def _distributions(rows: AnsweredRows, names: Sequence[str]) -> list[Distributions]:
    return [{name: answers[name].probabilities or {} for name in names} for _, answers in rows]
