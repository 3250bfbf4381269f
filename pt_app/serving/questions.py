"""What a question of any wire means to a judge: the one place where questions meet scales.

A judge knows its own question, or questions: they are recognized by wording and options, never by
name. Any other is asked of the same model zero-shot, without the calibration, which belongs to
wording.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pt_app.core import questions as core
from pt_app.core.errors import UserError
from pt_app.core.http_server import RefusedError
from pt_app.core.prompt_templates import fill, scale_fields
from pt_app.core.records import JudgeExample, Place, one_line
from pt_app.core.state_rows import state_example
from pt_app.core.verdicts import Scale
from pt_app.judge import Judge, Judgement
from pt_app.models import adapters

# Tokens of a prompt that is asked zero-shot: 255 options are longer than what a judge was trained
# on, and a short context (the tiny base's) is exceeded rather than an option left out.
CONTEXT = 16_384
# MLflow's judges must name their input in their words, and write its name before it.
MLFLOW_WORDS, MLFLOW_STATE = 'the "inputs" field in the input', "inputs: "
Json = Any  # a value that was read from JSON


@dataclass(frozen=True)
class Question:
    """A question, whichever wire brought it.

    Attributes:
        kind: yes_no, choice or score.
        instructions: what is asked.
        options: the names of the answers, in order; of a yes_no question PASS and FAIL.
        descriptions: what each of them means; "" for none.
    """

    kind: Literal["yes_no", "choice", "score"]
    instructions: str
    options: tuple[str, ...]
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """A question about a state, as a row for a judge.

    Attributes:
        judge: the judge of the model that was named.
        scale: the scale of the answer; None: the judge's own.
        row: the row to judge; of a judge of questions an example with the question.
        verdicts: the verdict that stands for each option.
        trained: whether the judge was trained on this question.
    """

    judge: Judge
    scale: str | None
    row: Mapping[str, object] | JudgeExample
    verdicts: tuple[str, ...]
    trained: bool = True

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


def asked(question: Question, state: Json, judge: Judge, strict: bool = False) -> Asked:
    """Return the row that asks a question about a state.

    Raises:
        RefusedError: for another question than the judge's own under `strict`, and a state that is
            no row of fields where the question is the judge's own.
    """
    if judge.info.questions:
        return _asked_of_several(question, state, judge, strict)
    if _is_own(question, judge):
        row = _row_of(state)
        if row is None:
            fields = ", ".join(judge.info.row_fields)
            problem = f"the state is no row: give an object with the fields {fields}"
            raise RefusedError(problem, 422, "state")
        return Asked(judge, None, row, question.options)
    if strict:
        own = f"{rubric_of(judge)!r} with the answers {', '.join(_own_options(judge))}"
        raise RefusedError(f"this judge answers its own question alone: {own}", 422, "questions")
    scale = "pass_fail" if question.kind == "yes_no" else f"1-{len(question.options)}"
    row = {"messages": [{"role": "user", "content": _prompt(question, state, scale)}]}
    return Asked(judge, scale, row, tuple(map(str, Scale.from_name(scale).values)), trained=False)


def judgements_of(judge: Judge, rows: Sequence[Asked]) -> Sequence[Judgement]:
    """Judge rows for a judge, which is that of all of them."""
    if judge.info.questions:
        examples = [asked.row for asked in rows if isinstance(asked.row, JudgeExample)]
        return judge.answers(examples, shorten=False)
    return judge.score([row.row for row in rows if isinstance(row.row, Mapping)], shorten=False)


def _asked_of_several(question: Question, state: Json, judge: Judge, strict: bool) -> Asked:
    """Ask a judge of questions, in the form of prompts that it was trained on."""
    # A client whose scores have few levels asks a fine scale as a choice of its numbers.
    forms = [question, replace(question, kind="score")] if question.kind == "choice" else [question]
    try:
        read = [core.Question.of("asked", _declared(form, judge), "questions") for form in forms]
    except UserError as error:
        raise RefusedError(str(error), 422, "questions") from error
    each = [judge.known(one) for one in read]
    known = next((one for one in each if one in judge.info.questions), each[0])
    trained = known in judge.info.questions
    if strict and not trained:
        own = "; ".join(one_line(each.declared.instructions) for each in judge.info.questions)
        raise RefusedError(f"this judge answers its own questions alone: {own}", 422, "questions")
    row, fields = _row_of(state), judge.info.state
    if row is None and isinstance(state, str) and len(fields) == 1:
        row = {fields[0]: state}
    try:
        example = state_example(row or {}, Place(Path("state"), 1, lines=False), fields, "state")
    except UserError as error:
        raise RefusedError(str(error), 422, "state") from error
    values = {"yes_no": ("true", "false"), "choice": question.options}
    verdicts = values.get(question.kind, tuple(map(str, known.scale.values)))
    return Asked(judge, None, example.model_copy(update={"question": known}), verdicts, trained)


def _declared(question: Question, judge: Judge) -> core.Declared:
    """Declare a question as a dataset does: the levels of a score by their texts or as numbers."""
    words = question.instructions.removesuffix(MLFLOW_WORDS).strip()
    pairs = list(zip(question.options, question.descriptions, strict=True))
    about = {name: text for name, text in pairs if text}
    if question.kind == "yes_no":
        yes, no = question.descriptions
        criteria: Any = {"true": yes, "false": no} if about else None
        return core.Declared(type="bool", instructions=words, criteria=criteria)
    if question.kind == "choice":
        unique = len(dict(pairs)) == len(pairs)
        options: Any = dict(pairs) if about and unique else list(question.options)
        return core.Declared(type="choice", instructions=words, options=options)
    scales = [own.scale for own in judge.info.questions if own.type == "score"]
    for scale in scales:
        if question.options == tuple(map(str, scale.values)):
            return core.Declared(
                type="score", instructions=words, scale=scale.name, legend=about or None
            )
    levels: list[str | None] = [f"{name}: {text}" if text else name for name, text in pairs]
    return core.Declared(type="score", instructions=words, levels=levels)


def zero_shot(judge: Judge, scale: str) -> Judge:
    """Return the same model with another scale, for questions that it was not trained on."""
    other = Scale.from_name(scale)
    info = replace(judge.info, asked=other, rule="mode", max_seq_length=CONTEXT)
    encoder = adapters.encoder_of(info, judge.encoder.tokenizer)
    return Judge(judge.model, info, encoder, "as_given", trained=False)


def _own_options(judge: Judge) -> list[str]:
    return [str(value) for value in judge.info.scale.values]


def _is_own(question: Question, judge: Judge) -> bool:
    """Return whether a judge was trained on this question: the same words and options.

    No words ask for what the judge asks. Options of a choice may be in any order.
    """
    words, own = one_line(question.instructions), _own_options(judge)
    words = words.removesuffix(MLFLOW_WORDS).strip()
    known = ("", one_line(rubric_of(judge)), one_line(judge.info.words))
    if words not in known or any(question.descriptions):
        return False
    options, task = list(question.options), judge.info.scale.task
    if question.kind == "score":
        return task == "score" and options == own
    return sorted(options) == sorted(own)


def _row_of(state: Json) -> Mapping[str, object] | None:
    if isinstance(state, str):
        try:
            state = json.loads(state.removeprefix(MLFLOW_STATE))
        except (ValueError, RecursionError):
            return None
    return state if isinstance(state, dict) else None


def _prompt(question: Question, state: Json, scale: str) -> str:
    numbered = question.kind != "yes_no"
    options = zip(question.options, question.descriptions, strict=True)
    lines = [
        f"{f'{number}. ' if numbered else ''}{name}{f': {about}' if about else ''}"
        for number, (name, about) in enumerate(options, 1)
    ]
    answer = f'Answer with the line "{Scale.from_name(scale).form()}".'
    return "\n".join([text_of(state), "", question.instructions, *lines, answer])
