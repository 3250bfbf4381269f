"""Text as token shards, and the batches that trainings take of them."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pt_app.core.errors import UserError
from pt_app.models.new_tokenizer import END_OF_TEXT, train_tokenizer
from pt_app.pretrain.batches import TokenSteps, in_order
from pt_app.pretrain.shards import (
    Tokens,
    at_end,
    by_hash,
    lengths_of,
    open_shards,
    read_manifest,
    tokenizer_hash,
    write_shards,
)

WORDS = [
    "the",
    "a",
    "river",
    "boat",
    "über",
    "São",
    "naïve",
    "😀",
    "judge",
    "<|im_end|>",
    "<|endoftext|>",
    "\n\n",
    "runs",
    ".",
]


def documents(count: int, seed: int = 0) -> list[str]:
    """Draw texts of several scripts, in which markers of the chat template occur."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(documents(50), 300)


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    write_shards(by_hash(documents(400), 8), tokenizer, tmp_path / "tokens", shard_tokens=500)
    return tmp_path / "tokens"


def test_shards_give_back_the_text_of_each_split(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    shards = open_shards(folder, tokenizer)
    for split in ("train", "val"):
        kept = [text for place, text in by_hash(documents(400), 8) if place == split]
        facts = getattr(shards.manifest, split)
        assert shards.text(split).decode() == "".join(kept)
        assert facts.documents == len(kept) > 20
        assert facts.bytes == sum(len(text.encode()) for text in kept)


def test_the_bytes_of_the_tokens_are_those_of_the_text(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Letters of two to four bytes are cut into tokens that are no text by themselves."""
    shards = open_shards(folder, tokenizer)
    tokens = shards.train.read(0, len(shards.train))
    assert lengths_of(shards.pieces)[tokens].sum() == shards.manifest.train.bytes
    special = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    assert lengths_of(shards.pieces)[special] == 0
    assert (tokens == special).sum() == shards.manifest.train.documents


def test_a_vocabulary_above_16_bits_gets_wider_tokens(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    wide = train_tokenizer(documents(50), 300)
    wide.add_tokens([f"<extra {i}>" for i in range(1 << 16)])
    manifest = write_shards(at_end("a b " * 50), wide, tmp_path / "tokens")
    assert manifest.dtype == "uint32"
    assert open_shards(tmp_path / "tokens", wide).text("train") == b"a b " * 45


def test_tokens_read_across_shards_as_one_array(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokens = open_shards(folder, tokenizer).train
    assert len(tokens.arrays) > 3
    whole = np.concatenate(tokens.arrays)
    for start, stop in ((0, len(whole)), (400, 1100), (tokens.ends[0], tokens.ends[0] + 1)):
        assert np.array_equal(tokens.read(start, stop), whole[start:stop])


def test_the_validation_split_does_not_depend_on_how_much_text_follows() -> None:
    text = documents(3000)
    few, all_of_it = (list(by_hash(text[:n], 8, max_bytes=3000)) for n in (1000, 3000))
    assert all_of_it[:1000] == few
    held_out = [document for split, document in few if split == "val"]
    assert 3000 <= sum(len(document.encode()) for document in held_out) < 3500
    assert [document for split, document in all_of_it if split == "val"] == held_out
    assert not {d for split, d in all_of_it if split == "train"} & set(held_out)


def test_the_end_of_a_text_is_its_validation() -> None:
    (first, train), (second, val) = at_end("0123456789" * 10)
    assert (first, second) == ("train", "val")
    assert train + val == "0123456789" * 10
    assert len(val) == 10


def test_a_split_without_documents_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"split val.*--split end"):
        write_shards([("train", "text")], tokenizer, tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_changed_or_is_missing_is_refused(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    shard = folder / "train-00001.bin"
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00001.bin is not the shard"):
        open_shards(folder, tokenizer)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001.bin is missing"):
        open_shards(folder, tokenizer)


def test_tokens_of_another_tokenizer_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="another tokenizer"):
        open_shards(folder, train_tokenizer(documents(50), 290))


def test_a_saved_tokenizer_has_the_hash_of_the_trained_one(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer(["short", "and a longer one"], padding=True, truncation=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "qwen3"}')
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert open_shards(folder, again).text("val") == open_shards(folder, tokenizer).text("val")


def test_a_broken_manifest_is_one_line(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": 3}))
    with pytest.raises(UserError, match=r"manifest\.json, field tokenizer: "):
        read_manifest(folder)


def steps_of(count: int, batch: int, sequence: int, total: int, micro: int) -> TokenSteps:
    """Make steps over the numbers from 0 on, so that a window shows where it began."""
    return TokenSteps(Tokens([np.arange(count)]), batch, sequence, total, 3, micro)


def rows_of(steps: TokenSteps, number: int, ranks: int = 1) -> list[list[int]]:
    """List the windows of a step in the order of the ranks that compute them."""
    parts = [steps.step(number, rank, ranks) for rank in range(ranks)]
    for part in parts:
        assert part["count"] == sum(pack["labels"].numel() for pack in part["packs"])
        for pack in part["packs"]:
            assert len(pack["input_ids"]) <= steps.micro_batch
            assert torch.equal(pack["labels"], pack["input_ids"] + 1)
    return [row.tolist() for part in parts for pack in part["packs"] for row in pack["input_ids"]]


@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 7), st.integers(1, 12), st.integers(0, 30)
)
def test_a_step_holds_the_same_windows_on_any_number_of_processes(
    sequence: int, size: int, micro: int, ranks: int, number: int
) -> None:
    one = rows_of(steps_of(101, size * sequence, sequence, 40, 100), number)
    several = rows_of(steps_of(101, size * sequence, sequence, 40, micro), number, ranks)
    assert several == one
    assert all(len(row) == sequence for row in one)
    assert len(one) == size


@pytest.mark.parametrize("turn", range(4))
def test_a_pass_takes_every_window_once_and_moves_them(turn: int) -> None:
    steps = steps_of(103, 10, 10, 100, 1)
    rows = [row for number in range(turn * 9, turn * 9 + 9) for row in rows_of(steps, number)]
    (most,) = Counter(token for row in rows for token in row).most_common(1)
    assert steps.windows == 9
    assert most[1] == 1
    assert sum(map(len, rows)) == 90


def test_passes_have_orders_of_their_own() -> None:
    steps = steps_of(1003, 10, 10, 1000, 1)
    first, second = ([rows_of(steps, t * 99 + i)[0][0] for i in range(99)] for t in (0, 1))
    assert first != sorted(first)
    assert [start // 10 for start in first] != [start // 10 for start in second]


def test_an_epoch_resumes_at_any_step() -> None:
    steps = steps_of(200, 16, 8, 12, 2)
    whole = [step["packs"][0]["input_ids"] for step in steps.epoch(0, 0)]
    rest = [step["packs"][0]["input_ids"] for step in steps.epoch(0, 5)]
    assert len(whole) == len(steps) == 12
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_a_batch_that_does_not_divide_and_a_text_too_short_are_refused() -> None:
    with pytest.raises(UserError, match="choose 24"):
        steps_of(100, 20, 8, 1, 1)
    with pytest.raises(UserError, match="15 tokens, fewer than two sequences of 8"):
        steps_of(15, 8, 8, 1, 1)


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 4))
def test_a_validation_predicts_every_token_but_the_first_once(
    count: int, sequence: int, rows: int
) -> None:
    batches = list(in_order(Tokens([np.arange(count)]), sequence, rows))
    labels = [label for batch in batches for label in batch["labels"].flatten().tolist()]
    assert labels == list(range(1, count))
    assert all(batch["input_ids"].shape[0] <= rows for batch in batches)
