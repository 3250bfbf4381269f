"""What a question from a client means to a judge: here the questions of the wires meet scales.

A judge has a question of its own, or several. It recognizes them by wording and options, never by
name. Any other question is asked of the same model zero-shot, without the calibration, which
belongs to the wording.
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic_core

from pt_app.core.decision_wires import Json, WireQuestion
from pt_app.core.errors import UserError
from pt_app.core.files import each_once
from pt_app.core.http_server import RefusedError
from pt_app.core.prompt_templates import fill, scale_fields
from pt_app.core.questions import MAX_OPTIONS, Declared, Question
from pt_app.core.records import JudgeExample, Place, one_line
from pt_app.core.state_rows import state_example
from pt_app.core.verdicts import NAMED, Scale
from pt_app.judge import Judge, Judgement, read_row

# Tokens of a prompt that is asked zero-shot: 255 options are longer than what a judge was trained
# on, and a short context (the tiny base's) is exceeded rather than an option left out.
CONTEXT = 16_384
STATE = Place(Path("state"), 1, lines=False)
# MLflow's judges must name their input in their words, and write its name before it.
MLFLOW_WORDS, MLFLOW_STATE = 'the "inputs" field in the input', "inputs: "


@dataclass(frozen=True)
class ServedRow:
    """A row of a request, as a judge is asked about it.

    Attributes:
        judge: the judge of the model that was named.
        row: the row to judge; for a judge of questions, and for a question that is asked zero-shot,
            an example with the question.
        verdicts: the verdict that stands for each option of the question.
        trained: whether the judge was trained on this question.
        place: where a row of fields is in its request, for its id and messages.
        at: where the question is in its request, for messages.
    """

    judge: Judge
    row: Mapping[str, object] | JudgeExample
    verdicts: tuple[str, ...]
    trained: bool = True
    place: Place = STATE
    at: str = ""

    @property
    def limit(self) -> int:
        """The tokens that fit, prompt and verdict."""
        own = self.trained or self.judge.info.questions
        return self.judge.encoder.max_seq_length if own else CONTEXT

    def probabilities(self, judgement: Judgement) -> list[float]:
        """Return the probability of each option."""
        assert judgement.probabilities is not None
        return [judgement.probabilities[verdict] for verdict in self.verdicts]


def text_of(value: Json) -> str:
    """Return a text as it is, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rubric_of(judge: Judge) -> str:
    """Return the words of the question that a judge was trained on.

    Its rubric; a template may have none for a scale, and then has its system's text.
    """
    template, of_scale = judge.info.template, scale_fields(judge.info.scale)
    return fill(template.rubric, of_scale) or fill(template.system, of_scale)


def row_of(question: WireQuestion, state: Json, judge: Judge, strict: bool = False) -> ServedRow:
    """Return the row that asks a judge a question about a state.

    Raises:
        RefusedError: for a question that the judge was not trained on under `strict`, and a state
            that is no row of fields where it was.
    """
    if judge.info.questions:
        return _row_of_questions(question, state, judge, strict)
    if question.type == "bool":  # a judge with a scale says PASS or FAIL
        pass_fail = zip(map(str, NAMED["pass_fail"]), question.descriptions, strict=True)
        question = replace(question, options=tuple(pass_fail))
    if _is_own(question, judge):
        row = _fields_of(state)
        if row is None:
            fields = ", ".join(judge.info.row_fields)
            problem = f"the state is no row: give an object with the fields {fields}"
            raise RefusedError(problem, 422, "state")
        return ServedRow(judge, row, question.names, at=question.at)
    if strict:
        own = f"{rubric_of(judge)!r} with the answers {', '.join(_own_options(judge))}"
        raise _refused(question, f"this judge answers its own question alone: {own}")
    return _zero_shot(question, state, judge)


def fits(row: ServedRow) -> bool:
    """Return whether prompt and verdict of a row fit; of a malformed row True."""
    judge, example = row.judge, row.row
    if not isinstance(example, JudgeExample):
        read = read_row(example, row.place, judge.info)
        if isinstance(read, str):
            return True
        example = read
    encoder = judge.encoder.about(example.question) if example.question else copy(judge.encoder)
    encoder.max_seq_length = row.limit
    return not encoder.fit([example], shorten=False)[1].unfit


def judgements_of(rows: Sequence[ServedRow]) -> Sequence[Judgement]:
    """Judge rows of one judge: examples with a question, or rows of fields."""
    judge, limit = rows[0].judge, rows[0].limit
    if examples := [each.row for each in rows if isinstance(each.row, JudgeExample)]:
        return judge.answers(examples, shorten=False, max_seq_length=limit)
    fields = [each.row for each in rows if isinstance(each.row, Mapping)]
    return judge.score(fields, places=[each.place for each in rows], shorten=False)


def _zero_shot(question: WireQuestion, state: Json, judge: Judge) -> ServedRow:
    """Ask a judge with a scale a question that it was not trained on, on a scale of its own."""
    name = "pass_fail" if question.type == "bool" else f"1-{len(question.options)}"
    scale = Scale.from_name(name)
    declared = Declared(type="score", instructions=question.instructions, scale=name)
    asked, prompt = Question("asked", declared, scale), _prompt(question, state, scale)
    example = JudgeExample(prompt=prompt, question=asked, where="state")
    verdicts = tuple(map(str, scale.values))
    return ServedRow(judge, example, verdicts, trained=False, at=question.at)


def _row_of_questions(question: WireQuestion, state: Json, judge: Judge, strict: bool) -> ServedRow:
    """Ask a judge of questions, in the form of prompts that it was trained on."""
    try:
        asked = _own(question, judge) or Question.of(
            "asked", _declared(question, judge), question.at
        )
    except UserError as error:
        raise RefusedError(str(error), 422, "questions", question.key) from error
    trained = judge.own(asked) is not None
    if strict and not trained:
        words = "; ".join(one_line(each.declared.instructions) for each in judge.info.questions)
        raise _refused(question, f"this judge answers its own questions alone: {words}")
    row, fields = _fields_of(state), judge.info.state
    # A text is that of the one field, JSON or not, but for an object of this field alone: on some
    # wires an object can only be written as text.
    if isinstance(state, str) and len(fields) == 1 and set(row or ()) != {*fields}:
        row = {fields[0]: state}
    try:
        example = state_example(row or {}, STATE, fields, "state")
    except UserError as error:
        raise RefusedError(str(error), 422, "state") from error
    levels = tuple(map(str, asked.scale.values))
    verdicts = levels if asked.type == "score" else question.names
    example = example.model_copy(update={"question": asked})
    return ServedRow(judge, example, verdicts, trained=trained, at=question.at)


def _refused(question: WireQuestion, problem: str) -> RefusedError:
    return RefusedError(f"{question.at}: {problem}", 422, "questions", question.key)


def _own(question: WireQuestion, judge: Judge) -> Question | None:
    """Return the judge's own question that a client writes so; None if it is another one."""
    question = replace(question, instructions=question.instructions.removesuffix(MLFLOW_WORDS))
    for own in judge.info.questions:
        if len(own.scale.values) > MAX_OPTIONS:
            continue  # nobody can ask it
        both = [question, WireQuestion.of(own.scale, "", own)]
        # A client whose scores have few levels asks a fine scale as a choice of its numbers.
        if own.type == "score" and question.type != "bool":
            both = [replace(each, type="score") for each in both]
        if both[0].content == both[1].content:
            return own
    return None


def _declared(question: WireQuestion, judge: Judge) -> Declared:
    """Declare a question as a dataset does: the levels of a score by their texts or as numbers."""
    words = question.instructions.removesuffix(MLFLOW_WORDS).strip()
    pairs = question.options
    about = {name: text for name, text in pairs if text}
    if question.type == "bool":
        criteria: Any = dict(pairs) if about else None
        return Declared(type="bool", instructions=words, criteria=criteria)
    if question.type == "choice":
        unique = len(dict(pairs)) == len(pairs)
        options: Any = dict(pairs) if about and unique else list(question.names)
        return Declared(type="choice", instructions=words, options=options)
    scales = [own.scale for own in judge.info.questions if own.type == "score"]
    for scale in scales:
        if question.names == tuple(map(str, scale.values)):
            return Declared(
                type="score", instructions=words, scale=scale.name, legend=about or None
            )
    levels: list[str | None] = [f"{name}: {text}" if text else name for name, text in pairs]
    return Declared(type="score", instructions=words, levels=levels)


def _own_options(judge: Judge) -> list[str]:
    return [str(value) for value in judge.info.scale.values]


def _is_own(question: WireQuestion, judge: Judge) -> bool:
    """Return whether a question is the one that a judge with a scale was trained on.

    Without instructions it is. Options of a choice may be in any order.
    """
    words, own = one_line(question.instructions), _own_options(judge)
    words = words.removesuffix(MLFLOW_WORDS).strip()
    known = ("", one_line(rubric_of(judge)), one_line(judge.info.words))
    if words not in known or any(question.descriptions):
        return False
    if question.type == "score":
        return judge.info.scale.task == "score" and list(question.names) == own
    return sorted(question.names) == sorted(own)


def json_of(text: str | bytes) -> Any:
    """Parse JSON of a request; raise ValueError for what is not JSON, NaN and a member given twice.

    It is read twice: `json` would read it deeper than it can write it again, and the other keeps
    the last of two members of one name, so that a question would be lost.
    """
    value = pydantic_core.from_json(text, allow_inf_nan=False)
    json.loads(text, object_pairs_hook=each_once)
    return value


def _fields_of(state: Json) -> Mapping[str, object] | None:
    if isinstance(state, str):
        try:
            state = json_of(state.removeprefix(MLFLOW_STATE))
        except ValueError:
            return None
    return state if isinstance(state, dict) else None


def _prompt(question: WireQuestion, state: Json, scale: Scale) -> str:
    numbered = question.type != "bool"
    lines = [
        f"{f'{number}. ' if numbered else ''}{name}{f': {about}' if about else ''}"
        for number, (name, about) in enumerate(question.options, 1)
    ]
    answer = f'Answer with the line "{scale.form()}".'
    return "\n".join([text_of(state), "", question.instructions, *lines, answer])
