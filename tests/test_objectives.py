"""The losses of benchmarks/objectives: their gradients, their layouts, and what they need."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.objectives.losses import LOSSES, VerdictLoss, in_both_orders, raters_shares
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.models.packing import Batch, StepCollator, pack
from pt_app.scoring.verdict_trie import VerdictTrie
from pt_app.training.loss import AnswerLoss, summed_loss
from tests.test_packing import gradients, make_model, plain_loss

KIND = "StableLm"  # its norms stay in float64, which those of Llama do not
SUMS = [{"ce": 1.0, name: 0.5} for name in LOSSES]
ALONE: list[dict[str, float]] = [{"soft": 1.0}, {"rps": 4.0}, {"raft": 20.0}]
# One state decides on 0-9; on 0-10 another one tells 1 from 10, and most labels do not reach it.
SCALES = [Scale.from_name("0-9"), Scale.from_name("0-10")]


def lines_of(scale: Scale) -> list[list[int]]:
    """A token for each digit, one before the verdict, one for the end of its line."""
    return [[10, *(20 + int(digit) for digit in str(value)), 11] for value in scale.values]


def make_rows(scale: Scale, count: int = 9) -> list[dict[str, Any]]:
    """Rows of three sources, whose answers are a verdict's line and sometimes a comment."""
    rng, rows = random.Random(0), []
    sources = [[rng.randrange(40, 300) for _ in range(12)] for _ in range(3)]
    for index in range(count):
        prompt = sources[index % 3] + [rng.randrange(40, 300) for _ in range(rng.randint(3, 9))]
        comment = [rng.randrange(40, 300) for _ in range(3)] if index % 2 else []
        answer = [*rng.choice(lines_of(scale)), *comment, 2]
        rows.append({"input_ids": prompt + answer, "prompt_length": len(prompt)})
    return rows


def make_loss(scale: Scale, rows: list[dict[str, Any]], weights: dict[str, float]) -> VerdictLoss:
    rng = random.Random(1)
    votes = [[rng.random() for _ in scale.values] for _ in rows]
    keyed = [tuple(row["input_ids"]) for row in rows]
    shares = {ids: [v / sum(own) for v in own] for ids, own in zip(keyed, votes, strict=True)}
    return VerdictLoss(VerdictTrie.build(lines_of(scale)), scale, weights, 0, shares)


@contextmanager
def moved(model: Any, direction: dict[str, torch.Tensor], by: float) -> Iterator[None]:
    """Move the trained weights of a model meanwhile."""
    for sign in (by, -by):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter += sign * direction[name]
        if sign == by:
            yield


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
@pytest.mark.parametrize("weights", [*SUMS, *ALONE], ids=str)
def test_gradients_are_finite_differences(weights: dict[str, float], scale: Scale) -> None:
    rows, model = make_rows(scale), make_model(KIND).double()
    loss, packed = make_loss(scale, rows, weights), pack(rows, 0)
    loss(model, packed).backward()
    torch.manual_seed(1)
    taken = gradients(model)
    direction = {name: torch.randn_like(gradient) for name, gradient in taken.items()}
    slope = sum(float((taken[name] * direction[name]).sum()) for name in taken)
    step, ends = 1e-5, []
    for by in (step, -step):
        with torch.no_grad(), moved(model, direction, by):
            ends.append(float(loss(model, packed)))
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
@pytest.mark.parametrize("weights", [*SUMS, *ALONE], ids=str)
def test_a_pack_has_the_loss_and_gradients_of_its_rows(
    weights: dict[str, float], scale: Scale
) -> None:
    rows, model = make_rows(scale), make_model(KIND).double()
    objective = AnswerLoss(0, rows=2, summed=make_loss(scale, rows, weights))
    (packed,) = StepCollator(0, 4096).packs(rows)
    layouts: list[list[Batch]] = [[packed], [pack([row], 0) for row in rows]]
    layouts.append(objective.plain(packed))
    losses, slopes = [], []
    for batches in layouts:
        total = sum(objective.loss(model, batch) for batch in batches)
        total.backward()  # type: ignore[union-attr]
        losses.append(float(total.detach()))  # type: ignore[union-attr]
        slopes.append(gradients(model))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-10)
    for other in slopes[1:]:
        for name, gradient in slopes[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("weights", [{"ce": 1.0}, {"ce": 1.0, "soft": 0.0, "raft": 0.0}], ids=str)
def test_without_weight_the_loss_is_the_cross_entropy_to_the_bit(weights: dict[str, float]) -> None:
    scale = Scale.from_name("0-10")
    rows, model = make_rows(scale), make_model("Llama")
    packed, found = pack(rows, 0), []
    for loss in (summed_loss, make_loss(scale, rows, weights)):
        total = loss(model, packed)
        total.backward()
        found.append((total.detach(), gradients(model)))
    (plain, expected), (other, slopes) = found
    assert torch.equal(plain, other)
    assert all(torch.equal(slopes[name], gradient) for name, gradient in expected.items())


def test_the_form_of_an_answer_is_learned_without_its_cross_entropy() -> None:
    scale = Scale.from_name("0-9")
    rows, model = make_rows(scale), make_model(KIND).double()
    shares = {tuple(row["input_ids"]): [0.1] * 10 for row in rows}
    loss = VerdictLoss(VerdictTrie.build(lines_of(scale)), scale, {"soft": 1.0}, 0, shares)
    with torch.no_grad():
        expected = float(plain_loss(model, rows))
        for row in rows:
            ids, digit = torch.tensor([row["input_ids"]]), row["prompt_length"] + 1
            chances = model(input_ids=ids).logits[0, digit - 1, 20:30].log_softmax(dim=0)
            expected += float(chances[ids[0, digit] - 20] - chances.mean())
        assert float(loss(model, pack(rows, 0))) == pytest.approx(expected, rel=1e-6)


def judged(label: str | int, *votes: str | int) -> JudgeExample:
    pair = {"candidates": ["x", "y"]} if isinstance(label, str) else {"candidate": "x"}
    raters = [{"rater": str(i), "verdict": vote} for i, vote in enumerate(votes)]
    row = {"id": "r", "source": "s", "label": {"verdict": label}, "annotators": raters, **pair}
    return JudgeExample.model_validate(row)


def test_shares_are_the_raters_votes_with_the_labels_of_all_rows_as_one_more() -> None:
    scale = Scale.from_name("pairwise")
    rows = [judged("A", "A", "A", "tie"), judged("B", "B", "B", "B")]
    shares = raters_shares(rows, scale)
    assert shares == [[2.5 / 4, 0.5 / 4, 1 / 4], [0.5 / 4, 3.5 / 4, 0]]
    in_order = in_both_orders(rows, shares, scale)
    assert in_order[1] == [0.5 / 4, 2.5 / 4, 1 / 4]
    assert in_order[0::2] == shares
    fine = Scale.from_name("0-100").with_grid("0-9")
    assert raters_shares([judged(55, 50, 59, 97)], fine) == [[0, 0, 0, 0, 0, 0.75, 0, 0, 0, 0.25]]


@pytest.mark.parametrize(
    ("weights", "scale", "says"),
    [
        ({"kl": 1.0}, "0-10", "objective kl: choose of ce, soft, rps, raft"),
        ({"ce": 1.0, "rps": 1.0}, "pairwise", "objective rps needs numbers"),
        ({"raft": 1.0}, "pass_fail", "objective raft needs numbers"),
    ],
)
def test_objective_without_what_it_needs_is_refused(
    weights: dict[str, float], scale: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        VerdictLoss(VerdictTrie.build([[1], [2], [3]]), Scale.from_name(scale), weights, 0)
    with pytest.raises(UserError, match="needs the verdicts of its annotators"):
        raters_shares([judged(3)], Scale.from_name("0-10"))
