"""Rows shaped like a judge's data: a rubric that all share, sources, candidates, answers."""

import random
from dataclasses import dataclass
from functools import cached_property

from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import JudgeExample, Label
from pt_app.core.verdicts import Scale
from pt_app.models.bases import load_tokenizer, resolve_model
from pt_app.models.packing import Example

ANSWER = 40  # median tokens
SPREAD = 0.4  # of the logarithm: two thirds of the texts lie between 0.67 and 1.5 of the median
WORKLOADS = {"rubric": 1, "variants": 4}  # candidates of a source
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Lengths:
    """Median tokens of a prompt's parts. All but the rubric are log-normal.

    Of the body, source, reference and candidate have a third each.
    """

    rubric: int = 200
    body: int = 180


USUAL = Lengths()


@dataclass(frozen=True)
class Workload:
    """Rows as records, and as token ids with the prompt's length for training, once asked for."""

    name: str
    encoder: PromptEncoder
    examples: list[JudgeExample]
    lengths: Lengths

    @cached_property
    def encoded(self) -> list[Example]:
        """The rows as token ids."""
        return [
            {"input_ids": one.input_ids, "prompt_length": one.prompt_length}
            for one in self.encoder.encode(self.examples)[0]
        ]

    @property
    def prompt_tokens(self) -> float:
        """The mean length of a prompt."""
        lengths: list[int] = [row["prompt_length"] for row in self.encoded]
        return sum(lengths) / len(lengths)


def make_workload(name: str, rows: int, scale: str, lengths: Lengths = USUAL) -> Workload:
    """Rows of the tiny base's tokenizer, whose words are random: `name` is a key of WORKLOADS."""
    tokenizer = load_tokenizer(resolve_model("tiny"))
    rng = random.Random(0)
    pieces = [tokenizer.decode([i]) for i in range(300, 2000)]
    words = [piece for piece in pieces if piece[:1] == " " and piece.strip().isalpha()]

    def text(median: int, fixed: bool = False) -> str:
        count = median if fixed else max(4, round(rng.lognormvariate(0, SPREAD) * median))
        return "".join(rng.choices(words, k=count)).strip()

    judged = Scale.from_name(scale)
    template = Template.load("translation", text(lengths.rubric - 35, fixed=True))
    encoder = PromptEncoder(tokenizer, template, judged, MAX_TOKENS)
    examples: list[JudgeExample] = []
    third = lengths.body // 3
    while len(examples) < rows:
        source, reference = text(third - 5), text(third - 5)
        for _ in range(WORKLOADS[name]):
            label = Label(verdict=rng.choice(judged.values), feedback=text(ANSWER - 11))
            examples.append(
                JudgeExample(
                    source=source, reference=reference, candidate=text(third - 8), label=label
                )
            )
    return Workload(name, encoder, examples[:rows], lengths)
