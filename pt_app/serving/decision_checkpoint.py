"""A judge as a decision model of transformers: a checkpoint that `pipeline("decision")` loads.

A checkpoint of type `jev` (transformers 5.23, models/jev and decision/) is a model without its
matrix of outputs, and a linear head, which scores labels of one token at one place of the prompt.
The head gets the rows of the outputs for the tokens that tell a judge's verdicts apart; the
template writes the judge's prompt and the tokens that all verdicts begin with, and refuses what
the judge was not trained on. What follows the deciding token is not read ("/10" and the line end):
its probability is nearly the same for all verdicts of a trained judge, and parity says how nearly.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pt_app.core.decision_wires import TRUE_FALSE, WireQuestion, WireType
from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.prompt_templates import ALL_FIELDS, as_jinja, fill, question_fields, scale_fields
from pt_app.core.prompts import PromptEncoder
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo
from pt_app.scoring.scorer import verdict_trie
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.serving.engines import SMALLEST, Case, exact_matmul, loading
from pt_app.serving.options import Precision

MAX_OPTIONS = 26  # the pipeline's labels are A to Z
MARK = "<|mark|>"  # where the head reads: behind the token before it
TYPES: Mapping[str, WireType] = {
    "score": "score",
    "pairwise": "choice",
    "pass_fail": "bool",
    "choice": "choice",
}
VERDICT = "verdict"  # the question of a judge with a scale, which has no name


@dataclass(frozen=True)
class CheckpointQuestion:
    """A question of a judge, and the tokens by which a checkpoint answers it.

    Attributes:
        name: its name.
        wire: the question in a request; without instructions for a judge with a scale, whose prompt
            has its own. Its options are the lines of the verdicts, in their order.
        encoder: makes its prompts.
        lead: the tokens with which all lines begin.
        labels: the next token of each line, which tells it from the others.
    """

    name: str
    wire: WireQuestion
    encoder: PromptEncoder
    lead: tuple[int, ...]
    labels: tuple[int, ...]

    @staticmethod
    def of(encoder: PromptEncoder) -> "CheckpointQuestion":
        """Take the question of an encoder of one.

        Raises:
            UserError: for verdicts that no single token tells apart, and for more than 26.
        """
        scale, question = encoder.scale, next(iter(encoder.questions), None)
        name = question.name if question else VERDICT
        lines = verdict_trie(encoder).lines
        # No line is the start of another: at some place they differ.
        at = next(i for i, own in enumerate(zip(*lines, strict=False)) if len({*own}) > 1)
        lead, labels = lines[0][:at], [line[at] for line in lines]
        shown = [line.strip() for line in scale.lines()]
        if len(lines) > MAX_OPTIONS:
            problem = f"{len(lines)} answers, and decision models have {MAX_OPTIONS} labels"
            raise UserError(f"{name}: {problem}: {_remedy(encoder)}")
        if len({*labels}) < len(labels):
            token = next(token for token, count in Counter(labels).items() if count > 1)
            one, other, *_ = (text for text, own in zip(shown, labels, strict=True) if own == token)
            problem = f'"{one}" and "{other}" continue with one token, and decision models read one'
            raise UserError(f"{name}: {problem}: {_remedy(encoder)}")
        return CheckpointQuestion(name, _on_the_wire(encoder), encoder, tuple(lead), tuple(labels))

    @property
    def type(self) -> str:
        """The type of the question in the checkpoint: noul, choice or score."""
        return self.wire.systemone_type


def _remedy(encoder: PromptEncoder) -> str:
    # Of `judge export`; `judge parity` has neither.
    how = "leave it out, --questions" if encoder.questions else "take another --to"
    return f"{how} (judge export)"


def _on_the_wire(encoder: PromptEncoder) -> WireQuestion:
    """Return the question of an encoder with an option for each line of its verdicts."""
    scale, question = encoder.scale, next(iter(encoder.questions), None)
    kind: WireType = "bool" if scale.name == "bool" else TYPES[scale.task]
    described = dict(question.described) if question else {}
    names = [*map(str, scale.line_values)]
    about = [described.get(name, "") for name in names]
    if kind == "bool":
        names = [*TRUE_FALSE]
    if kind == "score":
        # Levels must have words; of a grid each is a bin of the scale's values.
        bins = [f"{own[0]}-{own[-1]}" if len(own) > 1 else str(own[0]) for own in scale.bins]
        about = [text or name for text, name in zip(about, bins, strict=True)]
        names = [*map(str, range(len(names)))]
    words = question.declared.instructions.strip() if question else ""
    return WireQuestion(kind, words, tuple(zip(names, about, strict=True)))


def checkpoint_questions(info: AdapterInfo, tokenizer: Any) -> list[CheckpointQuestion]:
    """Take the questions of a judge, or the one that its scale is about.

    Raises:
        UserError: as `CheckpointQuestion.of`, and for two questions of a type with other labels: a
            decision model has one list of labels for each type.
    """
    encoder = adapters.encoder_of(info, tokenizer)
    each = [CheckpointQuestion.of(encoder.about(question)) for question in info.questions]
    each = each or [CheckpointQuestion.of(encoder)]
    for kind, longest in _longest(each).items():
        for one in each:
            if one.type == kind and one.labels != longest.labels[: len(one.labels)]:
                problem = f"has other labels than {longest.name}, and {kind} questions share theirs"
                raise UserError(f"{one.name}: {problem}: export it alone, --questions {one.name}")
    return each


def _longest(each: Sequence[CheckpointQuestion]) -> dict[str, CheckpointQuestion]:
    """Return the question with most labels of each type."""
    longest: dict[str, CheckpointQuestion] = {}
    for one in sorted(each, key=lambda one: len(one.labels), reverse=True):
        longest.setdefault(one.type, one)
    return longest


def write_checkpoint(model: Any, info: AdapterInfo, tokenizer: Any, folder: Path) -> None:
    """Write a merged judge as a checkpoint of type jev.

    Raises:
        UserError: as `checkpoint_questions`.
    """
    from transformers import JevConfig, JevForDecision
    from transformers.decision import DecisionConfig, Question

    each = checkpoint_questions(info, tokenizer)
    rows: list[int] = []
    offsets = dict.fromkeys(Question.questions_types, 0)
    longest = _longest(each)
    for kind, one in longest.items():
        offsets[kind] = len(rows)
        rows += one.labels
    text = model.config.get_text_config()
    text.dtype, text._name_or_path = "float32", ""  # the base's path
    config = JevConfig(
        text_config=text.to_dict(),
        hidden_size=text.hidden_size,
        num_verbalizers=len(rows),
        offsets=offsets,
        softcap=_softcap(model),
    )
    with torch.device("meta"):  # its weights are those of the judge
        jev = JevForDecision(config)
    jev.model = model.base_model
    jev.proj = _head(model, [one.labels for one in longest.values()])
    jev.decision_config = DecisionConfig(
        labels={
            kind: [tokenizer.decode([label]) for label in one.labels]
            for kind, one in longest.items()
        },
        chat_template=template(each, info),
    )
    jev.save_pretrained(folder)


def _head(model: Any, lists: Sequence[Sequence[int]]) -> torch.nn.Linear:
    """Return the rows of the output matrix for these lists of tokens, as a linear head.

    The mean row of each list is subtracted: it shifts all logits of the list equally, and changes
    no probability. With it logits are near 35, where float32 has steps of 4e-6, which move a
    probability by 1e-6 (SmolLM2). A soft cap is not invariant to that shift, so that with one the
    rows stay as they are.
    """
    outputs, rows = model.get_output_embeddings(), [row for own in lists for row in own]
    weights = [outputs.weight[[*own]].double() for own in lists]
    if _softcap(model) is None:
        weights = [own - own.mean(dim=0) for own in weights]
    bias = getattr(outputs, "bias", None)
    head = torch.nn.Linear(outputs.in_features, len(rows))
    with torch.no_grad():
        head.weight.copy_(torch.cat(weights))
        head.bias.copy_(torch.zeros(len(rows)) if bias is None else bias[rows])
    return head


def _softcap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def label_logs(model: Any, question: CheckpointQuestion, cases: Sequence[Case]) -> FloatArray:
    """Return the log-probability of each label among them, behind each prompt [cases, labels].

    The head is cut to the labels: the product with the whole vocabulary would round otherwise.
    """
    whole, rows = model.get_output_embeddings(), []
    model.set_output_embeddings(_head(model, [question.labels]))
    try:
        with exact_matmul(), torch.inference_mode():
            for case in cases:
                ids = torch.tensor([[*case.ids, *question.lead]])
                rows.append(model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1])
    finally:
        model.set_output_embeddings(whole)
    return np.asarray(torch.stack(rows).double().log_softmax(dim=-1), np.float64)


class Pipeline:
    """transformers' `pipeline("decision")` on a folder: rows in, answers out."""

    name = "pipeline"
    precision: Precision = "float32"
    strict = True

    def __init__(self, folder: Path, question: CheckpointQuestion) -> None:
        from transformers import pipeline

        # Of another type transformers would make a jev with its default sizes: some 30 GiB.
        if (kind := bases.read_json(folder / bases.CONFIG).get("model_type")) != "jev":
            problem = f"{folder} holds a model of type {kind}, not jev"
            raise UserError(f"{problem}: name what `judge export --to transformers` wrote")
        self.question = question
        with loading(folder, "transformers' pipeline"):
            self.pipe: Any = pipeline("decision", model=str(folder), device="cpu")

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the logarithm of the probability of each option [cases, options].

        Raises:
            UserError: if the pipeline refuses a row.
        """
        with exact_matmul():
            return np.log(np.maximum([self._shares(case) for case in cases], SMALLEST))

    def _shares(self, case: Case) -> list[float]:
        from jinja2 import TemplateError

        try:
            answer = self.pipe(self._request(case))["asked"]
        except (TemplateError, ValueError) as error:
            raise UserError(f"the pipeline refuses a row: {error}") from error
        if self.question.type == "noul":
            return [answer["noul"], 1 - answer["noul"]]
        return [*answer["probabilities"].values()]

    def _request(self, case: Case) -> dict[str, object]:
        return {"state": case.row, "questions": {"asked": self.question.wire.as_systemone()}}

    def tokens(self, case: Case) -> list[int]:
        """Return the ids that the pipeline makes of a row, without those of the answer."""
        ((inputs, _),) = self.pipe.preprocess(self._request(case))["prompts"]
        ids: list[int] = inputs["input_ids"][0].tolist()
        lead = [*self.question.lead]
        return ids[: -len(lead)] if lead and ids[-len(lead) :] == lead else ids


# In Jinja: {texts} are the fields of a row that hold texts. What is no text would be written in
# another way than the judge's own encoder does, and is refused.
_ROWS = """\
{{%- if state is not mapping -%}}
{{{{- raise_exception("the state is an object with the fields {fields}") -}}}}
{{%- endif -%}}
{{%- for name in {texts} -%}}
{{%- if state[name] is defined and state[name] is not none and state[name] is not string -%}}
{{{{- raise_exception("a field of the state is no text: " ~ name) -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- set judge_pair = state["candidates"] or [none, none] -%}}
{{%- set judge_turns = namespace(lines=[]) -%}}
{{%- for turn in state["conversation"] or [] -%}}
{{%- set judge_turns.lines = judge_turns.lines + [turn.role ~ ": " ~ turn.content] -%}}
{{%- endfor -%}}
{{%- set judge = {{"source": state["source"] or none, "context": state["context"] or none,
  "reference": state["reference"] or none, "conversation": judge_turns.lines|join("\\n") or none,
  "candidate": state["candidate"]|default(none), "candidate_a": judge_pair[0],
  "candidate_b": judge_pair[1], "rubric": state["rubric"] or {rubric} or none}} -%}}
{{%- if judge.candidate is none and judge.candidate_a is none and not state["messages"] -%}}
{{{{- raise_exception("the state has no candidate") -}}}}
{{%- endif -%}}
"""
_TEXTS = ("source", "context", "reference", "candidate", "rubric")
_OF_ROWS = (*_TEXTS, "conversation", "candidate_a", "candidate_b")
_STATE = """\
{{%- if state is string and {fields}|length == 1 -%}}
{{%- set state = {{{fields}[0]: state}} -%}}
{{%- endif -%}}
{{%- set judge_lines = namespace(all=[]) -%}}
{{%- for name in {fields} -%}}
{{%- if state is not mapping or state[name] is not string -%}}
{{{{- raise_exception("the state is an object with these texts: " ~ {fields}|join(", ")) -}}}}
{{%- endif -%}}
{{%- set judge_lines.all = judge_lines.all + [name ~ ": " ~ state[name]] -%}}
{{%- endfor -%}}
{{%- set judge = {{"state": judge_lines.all|join("\\n")}} -%}}
"""
_ASKED = (
    '[question.type, (question.instructions or "")|trim, question.options, '
    'question.descriptions|map("default", "", true)|list]'
)
_SYSTEM_TURN = """\
{%- set messages = [{"role": "user", "content": judge_user}] -%}
{%- if judge_system -%}
{%- set messages = [{"role": "system", "content": judge_system}] + messages -%}
{%- endif -%}
"""
_NO_SYSTEM_TURN = """\
{%- set judge_all = judge_system ~ "\\n\\n" ~ judge_user if judge_system else judge_user -%}
{%- set messages = [{"role": "user", "content": judge_all}] -%}
"""
_TURNS = """\
{%- if state["messages"] -%}{%- set messages = state["messages"] -%}{%- endif -%}
"""


def template(each: Sequence[CheckpointQuestion], info: AdapterInfo) -> str:
    """Write the Jinja template that makes a judge's prompts of a request's `state` and `question`.

    It sets `messages`, and goes on as the judge's own chat template does.
    """
    encoder, fields = each[0].encoder, _json(info.row_fields)
    chat = encoder.tokenizer.chat_template.removesuffix("\n")
    if info.questions:
        state = _STATE.format(fields=fields)
    else:
        rubric = _json(_rubric(encoder))
        state = _ROWS.format(fields=", ".join(info.row_fields), texts=_json(_TEXTS), rubric=rubric)
    branches = "".join(
        f"{{%- {'elif' if number else 'if'} judge_asked == {_json(_content(one))} -%}}"
        f"{_texts(one, ('state',) if info.questions else _OF_ROWS)}"
        for number, one in enumerate(each)
    )
    known = " or ".join(_json(one.wire.as_systemone()) for one in each)
    refused = _json(f"the judge was not trained on this question; ask {known}")
    return (
        f"{state}{{%- set judge_asked = {_ASKED} -%}}{branches}"
        f"{{%- else -%}}{{{{- raise_exception({refused}) -}}}}{{%- endif -%}}\n"
        f"{_SYSTEM_TURN if encoder.has_system_role else _NO_SYSTEM_TURN}"
        f"{'' if info.questions else _TURNS}"
        # Jinja drops the line end behind a block, and that of the whole template.
        f"{{%- set judge_is_written = true %}}\n{chat}{{{{ judge_lead }}}}{MARK}"
    )


def _content(one: CheckpointQuestion) -> list[object]:
    return [one.type, one.wire.instructions, [*one.wire.names], [*one.wire.descriptions]]


def _rubric(encoder: PromptEncoder) -> str:
    return fill(encoder.template.rubric, scale_fields(encoder.scale))


def _texts(one: CheckpointQuestion, open_fields: Sequence[str]) -> str:
    """Write in Jinja what the system and the user say, and how an answer begins."""
    encoder, question = one.encoder, next(iter(one.encoder.questions), None)
    known: dict[str, str | None] = dict.fromkeys(set(ALL_FIELDS) - set(open_fields))
    known |= scale_fields(encoder.scale)
    if question:
        known |= question_fields(question) | {"rubric": _rubric(encoder) or None}
    system, user = (
        as_jinja(text, known, "judge") for text in (encoder.template.system, encoder.template.user)
    )
    lead = _json(encoder.tokenizer.decode([*one.lead]))
    values = {"judge_system": system, "judge_user": user, "judge_lead": lead}
    return "".join(f"{{%- set {name} = {value} -%}}" for name, value in values.items())


def _json(value: object) -> str:
    """Write texts for Jinja, which reads JSON's escapes, but not those of surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)
