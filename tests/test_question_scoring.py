"""Several questions in one pass: what each reads alone, and each state once."""

import random
from typing import Any

import pytest
import torch

from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import Question
from pt_app.core.records import JudgeExample
from pt_app.models.packing import common_prefix
from pt_app.models.tree_attention import BLOCKS
from pt_app.scoring.scorer import JudgeScorer, Scored, greedy_answer
from tests.question_rows import examples, questions
from tests.test_packing import make_model
from tests.tiny_models import make_tokenizer

MANY = {
    "type": "choice",
    "instructions": "Which code?",
    "options": [f"code {i}" for i in range(255)],
}
ASKED = questions(code=MANY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encoder_of(tokenizer: Any, asked: tuple[Question, ...] = ASKED) -> PromptEncoder:
    return PromptEncoder(tokenizer, Template.load("questions"), asked, 8000)


def model_of(tokenizer: Any, kind: str, attention: str = "sdpa") -> Any:
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 8192}
    return make_model(kind, attention, **size).eval()


def scored(
    model: Any, encoder: PromptEncoder, rows: list[JudgeExample], **options: Any
) -> list[Scored]:
    return JudgeScorer(model, encoder, progress=False, **options).score(rows)


def assert_equal(some: list[Scored], others: list[Scored]) -> None:
    for a, b in zip(some, others, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
        assert a.verdict_mass == pytest.approx(b.verdict_mass, rel=1e-4)
        assert (a.status, a.greedy) == (b.status, b.greedy)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_a_question_reads_the_same_alone_and_in_any_company_and_order(
    tokenizer: Any, kind: str
) -> None:
    model, encoder, rows = (
        model_of(tokenizer, kind, BLOCKS),
        encoder_of(tokenizer),
        examples(3, ASKED),
    )
    together = scored(model, encoder, rows)
    alone = [scored(model, encoder.about(row.question), [row])[0] for row in rows if row.question]
    assert_equal(together, alone)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    assert_equal([together[i] for i in order], scored(model, encoder, [rows[i] for i in order]))
    for budget in (1, 600):
        assert_equal(together, scored(model, encoder, rows, batch_tokens=budget))
    # Each differs by question and by row, or none of this would show anything.
    assert len({result.probabilities for result in together}) == len(rows)


def test_trees_read_what_one_sequence_for_each_option_reads(tokenizer: Any) -> None:
    model, encoder, rows = model_of(tokenizer, "Llama"), encoder_of(tokenizer), examples(1, ASKED)
    assert_equal(scored(model, encoder, rows), scored(model, encoder, rows, trees=False))


def test_every_question_gets_a_distribution_also_of_255_options(tokenizer: Any) -> None:
    model, encoder, rows = model_of(tokenizer, "Qwen2"), encoder_of(tokenizer), examples(2, ASKED)
    for row, result in zip(rows, scored(model, encoder, rows), strict=True):
        scale = encoder.scale_of(row)
        assert len(result.probabilities) == len(scale.values)
        assert sum(result.probabilities) == pytest.approx(1, abs=1e-6)
        assert 0 < (result.verdict_mass or 0) <= 1
        assert result.verdict in scale.values
    assert len(result.probabilities) == 255


def test_the_state_comes_first_and_is_read_once(tokenizer: Any) -> None:
    asked = questions()
    encoder, model = encoder_of(tokenizer, asked), model_of(tokenizer, "Llama", BLOCKS)
    rows = [r.model_copy(update={"state": f"{r.state} {'cup ' * 300}"}) for r in examples(2, asked)]
    prompts = [encoder.prompt_ids(row) for row in rows]
    state = len(encoder.tokenizer.encode(rows[0].state, add_special_tokens=False))
    assert all(common_prefix(prompts[0], other) > state for other in prompts[1:4])
    read: list[int] = []
    model.get_base_model().register_forward_pre_hook(
        lambda _, args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scored(model, encoder, rows[:1])
    one = sum(read)
    read.clear()
    scored(model, encoder, rows[:4])
    assert sum(read) < one + sum(len(prompt) - state for prompt in prompts[1:4]) + 100
    assert sum(read) < 2 * one


def test_answers_of_several_questions_are_those_of_generate(tokenizer: Any) -> None:
    asked = questions()
    encoder, model = encoder_of(tokenizer, asked), model_of(tokenizer, "Llama")
    rows = examples(2, asked)
    found = scored(model, encoder, rows, feedback=True, answer_tokens=8)
    for row, result in zip(rows, found, strict=True):
        with torch.inference_mode():
            ids = greedy_answer(model, encoder.prompt_ids(row), encoder.end_token_id, 8)
        assert result.raw == JudgeScorer(model, encoder)._text(ids)
