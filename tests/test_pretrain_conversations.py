"""Conversations as training rows: what is a target, what shares a row, what does not fit."""

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from pt_app.core.errors import UserError
from pt_app.models.packing import IGNORED
from pt_app.pretrain.conversations import (
    Conversation,
    ConversationSteps,
    best_fit,
    encode,
    pieces_of,
)
from pt_app.pretrain.loss import NextTokens
from tests.tiny_models import KINDS, make_model, make_tokenizer

texts = st.text(alphabet="abc é<|>\n", min_size=1, max_size=40).filter(str.strip).map(str.strip)
exchanges = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)
conversations = st.lists(exchanges, min_size=1, max_size=12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def talk(*exchanges: tuple[str, str]) -> Conversation:
    roles = ("user", "assistant")
    return [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(roles, exchange, strict=True)
    ]


def gpt2(vocabulary: int) -> Any:
    """A random GPT-2, whose positions are learned."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, initializer_range=0.3, **shape)).eval()


def targets(batch: dict[str, torch.Tensor]) -> list[int]:
    return batch["labels"][batch["labels"] != IGNORED].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_targets_are_the_answers_with_their_ends(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, kind)
    said = talk(("Good day", "Olá, é bom."), ("x <|im_end|> y", "[INST]</s> 7"))
    turns = encode(tokenizer, said)
    runs, before = [], False
    for id_, supervised in zip(turns.ids, turns.supervised, strict=True):
        if supervised:
            runs += [] if before else [[]]
            runs[-1].append(id_)
        before = supervised
    assert [run[-1] for run in runs] == [tokenizer.eos_token_id] * 2
    answers = [tokenizer.decode(run[:-1]).strip() for run in runs]
    assert answers == ["Olá, é bom.", "[INST]</s> 7"]
    assert all(tokenizer.eos_token_id not in run[:-1] for run in runs)


@settings(max_examples=60)
@given(
    drawn=conversations,
    sequence=st.sampled_from([64, 65, 100, 256, 2048]),
    rows=st.integers(1, 8),
    micro_batch=st.integers(1, 8),
    ranks=st.integers(1, 3),
)
def test_no_batch_lacks_a_target_and_every_target_is_taken_once(
    tokenizer: Any,
    drawn: list[list[tuple[str, str]]],
    sequence: int,
    rows: int,
    micro_batch: int,
    ranks: int,
) -> None:
    said = [talk(*exchanges) for exchanges in drawn]
    pieces = list(pieces_of(tokenizer, said, sequence))
    options = {"batch_tokens": rows * sequence, "sequence": sequence, "micro_batch": micro_batch}
    if not pieces:
        with pytest.raises(UserError, match="conversations fits --max_seq_len"):
            ConversationSteps.of(tokenizer, said, seed=1, **options)
        return
    steps = ConversationSteps.of(tokenizer, said, seed=1, **options)
    taken: Counter[int] = Counter()
    for rank in range(ranks):
        with mock.patch.dict(os.environ, {"RANK": str(rank), "WORLD_SIZE": str(ranks)}):
            own = list(steps.epoch(0, 0))
        assert len(own) == len(steps)
        for step in own:
            assert sum(len(pack["input_ids"]) for pack in step["packs"]) <= rows
            assert int(step["count"]) == sum(len(targets(pack)) for pack in step["packs"])
            for pack in step["packs"]:
                assert pack["input_ids"].shape[0] <= micro_batch
                assert pack["input_ids"].shape[1] <= sequence
                assert targets(pack)
                taken.update(targets(pack))
    expected = [id_ for p in pieces for id_ in p.labels.tolist() if id_ != IGNORED]
    assert taken == Counter(expected)


@given(st.lists(st.integers(1, 50), max_size=80))
def test_rows_hold_every_length_once_and_never_too_much(lengths: list[int]) -> None:
    rows = best_fit(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(total <= 50 for total in sums)
    # No two rows could be one, so that there are at most twice as many as there must be.
    assert len(rows) < 2 or sum(sorted(sums)[:2]) > 50


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
def test_a_row_computes_what_its_conversations_compute_alone(kind: str, tokenizer: Any) -> None:
    said = [talk(("one", "ab" * n), ("two", "c" * n)) for n in (3, 1, 4, 2)]
    steps = ConversationSteps.of(
        tokenizer, said, batch_tokens=600, sequence=300, micro_batch=2, seed=0
    )
    assert len(steps.rows) < len(said)
    model = make_model(tokenizer) if kind == "qwen" else gpt2(len(tokenizer))
    (step,) = steps.epoch(0, 0)
    alone = [
        {"input_ids": p.ids[None].long(), "labels": p.labels[None].long()} for p in steps.pieces
    ]
    with torch.no_grad():
        packed, apart = (
            sum(float(NextTokens().loss(model, batch)) for batch in batches)
            for batches in (step["packs"], alone)
        )
    assert packed == pytest.approx(apart, rel=1e-5)


def test_a_long_conversation_is_cut_after_an_answer_and_counted(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short = encode(tokenizer, talk(("a", "b")))
    said = [talk(("a", "b"), ("c", "d " * 90)), talk(("a " * 90, "b")), talk(("a", "b"))]
    with caplog.at_level(logging.WARNING):
        pieces = list(pieces_of(tokenizer, said, 64))
    assert [piece.ids.tolist() for piece in pieces] == [short.ids[:-1]] * 2
    assert "of 3 conversations 1 were cut after an answer, and 1 left out" in caplog.text
    with pytest.raises(UserError, match="none of 1 conversations fits --max_seq_len 64"):
        ConversationSteps.of(
            tokenizer, said[1:2], batch_tokens=64, sequence=64, micro_batch=1, seed=0
        )


def test_a_resumed_epoch_continues_with_the_same_steps(tokenizer: Any) -> None:
    said = [talk(("a", "b" * n)) for n in range(1, 20)]
    options: dict[str, Any] = {"batch_tokens": 256, "sequence": 64, "micro_batch": 2, "seed": 3}
    steps = ConversationSteps.of(tokenizer, said, **options)
    whole, rest = list(steps.epoch(1, 0)), list(steps.epoch(1, 1))
    assert len(whole) == len(steps) > 1
    for one, other in zip(whole[1:], rest, strict=True):
        for left, right in zip(one["packs"], other["packs"], strict=True):
            assert torch.equal(left["input_ids"], right["input_ids"])
    other = next(iter(steps.epoch(2, 0)))["packs"][0]["input_ids"]
    assert not torch.equal(whole[0]["packs"][0]["input_ids"], other)


def test_a_template_that_changes_earlier_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] if loop.last else 'x' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match="does not continue a prompt"):
        encode(tokenizer, talk(("a", "b"), ("c", "d")))
