"""Training on several questions of a row in one pack: loss, gradients, weights and steps."""

import random
from collections import Counter
from typing import Any

import pytest
import torch

from pt_app.core.dataset import members_of, read_dataset
from pt_app.core.errors import UserError
from pt_app.core.orders import answers_of
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.questions import per_question
from pt_app.core.records import JudgeExample
from pt_app.models.packing import Example, StepCollator, pack, unpacked
from pt_app.training.answers import balanced, counts_of_rows
from pt_app.training.loss import summed_loss
from pt_app.training.ordering import RowSteps
from tests.question_rows import QUESTIONS, questions, write_questions
from tests.test_packing import gradients, make_model
from tests.tiny_models import make_tokenizer

NAMES = list(QUESTIONS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[JudgeExample]:
    return read_dataset(write_questions(tmp_path_factory.mktemp("data") / "tickets")).train


def encoded(tokenizer: Any, rows: list[JudgeExample]) -> list[Example]:
    encoder = PromptEncoder(tokenizer, Template.load("questions"), questions(), 2000)
    answers, shares = answers_of(rows, seed=1)
    weights = balanced(answers, shares, {"offer": 2.0})
    return [
        {"input_ids": row.input_ids, "prompt_length": row.prompt_length, "weight": weight}
        for row, weight in zip(encoder.encode(answers)[0], weights, strict=True)
    ]


def loss_and_gradients(model: Any, batches: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = sum((summed_loss(model, batch) for batch in batches), torch.zeros(()))
    loss.backward()
    return float(loss.detach()), gradients(model)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_loss_and_gradients_are_those_of_each_question_alone_in_any_company(
    tokenizer: Any, rows: list[JudgeExample], kind: str
) -> None:
    model = make_model(kind, vocab_size=len(tokenizer))
    examples = encoded(tokenizer, rows[:6])
    loss, own = loss_and_gradients(model, [pack([one], 0) for one in examples])
    shuffled = random.Random(0).sample(examples, len(examples))
    for batches in (
        [pack(examples, 0)],
        [pack(shuffled, 0)],
        [pack(shuffled[:3], 0), pack(shuffled[3:], 0)],
        unpacked(pack(examples, 0), 0, rows=3),
    ):
        other, found = loss_and_gradients(model, batches)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, gradient in own.items():
            assert torch.allclose(
                found[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max()
            )


def test_what_questions_share_is_in_a_pack_once(tokenizer: Any, rows: list[JudgeExample]) -> None:
    long = [row.model_copy(update={"state": f"{row.state} {'cup ' * 200}"}) for row in rows[:3]]
    assert len({row.id for row in long}) == 1
    examples = encoded(tokenizer, long)
    alone = max(len(one["input_ids"]) for one in examples)
    assert pack(examples, 0)["input_ids"].numel() < 1.5 * alone


def test_votes_are_learned_as_the_shares_that_they_are(
    tokenizer: Any, rows: list[JudgeExample]
) -> None:
    (row,) = (row for row in rows if row.asks == "offer" and row.id == "train-3")
    assert 0 < row.shares[1] < 1, "this row could not tell votes from one label"
    model, examples = make_model("Llama", vocab_size=len(tokenizer)), encoded(tokenizer, [row])
    assert [one["weight"] for one in examples] == pytest.approx([s for s in row.shares if s])
    with torch.no_grad():
        each = [float(summed_loss(model, pack([{**one, "weight": 1.0}], 0))) for one in examples]
        both = float(summed_loss(model, pack(examples, 0)))
    assert both == pytest.approx(sum(s * loss for s, loss in zip(row.shares, each, strict=False)))


def test_questions_weigh_alike_however_many_labels_they_have(rows: list[JudgeExample]) -> None:
    fewer = [row for row in rows if row.asks != "quality" or row.id in ("train-0", "train-1")]
    answers, shares = answers_of(fewer, seed=None)
    for given, ratio in (({}, 1.0), ({"quality": 3.0}, 3.0)):
        weights = balanced(answers, shares, given)
        total = {
            name: sum(w for a, w in zip(answers, weights, strict=True) if a.asks == name)
            for name in ("apologises", "offer", "quality", "overall")
        }
        assert total["quality"] == pytest.approx(ratio * total["offer"])
        assert total["overall"] == pytest.approx(total["apologises"])
        assert sum(weights) == pytest.approx(len(fewer))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_question_weighs_as_much_over_steps_in_which_few_rows_have_its_label(
    rows: list[JudgeExample], share: float
) -> None:
    rng = random.Random(0)
    two = [row for row in rows * 40 if row.asks in ("apologises", "quality")]
    named = [row.model_copy(update={"id": f"{i // 2}", "where": ""}) for i, row in enumerate(two)]
    kept = [row for row in named if row.asks == "apologises" or rng.random() < share]
    answers, shares = answers_of(kept, seed=None)
    weights, members = balanced(answers, shares, {}), members_of(answers)
    counts = counts_of_rows(members, weights, [3] * len(answers))
    total: Counter[str] = Counter()
    for start in range(0, len(members), 4):
        step = [answer for own in members[start : start + 4] for answer in own]
        divisor = sum(counts[answer] for answer in step)
        for answer in step:
            total[answers[answer].asks] += weights[answer] / divisor  # type: ignore[assignment]
    assert total["quality"] == pytest.approx(total["apologises"], rel=0.05)


def test_rows_with_all_labels_count_as_their_supervised_tokens(
    tokenizer: Any, rows: list[JudgeExample]
) -> None:
    answers, shares = answers_of(rows, seed=None)
    weights, members = balanced(answers, shares, {}), members_of(answers)
    counts = counts_of_rows(members, weights, [3] * len(answers))
    assert sum(counts) == pytest.approx(3 * sum(weights))
    examples = [one | {"count": n} for one, n in zip(encoded(tokenizer, rows), counts, strict=True)]
    step = StepCollator(0, 2048)(examples)  # type: ignore[arg-type]
    assert float(step["count"]) == pytest.approx(sum(counts))


def test_options_are_trained_in_an_order_of_the_row_and_the_seed(rows: list[JudgeExample]) -> None:
    offers = [row for row in rows if row.asks == "offer"]

    def orders(seed: int | None) -> list[Any]:
        return [row.question and row.question.described for row in answers_of(offers, seed)[0]]

    declared = questions()[1].described
    assert set(orders(None)) == {declared}
    assert len(set(orders(1))) > 3
    assert orders(1) == orders(1) != orders(2)
    for row in answers_of(offers, 1)[0]:
        assert row.question == questions()[1]  # the scale is the same


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_has_all_examples_of_its_rows(
    tokenizer: Any, rows: list[JudgeExample], monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    members = members_of(rows)
    assert [len(own) for own in members] == [3] * 24
    monkeypatch.setattr("pt_app.core.console.ranks", lambda: ranks)
    steps = RowSteps(rows, range(24), 5, StepCollator(0, 2048), members=members)  # type: ignore
    assert len(steps) == 5
    taken = [steps.rows_of(0, rank) for rank in range(ranks)]
    for step in range(5):
        of_step = [i for own in taken for i in own[step]]
        assert {rows[i].id for i in of_step} == {f"train-{i}" for i in range(24)[5 * step :][:5]}
        assert len(of_step) == 3 * min(5, 24 - 5 * step)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tone=2", 'there is no question "tone"'),
        ("offer=0", '"0" is no number above 0'),
        ("offer", '"" is no number above 0'),
        ("offer=1,offer=2", '"offer" is given twice'),
    ],
)
def test_weights_that_cannot_be_read_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        per_question(text, NAMES, "--question_weights")
    found = per_question("offer=2, quality=.5", NAMES, "--question_weights")
    assert found == {"offer": 2.0, "quality": 0.5}
