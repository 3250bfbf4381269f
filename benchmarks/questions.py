"""`judge bench questions`: several questions about one text, against transformers' own pipeline.

Both answer the same questions about the same states with the same model, on one CPU core. The
pipeline (`pipeline("decision")`) computes a forward pass for each question; the judge reads the
state once, and the questions as branches behind it. The same run trains several questions of each
state, and one.
"""

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import Work, in_turns, repeat
from benchmarks.train import WAYS, real_training
from benchmarks.workloads import USUAL, Workload
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Declared, Question, questions_of
from pt_app.core.records import JudgeExample, Label
from pt_app.models.bases import load_model, load_tokenizer, resolve_model

COUNTS = (1, 2, 4, 8)
TRAINED = (1, 4)
MAX_TOKENS = 2048
OPTIONS = ["replacement", "refund", "repair", "nothing"]


def _declared(number: int) -> Declared:
    """A question of each kind that the pipeline has, in turns: yes or no, a choice, levels."""
    kinds: list[dict[str, Any]] = [
        {"type": "bool", "instructions": f"Is point {number} of the policy kept?"},
        {"type": "choice", "instructions": f"Which offer is number {number}?", "options": OPTIONS},
        {"type": "score", "instructions": f"How well is it kept, {number}?", "scale": "0-4"},
    ]
    return Declared.model_validate(kinds[number % len(kinds)])


def _request(question: Question) -> dict[str, Any]:
    """The same question as the pipeline takes it."""
    asked: dict[str, Any] = {"instructions": question.declared.instructions}
    if question.type == "bool":
        return {**asked, "type": "noul"}
    if question.type == "choice":
        return {**asked, "type": "choice", "criteria": dict.fromkeys(OPTIONS)}
    levels = [str(value) for value in question.scale.values]
    return {**asked, "type": "score", "criteria": levels}


def _judge(
    model: Any, encoder: PromptEncoder, states: list[str], count: int
) -> Callable[[], list[Any]]:
    from pt_app.models.gemm import pack_weights
    from pt_app.models.tree_attention import BLOCKS, use_attention
    from pt_app.scoring.scorer import JudgeScorer

    use_attention(model, BLOCKS)
    asked = encoder.questions[:count]
    scorer = JudgeScorer(pack_weights(model), encoder.about(*asked), progress=False)
    rows = [[JudgeExample(state=state, question=q) for q in asked] for state in states]
    # A state at a time, as they come in; together they would share the system turn, too.
    return lambda: [[one.probabilities for one in scorer.score(row)] for row in rows]


def _pipeline(
    model: Any, encoder: PromptEncoder, states: list[str], count: int
) -> Callable[[], list[Any]]:
    from transformers import pipeline
    from transformers.decision import DecisionConfig

    config = DecisionConfig()
    pipe = pipeline("decision", model=model, tokenizer=encoder.tokenizer, decision_config=config)
    questions = {question.name: _request(question) for question in encoder.questions[:count]}
    return lambda: [pipe({"state": state, "questions": questions}) for state in states]


def _training(
    model: Any, encoder: PromptEncoder, states: list[str], count: int, steps: int, file: Path
) -> Work:
    """Work that trains `count` questions of every state in each step."""
    rng = random.Random(0)
    rows = [
        JudgeExample(
            state=state, question=asked, label=Label(verdict=rng.choice(asked.scale.values))
        )
        for state in states * steps
        for asked in encoder.questions[:count]
    ]
    workload = Workload("questions", encoder, rows, USUAL)
    way = replace(WAYS["judge"], rows=len(states), accumulate=count)
    return real_training(model, workload, way, steps, file)


def measure(
    model: str, tokens: int, states: int, rounds: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the median seconds per state of both, by the number of questions, and their ratios.

    A ratio is None where one of its two ways failed, as the pipeline does with a tokenizer that has
    no single tokens for its labels (the tiny base's).
    """
    torch.set_num_threads(1)
    source = resolve_model(model)
    tokenizer, base = load_tokenizer(source), load_model(source)
    asked = questions_of({f"q{i}": _declared(i) for i in range(max(COUNTS))}, "questions")
    encoder = PromptEncoder(tokenizer, Template.load("questions"), asked, MAX_TOKENS)
    rng = random.Random(0)
    pieces = [tokenizer.decode([i]) for i in range(300, 2000)]
    words = [piece for piece in pieces if piece[:1] == " " and piece.strip().isalpha()]
    texts = ["reply:" + "".join(rng.choices(words, k=tokens)) for _ in range(states)]
    ways: dict[str, Work] = {}
    for count in COUNTS:
        for name, make in (("judge", _judge), ("pipeline", _pipeline)):
            ways[f"{name}, {count}"] = repeat(partial(make, base, encoder, texts, count))
    with tempfile.TemporaryDirectory() as folder:
        for count in TRAINED:
            how = count, 2 * (rounds + 1), Path(folder) / f"{count}.pt"  # see Turns.done
            ways[f"training, {count}"] = _training(base, encoder, texts, *how)
        found = in_turns(ways, rounds, say)
    seconds = {name: samples.median / states for name, samples in found.items() if samples.seconds}

    def ratio(one: str, other: str) -> float | None:
        return seconds[one] / seconds[other] if {one, other} <= seconds.keys() else None

    return {
        "model": source.name,
        "tokens": tokens,
        "states": states,
        "rounds": rounds,
        "seconds_per_state": seconds,
        "errors": {name: samples.error for name, samples in found.items() if samples.error},
        "eight_against_one": ratio("judge, 8", "judge, 1"),
        "four_trained_against_one": ratio("training, 4", "training, 1"),
        "faster_than_pipeline": {str(n): ratio(f"pipeline, {n}", f"judge, {n}") for n in COUNTS},
    }
