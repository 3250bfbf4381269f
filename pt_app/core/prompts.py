"""Turns examples into token ids: prompt, answer, and the boundary between them.

The ids equal the tokenizer's own chat template, and control tokens inside data are text. What
does not fit is cut from context, then from source and reference, alike for all rows of a group.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import date
from typing import Any

from pt_app.core.chat_templates import ANSWER, DAY, as_text, control_tokens, seal
from pt_app.core.choosing import resolved_rule
from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template, fill, scale_fields
from pt_app.core.questions import Asked, Question, only_scale, questions_in
from pt_app.core.settings import VerdictRule
from pt_app.core.verdicts import Scale, format_answer
from pt_app.core.words import units

# Tokens of answer that a cut prompt leaves room for, at most a quarter of the sequence.
ANSWER_RESERVE = 96


@dataclass
class Encoded:
    """A row as token ids.

    Attributes:
        example: The row as it is laid out: cut where it had to be.
        prompt: The ids of its prompt.
        answer: The ids of its answer with end token; without a label, those of a verdict, for which
            room is left.
        unfit: Why the row cannot fit; "" for one that does.
    """

    example: JudgeExample
    prompt: list[int]
    answer: list[int]
    unfit: str = ""

    @property
    def prompt_length(self) -> int:
        """Where the supervised ids start in `input_ids`."""
        return len(self.prompt)

    @property
    def input_ids(self) -> list[int]:
        """What a model is trained on: prompt, answer and end token; without a label, the prompt."""
        return [*self.prompt, *(self.answer if self.example.label is not None else ())]


@dataclass
class Cuts:
    """What was cut to fit; `longest` is the longest example before cutting, in tokens.

    `unfit` says why for each row that could not fit.
    """

    rows_cut: int = 0
    tokens_cut: int = 0
    longest: int = 0
    unfit: tuple[str, ...] = ()


class PromptEncoder:
    """Encode examples for one tokenizer, one template, and one scale or several questions.

    `rule` says how a verdict is chosen from its probabilities, resolved for the scale.
    The tokenizer's chat template is sealed in place (`chat_templates.seal`): `day` is what its
    clock says from now on. Raises UserError if the tokenizer has no chat template, or one whose
    answers cannot be told from its prompts.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        asked: Asked,
        max_seq_length: int,
        day: date = DAY,
        rule: VerdictRule = "auto",
    ) -> None:
        self.tokenizer, self.day = tokenizer, day
        self.template, self.asked = template, asked
        self.asked_rule = resolved_rule(rule, asked) if isinstance(asked, Scale) else rule
        self.max_seq_length = max_seq_length
        if self.questions:
            template.check_asks()
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"{self._name} has no chat template: give it one with --chat_template")
        try:
            seal(tokenizer, day)
        except UserError as error:
            raise UserError(f"{self._name}: {error}") from error
        self._control = control_tokens(tokenizer)
        self.has_system_role = self._finds_system_role()
        self._lead, tail = self._around_answer()
        self.end_token_id = self._first_control_id(tail)
        self._encode_answer = self._answer_encoding()

    @property
    def _name(self) -> str:
        return f"the tokenizer {getattr(self.tokenizer, 'name_or_path', '') or 'given'}"

    def _refused(self, problem: str) -> UserError:
        return UserError(f"{self._name}: its chat template {problem}: choose another model")

    @property
    def scale(self) -> Scale:
        """The scale of all verdicts; raises UserError if there are several questions."""
        return only_scale(self.asked)

    @property
    def rule(self) -> VerdictRule:
        """How a verdict is chosen from its probabilities; raises UserError as `scale` does."""
        return self.rule_of(self.scale)

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that the dataset declares; empty if it has a scale of its own."""
        return questions_in(self.asked)

    def about(self, *questions: Question) -> "PromptEncoder":
        """Return the same encoder, for these questions alone.

        A rule that was chosen for a scale need not be one for theirs: they get the default then.
        """
        own = copy(self)
        own.asked, own.asked_rule = questions, self.asked_rule if self.questions else "auto"
        return own

    def scale_of(self, example: JudgeExample) -> Scale:
        """Return the scale of a row's verdicts."""
        return example.question.scale if example.question else self.scale

    def rule_of(self, scale: Scale) -> VerdictRule:
        """Return how a verdict is chosen from its probabilities; options have no mean."""
        options = scale.task == "choice"
        return "mode" if options else resolved_rule(self.asked_rule, scale)

    def messages(self, example: JudgeExample) -> list[dict[str, str]]:
        """Lay an example out as turns; a template without a system role gets it in the user's."""
        if example.prompt is not None:
            system, user = example.system or "", example.prompt
        else:
            system, user = self.template.render(example, self.scale_of(example))
        if not system or not self.has_system_role:
            return [{"role": "user", "content": f"{system}\n\n{user}" if system else user}]
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def prompt_ids(self, example: JudgeExample) -> list[int]:
        """Encode the prompt, uncut, up to where the answer starts."""
        return self._template_ids(self.messages(example), add_generation_prompt=True)

    def answer_ids(self, text: str) -> list[int]:
        """Encode an answer, without its end token, as the template would after the prompt."""
        return self._encode_answer(text)

    def encode(self, examples: Sequence[JudgeExample]) -> tuple[list[Encoded], Cuts]:
        """Fit and encode examples, in order; raise UserError for a row that cannot fit."""
        rows, cuts = self.fit(examples)
        if cuts.unfit:
            raise UserError(cuts.unfit[0])
        return rows, cuts

    def fit(
        self, examples: Sequence[JudgeExample], shorten: bool = True
    ) -> tuple[list[Encoded], Cuts]:
        """Cut what does not fit `max_seq_length`, alike for all rows of a group, and encode.

        Label and candidate are never cut, nor is the prompt of a chat row. A row that cannot fit
        says why in `unfit`; without `shorten` so does each that leaves no room for its answer.
        """
        rows = [Encoded(e, self.prompt_ids(e), self._answer_with_end(e)) for e in examples]
        cuts = Cuts(longest=max((len(row.prompt) + len(row.answer) for row in rows), default=0))
        if not shorten:
            self._refuse_long(rows, cuts)
            return rows, cuts
        groups: dict[str, list[Encoded]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.example.group or f"\0{index}", []).append(row)
        for group in groups.values():
            if any(len(row.prompt) > self._budget(row) for row in group):
                self._fit_group(group, cuts)
        return rows, cuts

    def _refuse_long(self, rows: Sequence[Encoded], cuts: Cuts) -> None:
        for row in rows:
            # The reserve is for what is cut: a prompt that is read whole leaves its own answer.
            most = self.max_seq_length - len(row.answer)
            if (length := len(row.prompt)) > most:
                row.unfit = f"{row.example.where}: {length} tokens, and {most} fit: shorten it"
                cuts.unfit += (row.unfit,)

    def _fit_group(self, group: list[Encoded], cuts: Cuts) -> None:
        long: list[tuple[JudgeExample, int]] = []
        for row in group:
            shortest = len(self.prompt_ids(_shortened(row.example, 0, 1)))
            # A prompt that cannot leave the whole reserve must still leave its own answer.
            own = self.max_seq_length - len(row.answer)
            budget = self._budget(row) if shortest <= self._budget(row) else own
            if shortest > own:
                where = f"{row.example.where}, field {self._longest_field(row)}"
                tokens = f"{shortest} + {len(row.answer)} tokens at the shortest"
                limit = f"more than max_seq_length {self.max_seq_length}"
                remedy = "train with a larger --max_seq_length, or leave the row out"
                row.unfit = f"{where}: prompt and answer take {tokens}, {limit}: {remedy}"
                cuts.unfit += (row.unfit,)
            elif len(row.prompt) > budget:
                long.append((row.example, budget))
        if not long:
            return

        def fits(context: int, others: int) -> bool:
            return all(
                len(self.prompt_ids(_shortened(example, context, others))) <= budget
                for example, budget in long
            )

        kept = [row for row in group if not row.unfit]
        context, others = _units_to_keep([row.example for row in kept], fits)
        for row in kept:
            short = _shortened(row.example, context, others)
            if short != row.example:
                ids = self.prompt_ids(short)
                cuts.rows_cut += 1
                cuts.tokens_cut += len(row.prompt) - len(ids)
                row.example, row.prompt = short, ids

    def _longest_field(self, row: Encoded) -> str:
        """Name what keeps a row from fitting, of all that is never cut."""
        short = _shortened(row.example, 0, 1)
        scale = self.scale_of(short)
        own = short.rubric or fill(self.template.rubric, scale_fields(scale))
        texts = {
            "prompt (the user's turn)": short.prompt,
            "system": short.system,
            "rubric": own if short.prompt is None else None,
            "conversation": "\n".join(turn.content for turn in short.conversation or ()),
            "candidate": short.candidate if short.prompt is None and not short.state else None,
            "state": short.state,
            "candidates": "\n".join(short.candidates or ()),
        }
        lengths = {name: len(self.answer_ids(text)) for name, text in texts.items() if text}
        return max({**lengths, "label": len(row.answer)}.items(), key=lambda item: item[1])[0]

    def _budget(self, row: Encoded) -> int:
        """Return the tokens that a prompt may take.

        A label within the reserve leaves its prompt as long as no label does, so training cuts a
        group as scoring does, where labels are set aside. A longer one takes from the prompt, in
        training alone: there the group is cut further than in scoring. A prompt that cannot leave
        the reserve leaves its own answer, and for scoring a verdict.
        """
        reserve = min(ANSWER_RESERVE, self.max_seq_length // 4)
        return self.max_seq_length - max(len(row.answer), reserve)

    def _answer_with_end(self, example: JudgeExample) -> list[int]:
        """Encode the label's answer and its end; without a label, room for a verdict alone."""
        scale = self.scale_of(example)
        answer = example.answer(scale) or scale.lines()[-1]
        return [*self.answer_ids(answer), self.end_token_id]

    def _template_ids(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(
            messages, sanitize_control_tokens=True, return_dict=False, **options
        )
        return ids

    def _template_text(self, messages: list[dict[str, str]], **options: Any) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text

    def _finds_system_role(self) -> bool:
        """Return whether the chat template shows a system turn: some raise on it, some drop it."""
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": ANSWER}, {"role": "user", "content": "x"}]
        try:
            return ANSWER in self._template_text(turns)
        except TemplateError:
            return False

    def _around_answer(self) -> tuple[str, str]:
        """Return the text that the template writes before and after an answer."""
        asked = [{"role": "user", "content": "x"}]
        prompt = self._template_text(asked, add_generation_prompt=True)
        whole = self._template_text([*asked, {"role": "assistant", "content": ANSWER}])
        lead, _, tail = whole[len(prompt) :].partition(ANSWER)
        if not whole.startswith(prompt) or ANSWER not in whole or lead.strip():
            raise self._refused("does not continue the prompt with the answer")
        return lead, tail

    def _first_control_id(self, tail: str) -> int:
        control = set(self.tokenizer.convert_tokens_to_ids(sorted(self._control)))
        control.update(self.tokenizer.all_special_ids)
        ids: list[int] = self.tokenizer.encode(tail, add_special_tokens=False)
        if not (ends := [id_ for id_ in ids if id_ in control]):
            raise self._refused("ends an answer with no special token: a judge would never stop")
        return ends[0]

    def _answer_encoding(self) -> Callable[[str], list[int]]:
        """Choose the encoding that gives what the template itself gives for a plain answer.

        Raises UserError if none does: the supervised part would be shifted.
        """

        special = set(self.tokenizer.all_special_tokens)
        others = [token for token in self._control if token not in special]

        def plain(text: str) -> list[int]:
            if any(token in text for token in others):
                return as_text(self.tokenizer, text)
            ids: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True
            )
            return ids

        newline = plain("\n")

        def after_newline(text: str) -> list[int]:
            # SentencePiece puts a space before a text; transformers encodes the pieces of a
            # sanitised chat after a newline for the same reason (encode_marked_chat).
            ids = plain("\n" + text)
            return ids[len(newline) :] if ids[: len(newline)] == newline else plain(text)

        asked = [{"role": "user", "content": "x"}]
        prompt = self._template_ids(asked, add_generation_prompt=True)
        scale = self.questions[0].scale if self.questions else self.scale
        probe = format_answer(scale, scale.values[-1], ["a"], "Fine, é 1.")
        whole = self._template_ids([*asked, {"role": "assistant", "content": probe}])
        for encode in (plain, after_newline):
            answer = encode(self._lead + probe)
            start = [*prompt, *answer]
            verdict = encode(self._lead + scale.lines()[-1])
            if (
                whole[: len(start)] == start
                and self.end_token_id in whole[len(start) :]
                and answer[: len(verdict)] == verdict  # else its line could not be read alone
            ):
                return lambda text, encode=encode: encode(self._lead + text)  # type: ignore[misc]
        raise self._refused("has other ids for prompt and answer than both have when encoded apart")


def _shortened(example: JudgeExample, context: int, others: int) -> JudgeExample:
    """Keep the first units of the context, and of source and reference; a chat row as it is.

    A conversation keeps its last ones, since those are what the candidate answers. Units are words,
    or the characters of a script without blanks.
    """
    if example.prompt is not None:
        return example
    texts = {name: getattr(example, name) for name in ("context", "source", "reference")}
    counts = {"context": context, "source": others, "reference": others}
    update: dict[str, Any] = {
        name: _first_units(text, counts[name]) for name, text in texts.items() if text
    }
    if example.conversation:
        update["conversation"] = [
            turn.model_copy(update={"content": _last_units(turn.content, others)})
            for turn in example.conversation
        ]
    return example.model_copy(update=update)


def _units_to_keep(
    examples: Sequence[JudgeExample], fits: Callable[[int, int], bool]
) -> tuple[int, int]:
    """Find the most units of context, then of source and reference, with which all rows fit."""
    texts = [(e.context or "", e.source or "", e.reference or "") for e in examples]
    turns = [t.content for e in examples for t in e.conversation or ()]
    longest_context = max(len(units(context)) for context, _, _ in texts)
    longest_other = max(len(units(t)) for _, *two in texts for t in [*two, *turns])
    if fits(0, longest_other):
        return _most(0, longest_context, lambda n: fits(n, longest_other)), longest_other
    return 0, _most(1, longest_other, lambda n: fits(0, n))


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Bisect for the largest count from `low`, which fits, to `high` that fits."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _first_units(text: str, count: int) -> str:
    spans = units(text)
    return text if len(spans) <= count else text[: spans[count - 1][1] if count else 0]


def _last_units(text: str, count: int) -> str:
    spans = units(text)
    return text if len(spans) <= count else text[spans[-count][0] if count else len(text) :]
