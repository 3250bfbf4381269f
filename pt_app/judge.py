"""Judge: a trained judge for other programs.

judge = Judge.load("adapters_eval/tiny-judge-2ep-20261121_101500_final")
for judgement in judge.score([{"source": "the house", "candidate": "a casa"}]):
    print(judgement.verdict, judgement.confidence)

judge = Judge.load("adapters_eval/tickets-judge-2ep-20261129_101500_final")
answers = judge.ask({"ticket": "One cup is broken.", "reply": "Sorry! A new cup leaves today."})
print(answers["offer"].value, answers["offer"].probabilities, answers["offer"].abstain)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core.choosing import choose
from pt_app.core.errors import UserError
from pt_app.core.grids import refuse_chat_rows
from pt_app.core.orders import flipped, order_of
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Declared, Question, chosen, questions_of, scales_of
from pt_app.core.records import JudgeExample, Place, as_name, unlabelled
from pt_app.core.results import PrecisionChange
from pt_app.core.settings import Order, ReadingMode
from pt_app.core.state_rows import as_declared, state_example
from pt_app.core.verdicts import Scale, Verdict
from pt_app.core.words import is_unicode
from pt_app.evidence.calibration import Fitted, confidence_in
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo

if TYPE_CHECKING:  # these import torch, which takes seconds: a wrong path is refused before
    from transformers import PreTrainedModel

    from pt_app.scoring.scorer import ReadLines, Scored
    from pt_app.scoring.verdict_trie import VerdictTrie

ROWS = Place(Path("rows"), 0, lines=False)
STATUSES = ("ok", "parse_failure", "too_long")  # of an answer, the worst last
PROBLEM = "problem"  # the key of a placeholder for a row that could not be read
Row = Mapping[str, object]
Declaration = Declared | Mapping[str, object]
"""The declaration of a question, or the object that dataset.json has for it."""


@dataclass(frozen=True)
class Judgement:
    """The judgement of one row.

    Attributes:
        id: the id of the row, or its number.
        status: "ok", "parse_failure" (the answer of the judge has no verdict), "too_long", or
            "bad_row" (see `problem`).
        judge: the adapter and the hash of all that a verdict depends on.
        verdict: what the judge says, by the rule of its `judge.json`: the mean of the
            probabilities, rounded to the scale, their median or their mode.
        greedy: the verdict that the greedy answer starts with; None on a parse failure.
        confidence: the probability that `verdict` is right: the label itself, or on a scale of over
            five verdicts within a tenth of the range of it (at least a step).
        expected: the mean score, on a scale of numbers.
        median: the median score, on a scale of numbers.
        mode: the most likely verdict.
        consistent: of a pair that was judged in both orders, whether both have the same winner.
        verdict_mass: the probability of all allowed verdicts together, before normalization.
        probabilities: of each allowed verdict; they sum to 1. Of a pair: the mean of both orders.
        calibrated: the accuracy on validation rows of this confidence; None if it was not fitted.
        abstain: whether the confidence is below the fitted threshold; None if none was fitted or
            none holds; always True of a question that the judge was not trained on.
        answer: the whole answer, if it was generated.
        tokens: the length of the prompt; of a pair that was judged in both orders, of both.
        problem: what is wrong with a bad row.
    """

    id: str
    status: str
    judge: str
    verdict: Verdict | None = None
    greedy: Verdict | None = None
    confidence: float | None = None
    expected: float | None = None
    median: Verdict | None = None
    mode: Verdict | None = None
    consistent: bool | None = None
    verdict_mass: float | None = None
    probabilities: Mapping[str, float] | None = None
    calibrated: float | None = None
    abstain: bool | None = None
    answer: str | None = None
    tokens: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Answer(Judgement):
    """The answer to one question about a state.

    Attributes:
        question: the name of the question.
        type: bool, choice or score.
        value: the verdict as its type has it: true or false, an option, or a number.
        trained: whether the judge was trained on this question, in these words; else nothing is
            known of its confidence, and it abstains.
    """

    question: str = ""
    type: str = ""
    value: bool | Verdict | None = None
    trained: bool = True


class Judge:
    """A base with a judge's adapter merged into it, ready to score."""

    def __init__(
        self,
        model: PreTrainedModel,
        info: AdapterInfo,
        encoder: PromptEncoder,
        order: Order = "both",
    ) -> None:
        self.model = model
        self.order: Order = order
        self.info = info
        self.encoder = encoder
        self.change: PrecisionChange | None = None
        self.cut: Mapping[Scale, VerdictTrie] = {}
        self.cut_change: PrecisionChange | None = None
        self.engine: ReadLines | None = None  # reads in place of the model
        self.fitted = {
            name: Fitted.read(info.folder, encoder.rule_of(scale), order_of(order, scale), name)
            for name, scale in scales_of(info.asked)
        }
        self.name = info.name

    @staticmethod
    def load(
        adapter: str | Path,
        *,
        base: str | None = None,
        device: str = "cpu",
        precision: str = "float32",
        reading: ReadingMode = "exact",
        sample: Sequence[Row] = (),
        order: Order = "both",
    ) -> Judge:
        """Load the adapter of a folder, and merge it into its base.

        Args:
            adapter: the folder of the adapter.
            base: the folder of the base, if it was one: an adapter does not keep its path.
            device: where to score: "cpu", "cuda" or "mps".
            precision: "float32" is exact; for "bf16" and "int8" the log says what they change.
            reading: "exact" reads the whole lines of verdicts; for "branches" and "auto" (branches
                from 25 verdicts on) see `judge score --help`.
            sample: rows on which what these two change is measured.
            order: judge pairs in "both" orders, and take the mean, or once, "as_given".

        Raises:
            UserError: if the adapter is damaged, or the base is another one.
        """
        info = adapters.verify_adapter(Path(adapter))
        from pt_app.models.gemm import pack_weights
        from pt_app.models.tree_attention import BLOCKS, use_attention
        from pt_app.scoring.branches import chosen_lines
        from pt_app.scoring.precision import converted

        model = adapters.load_merged(info.folder, adapters.base_of(info, base))
        model = _on(model.eval(), device)
        use_attention(model, BLOCKS if device == "cpu" else "sdpa")
        encoder = adapters.encoder_of(info, bases.load_tokenizer(info.folder))
        read = [read_row(row, ROWS, info) for row in sample]
        rows = [each for row in read if isinstance(row, JudgeExample) for each in _about(row, info)]
        model, change = converted(model, precision, rows, encoder)
        judge = Judge(pack_weights(model), info, encoder, order)
        judge.change = change
        judge.cut, judge.cut_change = chosen_lines(judge.model, reading, rows, encoder)
        return judge

    def score(
        self,
        rows: Iterable[Row],
        *,
        feedback: bool = False,
        progress: bool = False,
        places: Sequence[Place] | None = None,
        shorten: bool = True,
    ) -> list[Judgement]:
        """Judge rows of fields as in a dataset (docs/DATA.md), in the given order.

        A row that cannot be judged gets the status "bad_row" and does not stop the others.

        Args:
            rows: the rows; labels in them are ignored.
            feedback: also generate issues and feedback.
            progress: show a progress bar.
            places: the file and number of each row, for messages.
            shorten: cut what does not fit (never a candidate); else it is "too_long".

        Raises:
            UserError: if it answers several questions.
        """
        from pt_app.scoring.scorer import JudgeScorer

        rows = list(rows)
        places = places or [Place(Path("rows"), i, lines=False) for i in range(1, len(rows) + 1)]
        pairs = list(zip(rows, places, strict=True))
        scale, (fitted, *_) = self.info.scale, self.fitted.values()
        read = [read_row(row, place, self.info) for row, place in pairs]
        asked = [_about(row, self.info)[0] for row in read if isinstance(row, JudgeExample)]
        scorer = JudgeScorer(
            self.model,
            self.encoder,
            order=self.order,
            feedback=feedback,
            progress=progress,
            tries=self.tries,
            shorten=shorten,
            engine=self.engine,
        )
        scored = iter(scorer.score(asked))
        return [
            self._judgement(example.id or place.where, next(scored), scale, fitted)
            if isinstance(example, JudgeExample)
            else Judgement(row_id(row, place), "bad_row", self.name, problem=example)
            for (row, place), example in zip(pairs, read, strict=True)
        ]

    @cached_property
    def tries(self) -> Mapping[Scale, VerdictTrie]:
        """The lines of the verdicts of each scale; encoding them takes some milliseconds."""
        from pt_app.scoring.scorer import verdict_tries

        return verdict_tries(self.encoder, self.cut)

    def ask(
        self,
        state: Row | str,
        questions: Iterable[str] | Mapping[str, Declaration] | None = None,
        *,
        strict: bool = False,
    ) -> dict[str, Answer]:
        """Answer questions about a state, in one pass; none sees another.

        Args:
            state: the texts of the state by field; of a state with one field also its text.
            questions: names of the judge's questions, or declarations as in dataset.json by any
                name; None: all of its questions. One that is not among those the judge was trained
                on, whatever its name, is answered, and abstained from.
            strict: refuse such questions.

        Raises:
            UserError: for a field that is missing, a state that is too long, and a question that is
                unknown or cannot be asked.
        """
        answers = self.ask_all([state], questions, strict=strict)[0]
        for name, answer in answers.items():
            if answer.status == "too_long":
                limit = f"more than its {self.encoder.max_seq_length} tokens: shorten it"
                raise UserError(f"question {name}: state and question take {limit}")
        return answers

    def ask_all(
        self,
        states: Iterable[Row | str],
        questions: Iterable[str] | Mapping[str, Declaration] | None = None,
        *,
        strict: bool = False,
        progress: bool = False,
    ) -> list[dict[str, Answer]]:
        """Answer the same questions about each of several states.

        An answer about a state that is too long says so by its status; else as `ask` does.

        Raises:
            UserError: as `ask`, and for one state in place of several.
        """
        if isinstance(states, str | Mapping) or not isinstance(states, Iterable):
            problem = f"give a list of them, not a {type(states).__name__}"
            raise UserError(f"states: {problem}; ask() takes one")
        rows = [self._state(state, number) for number, state in enumerate(states, 1)]
        return self._answered(rows, self._asked(questions, strict), progress)

    def answer(
        self, rows: Iterable[Row], places: Sequence[Place], *, progress: bool = False
    ) -> list[dict[str, Answer] | str]:
        """Answer all questions about rows of a file; of a row that cannot be read, say why."""
        read = [read_row(row, place, self.info) for row, place in zip(rows, places, strict=True)]
        fit = [row for row in read if isinstance(row, JudgeExample)]
        answers = iter(self._answered(fit, self._asked(None, strict=True), progress))
        return [row if isinstance(row, str) else next(answers) for row in read]

    def _answered(
        self, rows: Sequence[JudgeExample], asked: Mapping[str, Question], progress: bool
    ) -> list[dict[str, Answer]]:
        each = [row.model_copy(update={"question": q}) for row in rows for q in asked.values()]
        answers = iter(self.answers(each, progress=progress))
        return [{name: replace(next(answers), question=name) for name in asked} for _ in rows]

    def answers(
        self,
        examples: Sequence[JudgeExample],
        *,
        progress: bool = False,
        shorten: bool = True,
        max_seq_length: int | None = None,
    ) -> list[Answer]:
        """Answer the question of each example, all in one pass.

        Args:
            examples: states with a question each; a judge with a scale takes prompts with one.
            progress: show a progress bar.
            shorten: as in `score`.
            max_seq_length: tokens that fit, prompt and verdict; default: as it was trained.
        """
        from pt_app.scoring.scorer import JudgeScorer

        if not examples:
            return []
        questions = [example.question for example in examples if example.question]
        encoder = self.encoder.about(*questions)
        encoder.max_seq_length = max_seq_length or encoder.max_seq_length
        # A judge's one scale may equal that of another question, and have a grid, or cut lines.
        tries = self.tries if self.info.questions else {}
        scorer = JudgeScorer(self.model, encoder, tries=tries, progress=progress, shorten=shorten)
        scored = zip(examples, questions, scorer.score(examples), strict=True)
        return [self._answer(*each) for each in scored]

    def _state(self, state: Row | str, number: int) -> JudgeExample:
        place, fields = Place(Path("states"), number, lines=False), self.info.state
        if isinstance(state, str):
            if len(fields) != 1:
                remedy = f"give a text for each of {', '.join(fields)}"
                raise place.error("", "the state has several fields", remedy)
            state = {fields[0]: state}
        if not isinstance(state, Mapping):
            problem = f"a state maps fields to texts, and this is a {type(state).__name__}"
            raise place.error("", problem, f"give {', '.join(fields)}")
        return state_example(state, place, fields, place.where)

    def _asked(
        self, questions: Iterable[str] | Mapping[str, Declaration] | None, strict: bool
    ) -> dict[str, Question]:
        """Return what is asked by its name; a trained question is that of the judge itself."""
        own = self.info.questions
        if not own:
            raise UserError(f"{self.info.folder} has a scale and no questions: use score()")
        if not isinstance(questions, Mapping):
            if not isinstance(questions, Iterable | None):
                problem = f"a value of type {type(questions).__name__} names none"
                raise UserError(f"questions: {problem}: give names, or declarations by name")
            names = () if questions is None else questions
            asked_for = [names] if isinstance(names, str) else list(names)
            if not asked_for and questions is not None:
                raise UserError("questions: there is none: name some, or leave it out for all")
            some = chosen(own, asked_for, f"{self.info.folder}")
            return {question.name: question for question in some}
        declared = {name: as_declared(name, words) for name, words in questions.items()}
        asked = {question.name: question for question in questions_of(declared, "questions")}
        if strict and (other := [name for name, q in asked.items() if not self.own(q)]):
            known = ", ".join(question.name for question in own)
            problem = "it is not one that the judge was trained on, to the word"
            raise UserError(f"questions.{other[0]}: {problem}: those are {known}")
        return {name: self.own(question) or question for name, question in asked.items()}

    def own(self, question: Question) -> Question | None:
        """Return the judge's own question that is the same (`Question.content`); None: untrained.

        The own one is asked, since its options have the order that the judge was trained to read.
        """
        same = [own for own in self.info.questions if own.content == question.content]
        return next((own for own in same if own.name == question.name), same[0] if same else None)

    def _answer(self, row: JudgeExample, question: Question, scored: Scored) -> Answer:
        own = self.own(question)
        fitted = self.fitted.get(own.name) if own else None
        judged = self._judgement(row.id, scored, question.scale, fitted, own is not None)
        chances = judged.probabilities or {}
        typed = {str(question.typed(value)).lower(): p for value, p in chances.items()}
        return Answer(
            **{
                **vars(judged),
                "probabilities": typed if question.type == "bool" else chances,
            },
            question=question.name,
            type=question.type,
            value=question.typed(judged.verdict),
            trained=own is not None,
        )

    def _judgement(
        self, name: str, scored: Scored, scale: Scale, fitted: Fitted | None, trained: bool = True
    ) -> Judgement:
        chances, unknown = scored.probabilities, None if trained else True
        if scored.verdict is None:
            return Judgement(id=name, status=scored.status, judge=self.name, abstain=unknown)
        sure = confidence_in(scored.verdict, chances, scale)
        calibrated, abstain = fitted.of_one(sure) if fitted else (None, unknown)
        winners = scored.orders and [one.verdict for one in scored.orders]
        return Judgement(
            id=name,
            status=scored.status,
            judge=self.name,
            verdict=scored.verdict,
            greedy=scored.greedy,
            confidence=sure,
            expected=scored.expected,
            median=choose(chances, scale, "median") if scale.task == "score" else None,
            mode=choose(chances, scale, "mode"),
            consistent=winners[0] == flipped(winners[1]) if winners else None,
            verdict_mass=scored.verdict_mass,
            probabilities=dict(zip(map(str, scale.values), chances, strict=True)),
            calibrated=calibrated,
            abstain=abstain,
            answer=scored.raw,
            tokens=scored.tokens,
        )


def _about(row: JudgeExample, info: AdapterInfo) -> list[JudgeExample]:
    """Return a row once for each question of a judge; for a judge with one scale as it is."""
    asked = [row.model_copy(update={"question": question}) for question in info.questions]
    return asked or [row]


def read_row(row: Row, place: Place, info: AdapterInfo) -> JudgeExample | str:
    """Return the record of a row, or what is wrong with it."""
    if not isinstance(row, Mapping):
        what = f"a row must map fields to values, not be a {type(row).__name__}"
        return str(place.error("", what, "give a dict"))
    if PROBLEM in row and len(row) == 1:
        return str(row[PROBLEM])
    try:
        if info.questions:
            return state_example(row, place, info.state, place.where)
        example = unlabelled(dict(row), place, info.scale)
        refuse_chat_rows(info.scale, [example])
        return example
    except UserError as error:
        return str(error)


def row_id(row: object, place: Place) -> str:
    """Return the id of a row that cannot be judged, or its number."""
    name = as_name(row.get("id")) if isinstance(row, Mapping) else ""
    return name if isinstance(name, str) and is_unicode(name) and name else place.where


def status_of(answers: Mapping[str, Judgement]) -> str:
    """Return the status of a row that has several answers: the worst of theirs."""
    return max((answer.status for answer in answers.values()), key=STATUSES.index)


def _on(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--device {device}: not on this machine ({first}): use cpu") from error
