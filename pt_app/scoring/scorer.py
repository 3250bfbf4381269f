"""JudgeScorer: the verdict of a judge on each row, as probabilities and as an answer.

The verdict is read without generation, from a forward pass over the prefix tree of all prompts
(tree_reading.py). The text of the answer is generated only on demand.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from pt_app.core.choosing import choose, is_tied, mean_of
from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.orders import mean_of_orders, swapped
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import scales_of
from pt_app.core.settings import Order
from pt_app.core.verdicts import Scale, Verdict
from pt_app.models.contention import watched
from pt_app.models.gemm import fast_matmul
from pt_app.models.packing import Shapes
from pt_app.models.tree_attention import core, why_no_tree
from pt_app.scoring.completion import Opening, complete, openings
from pt_app.scoring.tree_reading import TreeReader
from pt_app.scoring.verdict_trie import Reading, VerdictTrie, read_plain

log = logging.getLogger(__name__)

# Logits per forward pass: 2^26 floats are 256 MiB, and reading them takes as much again.
MAX_LOGITS = 1 << 26
AT_ONCE = 32  # prompts that an engine is given together
# Answers are decoded in batches whose KV cache holds this many times `batch_tokens` tokens.
DECODED = 8

ReadLines = Callable[[Sequence[list[int]], VerdictTrie], Reading]
"""Reads the lines of verdicts behind prompts."""
Waiting = dict[int, tuple[Opening, "Scored"]]
"""Results by row whose answers are still to be decoded."""


@dataclass(frozen=True)
class Scored:
    """The verdict of a judge on one row. A row that is too long has none of the values.

    Attributes:
        status: ok, parse_failure or too_long.
        verdict: what the encoder's rule chooses by the probabilities.
        greedy: the verdict that the greedy answer starts with; None on a parse failure, where that
            answer leaves the allowed verdicts.
        probabilities: over the values of the scale; they sum to 1. A judge that speaks a grid
            gives those of bins, which are spread evenly over the values of each.
        verdict_mass: the probability of all allowed verdicts together, before that normalization.
        expected: the mean of the probabilities on a scale of numbers.
        raw: the greedy answer, if it was generated.
        tokens: the length of the prompt; of a pair that was judged in both orders, of both.
        orders: of a pair that was judged in both orders, the two results, of which the second is in
            its own order's letters; probabilities are then the mean of both, and greedy answer and
            mass are those of the given order.
    """

    status: Literal["ok", "parse_failure", "too_long"]
    verdict: Verdict | None = None
    greedy: Verdict | None = None
    probabilities: tuple[float, ...] = ()
    verdict_mass: float | None = None
    expected: float | None = None
    raw: str | None = None
    tokens: int = 0
    orders: tuple["Scored", "Scored"] | None = None


@dataclass(eq=False)
class JudgeScorer:
    """Score rows with a causal language model, on the device of the model.

    Args:
        model: the model, with or without an adapter.
        encoder: encodes prompts and verdicts.
        name: label of the progress bar and of warnings.
        order: judge pairs in both orders, and take the mean; or as they are given.
        feedback: also generate answers.
        batch_tokens: maximum newly computed tokens per forward pass.
        answer_tokens: maximum tokens per generated answer.
        progress: show a progress bar.
        shapes: the sizes to which tensors are padded; default: no padding.
        trees: read rows together as a prefix tree; else one by one, which is the fallback for
            models whose attention does not allow it.
        tries: the lines of the verdicts of some scales, encoded before, or cut (branches.py); those
            of the other scales are encoded here, whole, which takes some milliseconds.
        shorten: cut what does not fit; else such a row has the status "too_long".
        engine: what reads the verdicts of the one scale in place of the model.

    Attributes:
        shortened: rows that the last `score` had to shorten.
        ties: rows of the last `score` in which rounding decides between two verdicts.

    Raises:
        UserError: if the tokenizer cannot tell the verdicts of the scale apart.
    """

    model: PreTrainedModel
    encoder: PromptEncoder
    _: KW_ONLY
    name: str = "judge"
    order: Order = "both"
    feedback: bool = False
    batch_tokens: int = 2048
    answer_tokens: int = 160
    progress: bool = True
    shapes: Shapes = field(default_factory=Shapes)
    trees: bool = True
    tries: Mapping[Scale, VerdictTrie] = field(default_factory=dict)
    shorten: bool = True
    engine: ReadLines | None = None

    def __post_init__(self) -> None:
        self.tries = verdict_tries(self.encoder, self.tries)
        self.shortened = self.ties = 0

    @property
    def trie(self) -> VerdictTrie:
        """The verdicts of the one scale; raises UserError if there are several questions."""
        return self.tries[self.encoder.scale]

    def score(self, examples: Sequence[JudgeExample]) -> list[Scored]:
        """Score every row, in the given order, and pairs in their other one, too.

        A row is shortened to fit the encoder's max_seq_length; one that cannot be has the status
        "too_long". Both are logged.
        """
        scored = self._one_order(examples)
        pairs = {
            i: other
            for i, row in enumerate(examples)
            if self.order == "both" and scored[i].probabilities and (other := swapped(row))
        }
        if pairs:
            other_order = replace(self, name=f"{self.name}, other order", feedback=False)
            others = other_order._one_order(list(pairs.values()))
            for i, result in zip(pairs, others, strict=True):
                scored[i] = self._in_both_orders(scored[i], result)
        scales = map(self.encoder.scale_of, examples)
        self.ties = sum(
            is_tied(result.probabilities, scale, self.encoder.rule_of(scale))
            for result, scale in zip(scored, scales, strict=True)
            if result.probabilities
        )
        return scored

    def _in_both_orders(self, given: Scored, other: Scored) -> Scored:
        if not other.probabilities:
            return given
        mean = mean_of_orders(given.probabilities, other.probabilities)
        verdict = choose(mean, self.encoder.scale, self.encoder.rule)
        tokens, orders = given.tokens + other.tokens, (given, other)
        return replace(given, verdict=verdict, probabilities=mean, tokens=tokens, orders=orders)

    def _one_order(self, examples: Sequence[JudgeExample]) -> list[Scored]:
        # The label must not influence the prompt: a long one would leave less room for it.
        bare = [example.model_copy(update={"label": None}) for example in examples]
        rows, cuts = self.encoder.fit(bare, self.shorten)
        self.shortened = cuts.rows_cut
        for problem in cuts.unfit:
            log.warning("%s", problem)
        if cuts.rows_cut:
            log.warning("%s: %d of %d rows shortened", self.name, cuts.rows_cut, len(examples))
        places = [place for place, row in enumerate(rows) if not row.unfit]
        prompts = [rows[place].prompt for place in places]
        scales = [self.encoder.scale_of(rows[place].example) for place in places]
        scored = [Scored("too_long")] * len(examples)
        bar = tqdm(total=len(prompts), desc=f"{self.name}: verdicts", disable=not self.progress)
        with evaluating(self.model), bar:
            for prompt, result in self._results(prompts, scales):
                scored[places[prompt]] = replace(result, tokens=len(prompts[prompt]))
                bar.update()
        return scored

    def _results(
        self, prompts: Sequence[list[int]], scales: Sequence[Scale]
    ) -> Iterator[tuple[int, Scored]]:
        """Yield the index of each prompt and its result, in the order of computation."""
        if self.engine:
            return self._by_engine(self.engine, prompts)
        deepest = max(trie.depth for trie in self.tries.values())
        room = max(deepest, self.answer_tokens if self.feedback else 0)
        why = why_no_tree(self.model, max(map(len, prompts), default=0) + room)
        if why is None and self.trees:
            return self._from_tree(prompts, scales)
        if prompts and why is not None:
            log.warning("%s: verdicts are read row by row: %s", self.name, why)
        return self._row_by_row(prompts, scales)

    def _by_engine(
        self, engine: ReadLines, prompts: Sequence[list[int]]
    ) -> Iterator[tuple[int, Scored]]:
        for start in range(0, len(prompts), AT_ONCE):
            reading = engine(prompts[start : start + AT_ONCE], self.trie)
            yield from enumerate(self._scored(reading, self.encoder.scale), start)

    def _from_tree(
        self, prompts: Sequence[list[int]], scales: Sequence[Scale]
    ) -> Iterator[tuple[int, Scored]]:
        vocabulary = self.model.config.get_text_config().vocab_size
        tries = [self.tries[scale] for scale in scales]
        largest = max((trie.states for trie in tries), default=1)
        max_rows = max(1, MAX_LOGITS // (largest * vocabulary))
        pad = self.encoder.end_token_id
        sizes = self.batch_tokens, max_rows, pad, self.shapes
        waiting: Waiting = {}
        for part in TreeReader(self.model, *sizes).parts(prompts, tries):
            scored = self._scored(part.reading, scales[part.rows[0]])
            results = zip(part.rows, scored, strict=True)
            if not self.feedback:
                yield from results
                continue
            for opening, (row, result) in zip(openings(part), results, strict=True):
                if self._is_full(waiting, opening):
                    yield from self._completed(waiting)
                    waiting = {}
                waiting[row] = opening, result
        yield from self._completed(waiting)

    def _is_full(self, waiting: Waiting, another: Opening) -> bool:
        lengths = [another.length, *(opening.length for opening, _ in waiting.values())]
        tokens = len(lengths) * (max(lengths) + self.answer_tokens)
        return len(lengths) > 1 and tokens > DECODED * self.batch_tokens

    def _completed(self, waiting: Waiting) -> Iterator[tuple[int, Scored]]:
        opened = [opening for opening, _ in waiting.values()]
        answers = complete(self.model, opened, self.encoder.end_token_id, self.answer_tokens)
        for row, ids in answers.items():
            yield row, replace(waiting[row][1], raw=self._text(ids))

    def _row_by_row(
        self, prompts: Sequence[list[int]], scales: Sequence[Scale]
    ) -> Iterator[tuple[int, Scored]]:
        end = self.encoder.end_token_id
        for row, (prompt, scale) in enumerate(zip(prompts, scales, strict=True)):
            reading = read_plain(self.model, [prompt], self.tries[scale], end)
            (result,) = self._scored(reading, scale)
            if self.feedback:
                answer = greedy_answer(self.model, prompt, end, self.answer_tokens)
                result = replace(result, raw=self._text(answer))
            yield row, result

    def _scored(self, reading: Reading, scale: Scale) -> Iterator[Scored]:
        if not bool(torch.isfinite(reading.log_probabilities).all()):
            raise UserError(f"{self.name}: a logit of the model is not finite: load it in float32")
        # Only the allowed verdicts count: what they lack to 1 is the mass of all other answers.
        mass = torch.logsumexp(reading.log_probabilities, dim=1)
        probabilities = (reading.log_probabilities - mass[:, None]).exp()
        trie, rule = self.tries[scale], self.encoder.rule_of(scale)
        for row, greedy in enumerate(reading.greedy.tolist()):
            chances = scale.spread(probabilities[row].tolist())
            index = trie.walk(greedy)
            yield Scored(
                status="parse_failure" if index is None else "ok",
                verdict=choose(chances, scale, rule),
                greedy=None if index is None else scale.line_values[index],
                probabilities=chances,
                verdict_mass=math.exp(float(mass[row])),
                expected=mean_of(chances, scale),
            )

    def _text(self, ids: list[int]) -> str:
        """Decode an answer up to its end token, without what the chat template puts before it."""
        end, line = self.encoder.end_token_id, next(iter(self.tries)).lines()[0]
        own = ids[: ids.index(end)] if end in ids else ids
        answer, lead = self.encoder.tokenizer.batch_decode(
            [own, self.encoder.answer_ids(line)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return str(answer).removeprefix(lead.removesuffix(line))


def greedy_answer(
    model: PreTrainedModel, prompt: Sequence[int], end_id: int, max_tokens: int
) -> list[int]:
    """Return the ids of the greedy `generate` of transformers: the reference for `complete`."""
    plain = core(model)
    ends = {"max_new_tokens": max_tokens, "eos_token_id": end_id, "pad_token_id": end_id}
    config = GenerationConfig(do_sample=False, num_beams=1, **ends)
    ids = torch.tensor([list(prompt)], device=plain.device)
    own = plain.generation_config
    # transformers (5.23, generation/utils.py, _prepare_generation_config) fills every unset field
    # of `config` from the model's own: the repetition penalty of Qwen would change the answers.
    plain.generation_config = GenerationConfig()
    try:
        answer = plain.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    finally:
        plain.generation_config = own
    ids_of_answer: list[int] = answer[0, len(prompt) :].tolist()
    return ids_of_answer


def verdict_tries(
    encoder: PromptEncoder, known: Mapping[Scale, VerdictTrie] = MappingProxyType({})
) -> dict[Scale, VerdictTrie]:
    """Return the trie of each scale of an encoder, of its one or of its questions'.

    Those that are not `known` are built.

    Raises:
        UserError: as `verdict_trie` does.
    """
    scales = dict.fromkeys(scale for _, scale in scales_of(encoder.asked))
    return {scale: known.get(scale) or verdict_trie(encoder, scale) for scale in scales}


def largest_trie(encoder: PromptEncoder) -> VerdictTrie:
    """Return the trie of the verdicts, of several questions the one with most tokens."""
    return max(verdict_tries(encoder).values(), key=lambda trie: trie.states)


def verdict_trie(encoder: PromptEncoder, scale: Scale | None = None) -> VerdictTrie:
    """Build the trie of the verdicts of a scale, by default of an encoder's one.

    Each line is tokenized alone.

    Raises:
        UserError: if the tokens of a line change when comments follow, or if the tokenizer cannot
            tell two verdicts apart.
    """
    texts = (scale or encoder.scale).lines()
    lines = [encoder.answer_ids(line) for line in texts]
    for line, ids in zip(texts, lines, strict=True):
        if encoder.answer_ids(line + "Issues: none")[: len(ids)] != ids:
            problem = f"merges the end of {line.strip()!r} with what follows"
            raise UserError(f"this tokenizer {problem}: use another model")
    first: dict[tuple[int, ...], str] = {}
    for line, ids in zip(texts, lines, strict=True):
        if (other := first.setdefault(tuple(ids), line)) != line:
            alike = f'"{other.strip()}" and "{line.strip()}" alike'
            raise UserError(f"this tokenizer writes {alike}: rename one, or use another model")
    return VerdictTrie.build(lines)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch off dropout and gradients, and choose the fastest exact matmul, within."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), fast_matmul(model.device), watched(model.device):
            yield
    finally:
        model.train(training)
