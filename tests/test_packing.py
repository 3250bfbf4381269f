"""Packs: what begins alike stands once, and loss and gradients are those of the rows alone."""

import itertools
import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from pt_app.models.adapters import attach_lora
from pt_app.models.gated_mlp import keep_less
from pt_app.models.packing import Shapes, StepCollator, Tree, chunk_by_tokens, pack, unpacked
from pt_app.models.tree_attention import (
    BLOCKS,
    blocks_of,
    tree_mask,
    use_attention,
    why_no_tree,
)
from pt_app.training.loss import AnswerLoss, summed_loss
from pt_app.training.ordering import GroupedOrder, shares

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=9)
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
KINDS = {
    "Qwen2": {},
    "Llama": {},
    "Gemma": {},
    "Mistral": {"sliding_window": 120},
    "Gemma3": {
        "sliding_window": 120,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "GptOss": {
        "sliding_window": 120,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
GATED_BY_SILU = {"Qwen2", "Llama", "Mistral"}
ONLY = {"GptOss": "eager"}  # SDPA has no attention sinks
ATTENTIONS = ("sdpa", BLOCKS, "eager")


def make_model(kind: str, attention: str = "sdpa", **changed: Any) -> Any:
    """A small random model with a LoRA whose B is not zero."""
    torch.manual_seed(0)
    settings = SMALL | KINDS.get(kind, {}) | changed
    config = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))(**settings)
    config._attn_implementation = "eager" if "eager" in (attention, ONLY.get(kind)) else "sdpa"
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model = attach_lora(model, r=4, alpha=8, dropout=0.0, targets="q_proj,v_proj,down_proj")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    use_attention(model, attention)
    return model


def make_rows(sources: int, variants: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one rubric, several sources and several candidates of each."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(5, 300) for _ in range(rng.randint(low, high))]

    rubric, rows = some(20, 20), []
    for source in (some(5, 30) for _ in range(sources)):
        for candidate in (some(3, 40) for _ in range(variants)):
            prompt, answer = rubric + source + candidate, some(2, 9)
            rows.append({"input_ids": prompt + answer, "prompt_length": len(prompt)})
    return rows


def gradients(model: Any) -> dict[str, torch.Tensor]:
    taken = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def plain_loss(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """The loss of each row alone, all logits computed, and nothing of this project's."""
    total = torch.zeros(())
    for row in rows:
        ids, start = torch.tensor([row["input_ids"]]), row["prompt_length"]
        logits = model(input_ids=ids).logits[0].float()
        total = total + cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="sum")
    return total


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, each) for kind in sorted(KINDS) for each in ATTENTIONS if ONLY.get(kind, each) == each],
)
def test_loss_and_gradients_of_a_pack_are_those_of_its_rows(kind: str, attention: str) -> None:
    rows = make_rows(4, 4)
    model = make_model(kind, attention)
    assert keep_less(model) == (2 if kind in GATED_BY_SILU else 0)
    assert why_no_tree(model, 100) is None
    packed = pack(rows, 0)
    assert packed["input_ids"].numel() < 0.6 * sum(len(row["input_ids"]) for row in rows)
    loss = summed_loss(model, packed)
    loss.backward()
    mine = gradients(model)
    plain = plain_loss(make_model(kind), rows)
    reference = make_model(kind)
    plain_loss(reference, rows).backward()
    theirs = gradients(reference)
    count = len(packed["targets"])
    assert loss.item() / count == pytest.approx(plain.item() / count, abs=1e-5)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (mine[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize(
    ("kind", "changed", "why"),
    [
        ("Gemma2", {}, "it caps its attention scores"),
        ("Gemma3", {"sliding_window": 64}, "window has 64 tokens, and rows have up to 100"),
        ("Mistral", {"sliding_window": 64}, "window has 64 tokens, and rows have up to 100"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, "9"),
    ],
)
def test_model_whose_attention_forbids_the_tree_is_told(
    kind: str, changed: dict[str, Any], why: str
) -> None:
    config = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))(**(SMALL | changed))
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert why in (why_no_tree(model, 100) or "")


def test_recurrent_model_is_told() -> None:
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1)
    )
    assert why_no_tree(model, 100)


@given(SEQUENCES)
def test_paths_of_a_tree_spell_its_sequences_and_no_prefix_stands_twice(
    sequences: list[list[int]],
) -> None:
    tree = Tree.of(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tree.ids[token] for token in path] == sequence
        assert [tree.depths[token] for token in path] == list(range(len(path)))
    prefixes = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    assert len(tree.ids) == len(prefixes)


@given(SEQUENCES, st.integers(0, 8))
def test_a_token_sees_its_own_path_and_blocks_say_the_same(
    sequences: list[list[int]], known: int
) -> None:
    tree = Tree.of(sequences)
    paths = {path[n]: set(path[: n + 1]) for path in tree.paths for n in range(len(path))}
    known = min(known, len(tree.ids) - 1)
    last = torch.tensor(tree.last)
    mask = tree_mask(last, known)[0, 0]
    for query, seen in enumerate(mask, start=known):
        assert set(seen.nonzero().flatten().tolist()) == paths[query]
    asked = []
    for block in blocks_of(last, known):
        rows, masked = block.mask.shape
        masks = torch.cat([torch.zeros(rows, len(block.keys) - masked), block.mask], dim=1)
        for query, added in zip(range(block.start, block.stop), masks, strict=True):
            asked.append(query)
            assert set(block.keys[added == 0].tolist()) == paths[query]
    assert asked == list(range(known, len(tree.ids)))


def test_long_trees_are_cut_into_several_blocks() -> None:
    tree = Tree.of([row["input_ids"] for row in make_rows(30, 4)])
    blocks = blocks_of(torch.tensor(tree.last))
    assert len(blocks) > 10
    scores = sum((block.stop - block.start) * len(block.keys) for block in blocks)
    assert sum(block.mask.numel() for block in blocks) < scores < 0.2 * len(tree.ids) ** 2


@given(SEQUENCES, st.integers(1, 40))
def test_packs_hold_every_row_once_within_the_budget(
    sequences: list[list[int]], budget: int
) -> None:
    parts = list(chunk_by_tokens(sequences, budget))
    assert sorted(i for part in parts for i in part) == list(range(len(sequences)))
    for part in parts:
        size = len(Tree.of([sequences[i] for i in part]).ids)
        assert size <= budget or len(part) == 1


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_unpacking_gives_the_rows_back(seed: int, at_once: int) -> None:
    rows = make_rows(2, 2, seed)
    found = []
    for shapes in (Shapes(), Shapes.up_to(400)):
        found = []
        for batch in unpacked(pack(rows, 0, shapes), 0, at_once, shapes):
            assert len(batch["input_ids"]) <= at_once
            columns, targets = batch["keep"], batch["targets"]
            for ids, mask, labels in zip(
                batch["input_ids"], batch["attention_mask"], targets, strict=True
            ):
                real = int(mask.sum())
                supervised = columns[labels >= 0]
                assert torch.equal(ids[supervised + 1], labels[labels >= 0])
                found.append((ids[:real].tolist(), int(supervised.min()) + 1))
        assert sorted(found) == sorted((row["input_ids"], row["prompt_length"]) for row in rows)


def test_equal_rows_cost_nothing_but_their_answers() -> None:
    (row,) = make_rows(1, 1)
    model = make_model("Qwen2")
    once, twice = pack([row], 0), pack([row, row], 0)
    assert once["input_ids"].shape == twice["input_ids"].shape
    assert summed_loss(model, twice).item() == pytest.approx(2 * summed_loss(model, once).item())


def test_at_most_eight_shapes_whatever_the_rows() -> None:
    shapes = Shapes.up_to(512)
    collate = StepCollator(0, 512, shapes)
    seen = set()
    for seed in range(100):
        step = collate(make_rows(seed % 5 + 1, 3, seed))
        for packed in step["packs"]:
            seen.add((packed["input_ids"].shape[1], len(packed["keep"])))
            for batch in unpacked(packed, 0, 1, shapes):
                seen.add((batch["input_ids"].shape[1], len(batch["keep"])))
    assert 2 <= len(seen) <= 8


GROUPS = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(GROUPS, st.integers(1, 8), st.integers(0, 3))
def test_grouped_order_has_every_row_once_and_differs_by_epoch(
    groups: list[int], size: int, epoch: int
) -> None:
    order = GroupedOrder(groups, size, seed=1)
    order.set_epoch(epoch)
    assert sorted(order) == list(range(len(groups)))
    assert list(order) == list(order)


def test_grouped_order_keeps_variants_in_one_step() -> None:
    groups = [row // 4 for row in range(400)]
    order = GroupedOrder(groups, 8, seed=0)
    first = list(order)
    steps = [first[i : i + 8] for i in range(0, 400, 8)]
    assert all(len({groups[row] for row in step}) == 2 for step in steps)
    order.set_epoch(1)
    assert list(order) != first


def test_gated_mlp_that_keeps_less_gives_the_same_gradients_to_the_bit() -> None:
    rows = make_rows(2, 2)
    plain, lean = make_model("Llama"), make_model("Llama")
    assert keep_less(lean) == 2
    kept: list[list[int]] = []
    for model in (plain, lean):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t,  # type: ignore[misc]
            lambda t: t,
        ):
            summed_loss(model, pack(rows, 0)).backward()
        kept.append(sizes)
    one, other = gradients(plain), gradients(lean)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sum(kept[1]) < sum(kept[0])


def test_several_ranks_take_the_steps_of_one_together() -> None:
    rng = random.Random(0)
    groups = [rng.choice("abcdefgh") for _ in range(61)]
    steps = [sorted(step) for step in shares(GroupedOrder(groups, 8, seed=1), 8)]
    for ranks in (2, 3):
        orders = [GroupedOrder(groups, 8, seed=1) for _ in range(ranks)]
        parts = [shares(order, 8, r, ranks) for r, order in enumerate(orders)]
        assert [sorted(itertools.chain(*step)) for step in zip(*parts, strict=True)] == steps
        assert max(len(a) - len(b) for a, b in zip(parts[-1], parts[0], strict=True)) <= 1


def test_packs_follow_the_budget_that_memory_left() -> None:
    examples = [{"input_ids": [i, *range(5, 60)], "prompt_length": 50} for i in range(6)]
    packs = StepCollator(0, 1000).packs(examples)
    assert [len(p["starts"]) for p in AnswerLoss(0).fitting(packs)] == [6]
    assert [len(p["starts"]) for p in AnswerLoss(0, budget=100).fitting(packs)] == [1] * 6
