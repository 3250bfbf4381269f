"""Judge: a trained judge for other programs.

judge = Judge.load("adapters_eval/tiny-judge-2ep-20261121_101500_final")
for judgement in judge.score([{"source": "the house", "candidate": "a casa"}]):
    print(judgement.verdict, judgement.confidence)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core.choosing import choose
from pt_app.core.errors import UserError
from pt_app.core.grids import refuse_chat_rows
from pt_app.core.orders import flipped, order_of
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample, Place, as_name, is_unicode, unlabelled
from pt_app.core.results import PrecisionChange
from pt_app.core.settings import Order, ReadingMode
from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.calibration import Fitted, confidence_in
from pt_app.models import adapters, bases
from pt_app.models.adapters import AdapterInfo

if TYPE_CHECKING:  # these import torch, which takes seconds: a wrong path is refused before
    from transformers import PreTrainedModel

    from pt_app.scoring.scorer import Scored
    from pt_app.scoring.verdict_trie import VerdictTrie

ROWS = Place(Path("rows"), 0, lines=False)
PROBLEM = "problem"  # the key of a placeholder for a row that could not be read
Row = Mapping[str, object]


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
        abstain: whether the confidence is below the fitted threshold; None if it was not fitted.
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


class Judge:
    """A base with a judge's adapter merged into it, ready to score."""

    def __init__(
        self,
        model: PreTrainedModel,
        info: AdapterInfo,
        encoder: PromptEncoder,
        order: Order = "both",
        calibrated: bool = True,
    ) -> None:
        self.model = model
        self.order: Order = order
        self.info = info
        self.encoder = encoder
        self.change: PrecisionChange | None = None
        self.cut: VerdictTrie | None = None
        self.cut_change: PrecisionChange | None = None
        own = order_of(order, info.scale)
        self.fitted = Fitted.read(info.folder, info.rule, own) if calibrated else None
        self.name = f"{info.folder.resolve().name}@{info.sha256[:12]}"

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
        read = [_read(row, ROWS, info.scale) for row in sample]
        rows = [row for row in read if isinstance(row, JudgeExample)]
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
        """
        from pt_app.scoring.scorer import JudgeScorer

        rows = list(rows)
        places = places or [Place(Path("rows"), i, lines=False) for i in range(1, len(rows) + 1)]
        pairs = list(zip(rows, places, strict=True))
        read = [_read(row, place, self.info.scale) for row, place in pairs]
        scorer = JudgeScorer(
            self.model,
            self.encoder,
            order=self.order,
            feedback=feedback,
            progress=progress,
            cut=self.cut or self.whole,
            shorten=shorten,
        )
        scored = iter(scorer.score([row for row in read if isinstance(row, JudgeExample)]))
        return [
            self._judgement(example.id or place.where, next(scored))
            if isinstance(example, JudgeExample)
            else Judgement(_id(row, place), "bad_row", self.name, problem=example)
            for (row, place), example in zip(pairs, read, strict=True)
        ]

    @cached_property
    def whole(self) -> VerdictTrie:
        """The whole lines of the verdicts, which take some milliseconds to encode."""
        from pt_app.scoring.scorer import verdict_trie

        return verdict_trie(self.encoder)

    def _judgement(self, name: str, scored: Scored) -> Judgement:
        scale, chances = self.info.scale, scored.probabilities
        if scored.verdict is None:
            return Judgement(id=name, status=scored.status, judge=self.name)
        sure = confidence_in(scored.verdict, chances, scale)
        calibrated, abstain = self.fitted.of_one(sure) if self.fitted else (None, None)
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


def _read(row: Row, place: Place, scale: Scale) -> JudgeExample | str:
    """Return the record of a row, or what is wrong with it."""
    if not isinstance(row, Mapping):
        what = f"a row must map fields to values, not be a {type(row).__name__}"
        return str(place.error("", what, "give a dict"))
    if PROBLEM in row and len(row) == 1:
        return str(row[PROBLEM])
    try:
        example = unlabelled(dict(row), place, scale)
        refuse_chat_rows(scale, [example])
        return example
    except UserError as error:
        return str(error)


def _id(row: object, place: Place) -> str:
    """Return the id of a row that cannot be judged, or its number."""
    name = as_name(row.get("id")) if isinstance(row, Mapping) else ""
    return name if isinstance(name, str) and is_unicode(name) and name else place.where


def _on(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--device {device}: not on this machine ({first}): use cpu") from error
