"""What a question of any wire means to a judge: the one place where questions meet scales.

A judge knows one question, its own: it is recognized by wording and options, never by its name.
Any other is asked of the same model zero-shot, without the calibration, which belongs to wording.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pt_app.core.http_server import RefusedError
from pt_app.core.prompt_templates import fill, scale_fields
from pt_app.core.records import one_line
from pt_app.core.verdicts import Scale
from pt_app.judge import Judge, Judgement
from pt_app.models import adapters

MAX_OPTIONS = 255
# Tokens of a prompt that is asked zero-shot: 255 options are longer than what a judge was trained
# on, and a short context (the tiny base's) is exceeded rather than an option left out.
CONTEXT = 8192
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
        row: the row to judge.
        verdicts: the verdict that stands for each option.
    """

    judge: Judge
    scale: str | None
    row: Mapping[str, object]
    verdicts: tuple[str, ...]

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


def row_fields_of(judge: Judge) -> list[str]:
    """Return the fields of a row that a judge is shown."""
    pair = judge.info.scale.task == "pairwise"
    others = ("candidate",) if pair else ("candidate_a", "candidate_b")
    return [name for name in judge.info.template.row_fields() if name not in others]


def asked(question: Question, state: Json, judge: Judge, strict: bool = False) -> Asked:
    """Return the row that asks a question about a state.

    Raises:
        RefusedError: for another question than the judge's own under `strict`, and a state that is
            no row of fields where the question is the judge's own.
    """
    if _is_own(question, judge):
        row = _row_of(state)
        if row is None:
            fields = ", ".join(row_fields_of(judge))
            problem = f"the state is no row: give an object with the fields {fields}"
            raise RefusedError(problem, 422, "state")
        return Asked(judge, None, row, question.options)
    if strict:
        own = f"{rubric_of(judge)!r} with the answers {', '.join(_own_options(judge))}"
        raise RefusedError(f"this judge answers its own question alone: {own}", 422, "questions")
    scale = "pass_fail" if question.kind == "yes_no" else f"1-{len(question.options)}"
    row = {"messages": [{"role": "user", "content": _prompt(question, state, scale)}]}
    return Asked(judge, scale, row, tuple(map(str, Scale.from_name(scale).values)))


def zero_shot(judge: Judge, scale: str) -> Judge:
    """Return the same model with another scale and no calibration."""
    other = Scale.from_name(scale)
    info = replace(judge.info, asked=other, rule="mode", max_seq_length=CONTEXT)
    encoder = adapters.encoder_of(info, judge.encoder.tokenizer)
    return Judge(judge.model, info, encoder, "as_given", calibrated=False)


def _own_options(judge: Judge) -> list[str]:
    return [str(value) for value in judge.info.scale.values]


def _is_own(question: Question, judge: Judge) -> bool:
    """Return whether a judge was trained on this question: the same words and options.

    No words ask for what the judge asks. Options of a choice may be in any order.
    """
    words, own = one_line(question.instructions), _own_options(judge)
    words = words.removesuffix(MLFLOW_WORDS).strip()
    if (words and words != one_line(rubric_of(judge))) or any(question.descriptions):
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
