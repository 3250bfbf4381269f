"""JudgeScorer: what a judge says of each row, as probabilities of verdicts and as an answer.

The verdict is read without generating, from one forward pass (see verdict_trie); the answer's
words are generated only where they are asked for.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from tqdm import tqdm

from pt_app.errors import UserError
from pt_app.eval_model.data import JudgeExample
from pt_app.eval_model.prompts import PromptEncoder
from pt_app.eval_model.verdict_trie import Reading, VerdictTrie, read_plain, read_tree, sees_trees
from pt_app.eval_model.verdicts import Verdict

log = logging.getLogger(__name__)

# Logits that one pass may hold: 2^26 floats are 256 MiB, and reading them takes as much again.
MOST_LOGITS = 1 << 26


@dataclass(frozen=True)
class Scored:
    """What a judge says of one row.

    `verdict` is the one that the greedy answer starts with: None on a parse failure, where that
    answer leaves the allowed verdicts. `constrained` is the likeliest allowed verdict whatever the
    rest; `probabilities` are over the scale's values and sum to 1, `verdict_mass` is what they
    summed to before, `expected` their mean on a scale of numbers. `raw` is the greedy answer, if
    it was asked for. A row that is too long has none of these.
    """

    status: Literal["ok", "parse_failure", "too_long"]
    verdict: Verdict | None = None
    constrained: Verdict | None = None
    probabilities: tuple[float, ...] = ()
    verdict_mass: float | None = None
    expected: float | None = None
    raw: str | None = None


class JudgeScorer:
    """Scores rows with a causal language model, on the device where it is.

    `batch_tokens` bounds the tokens of a forward pass, `answer_tokens` the length of a generated
    answer. `name` stands before the progress bars, which `progress` switches off. `shortened` is
    how many rows the last `score` had to shorten. Raises UserError where the tokenizer cannot
    tell the verdicts of the encoder's scale apart.
    """

    def __init__(
        self,
        model: Any,
        encoder: PromptEncoder,
        *,
        name: str = "judge",
        batch_tokens: int = 8192,
        answer_tokens: int = 160,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.scale = encoder.scale
        self.name = name
        self.batch_tokens = batch_tokens
        self.answer_tokens = answer_tokens
        self.progress = progress
        self.shortened = 0
        self.trie = VerdictTrie.build(_line_ids(encoder))

    def score(self, examples: Sequence[JudgeExample], generate: bool = True) -> list[Scored]:
        """Score every row, in the order given; with `generate` each gets its `raw` answer.

        A row is shortened to fit the encoder's max_seq_length; one that cannot be is "too_long".
        Both are said in the log.
        """
        # No label has a say in what its judge is shown: a long one would leave the prompt less.
        bare = [example.model_copy(update={"label": None}) for example in examples]
        fitted, cuts = self.encoder.fit(bare, on_unfit="status")
        self.shortened = cuts.rows_cut
        prompts = {
            row: self.encoder.prompt_ids(example)
            for row, example in enumerate(fitted)
            if example is not None
        }
        for problem in cuts.unfit:
            log.warning("%s", problem)
        if cuts.rows_cut:
            log.warning("%s: %d of %d rows shortened", self.name, cuts.rows_cut, len(examples))
        scored = [Scored("too_long")] * len(examples)
        with _evaluating(self.model):
            for row, result in self._verdicts(prompts):
                scored[row] = result
            if generate:
                for row, raw in self._answers(prompts):
                    scored[row] = replace(scored[row], raw=raw)
        return scored

    def _verdicts(self, prompts: dict[int, list[int]]) -> Iterator[tuple[int, Scored]]:
        deepest = max(self.trie.depths, default=-1) + 1
        longest = max(map(len, prompts.values()), default=0) + deepest
        read = read_tree
        if not sees_trees(self.model, longest):
            log.warning("%s: its attention allows no tree; verdicts are read one by one", self.name)
            read = read_plain
        vocabulary = self.model.config.get_text_config().vocab_size
        most_rows = max(1, MOST_LOGITS // (self.trie.states * vocabulary))
        for rows in self._batches(prompts, len(self.trie.tokens), most_rows, "verdicts"):
            pad = self.encoder.end_token_id
            reading = read(self.model, [prompts[row] for row in rows], self.trie, pad)
            yield from zip(rows, self._scored(reading), strict=True)

    def _scored(self, reading: Reading) -> Iterator[Scored]:
        if not bool(torch.isfinite(reading.log_probabilities).all()):
            raise UserError(f"{self.name}: the model's numbers are not finite; load it in float32")
        mass = torch.logsumexp(reading.log_probabilities, dim=1)
        probabilities = (reading.log_probabilities - mass[:, None]).exp()
        values = self.scale.values
        for row, greedy in enumerate(reading.greedy.tolist()):
            chances = tuple(probabilities[row].tolist())
            found = self.trie.walk(greedy)
            yield Scored(
                status="parse_failure" if found is None else "ok",
                verdict=None if found is None else values[found],
                constrained=values[chances.index(max(chances))],
                probabilities=chances,
                verdict_mass=math.exp(float(mass[row])),
                expected=_expected(values, chances),
            )

    def _answers(self, prompts: dict[int, list[int]]) -> Iterator[tuple[int, str]]:
        from transformers import GenerationConfig

        end = self.encoder.end_token_id
        core = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.answer_tokens,
            eos_token_id=end,
            pad_token_id=end,
        )
        for rows in self._batches(prompts, self.answer_tokens, len(prompts), "answers"):
            width = max(len(prompts[row]) for row in rows)
            pads = [width - len(prompts[row]) for row in rows]
            ids = [[end] * pad + prompts[row] for pad, row in zip(pads, rows, strict=True)]
            mask = [[0] * pad + [1] * (width - pad) for pad in pads]
            with _without_defaults(core):
                answers = core.generate(
                    input_ids=torch.tensor(ids, device=core.device),
                    attention_mask=torch.tensor(mask, device=core.device),
                    generation_config=config,
                )
            for row, answer in zip(rows, answers[:, width:].tolist(), strict=True):
                yield row, self._text(answer)

    def _text(self, ids: list[int]) -> str:
        """Decode an answer up to its end token, without what the template puts before it."""
        end = self.encoder.end_token_id
        answer = _decode(self.encoder, ids[: ids.index(end)] if end in ids else ids)
        line = self.scale.lines()[0]
        lead = _decode(self.encoder, self.encoder.answer_ids(line)).removesuffix(line)
        return answer.removeprefix(lead)

    def _batches(
        self, prompts: dict[int, list[int]], more: int, most_rows: int, what: str
    ) -> Iterator[list[int]]:
        """Give rows of like length, the longest first, `more` tokens being added to each.

        Each batch has at least one row. The bar moves when the next batch is asked for.
        """
        order = sorted(prompts, key=lambda row: -len(prompts[row]))
        bar = tqdm(total=len(order), desc=f"{self.name}: {what}", disable=not self.progress)
        with bar:
            while order:
                width = len(prompts[order[0]]) + more
                count = max(1, min(most_rows, self.batch_tokens // width))
                batch, order = order[:count], order[count:]
                yield batch
                bar.update(len(batch))


def _line_ids(encoder: PromptEncoder) -> list[list[int]]:
    """Tokenise each verdict's line alone, and check that it stays so when comments follow."""
    texts = encoder.scale.lines()
    lines = [encoder.answer_ids(line) for line in texts]
    for line, ids in zip(texts, lines, strict=True):
        if encoder.answer_ids(line + "Issues: none")[: len(ids)] != ids:
            raise UserError(
                f"this tokenizer merges the end of {line.strip()!r} with what follows, so its "
                "verdicts cannot be read: use another model"
            )
    return lines


def _expected(values: Sequence[Verdict], probabilities: Sequence[float]) -> float | None:
    total = 0.0
    for value, probability in zip(values, probabilities, strict=True):
        if isinstance(value, str):
            return None
        total += value * probability
    return total


def _decode(encoder: PromptEncoder, ids: list[int]) -> str:
    text: str = encoder.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout and gradients off, and the mode back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Set a model's own generation settings aside.

    transformers (5.23, generation/utils.py, _prepare_generation_config) fills every unset field
    of a GenerationConfig from them: the repetition penalty of Qwen's would change the answers.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
