"""Sampling piece by piece: the KV cache, draws, ends, the context, and the terminal."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.models.bases import load_tokenizer, shipped
from pt_app.pretrain import chat as chatting
from pt_app.pretrain.chat import Chat, Reply, TooLongError, draw, newest_stage, talk, text_pieces
from pt_app.pretrain.settings import Sampling, ServeSettings, TalkSettings, parsed
from tests.conftest import ROOT
from tests.tiny_models import make_model, make_tokenizer

GREEDY = Sampling(temperature=0, max_tokens=24)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def chat(tokenizer: Any) -> Chat:
    return Chat(make_model(tokenizer, max_position_embeddings=256), tokenizer, "small")


def generated(chat: Chat, ids: list[int], tokens: int) -> list[int]:
    """What stock `generate` continues a prompt with, greedily and without the end token."""
    whole = chat.model.generate(
        torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, use_cache=False
    )
    return [token for token in whole[0, len(ids) :].tolist() if token not in chat.ends]


def test_an_answer_is_what_generate_gives_whatever_the_cache_holds(chat: Chat) -> None:
    said: list[dict[str, str]] = []
    for text in ("Source: a casa", "and now?", "Score", "a"):
        ids, _ = chat.fitted([*said, user(text)])
        reply = Reply(chat, ids, GREEDY)
        answer = "".join(reply)
        expected = generated(chat, ids, 24)
        assert answer == chat.tokenizer.decode(expected)
        assert reply.reason == ("length" if len(expected) == 24 else "stop")
        said += [user(text), assistant(answer)]
    other, _ = chat.fitted([user("another conversation")])  # the cache goes back
    assert "".join(Reply(chat, other, GREEDY)) == chat.tokenizer.decode(generated(chat, other, 24))


def test_what_was_read_is_not_read_again(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    forward = chat._forward
    monkeypatch.setattr(chat, "_forward", lambda ids: (read.append(len(ids)), forward(ids))[1])
    first, _ = chat.fitted([user("one")])
    answer = "".join(Reply(chat, first, GREEDY))
    second, _ = chat.fitted([user("one"), assistant(answer), user("two")])
    read.clear()
    next(iter(Reply(chat, second, GREEDY)))
    assert read[0] < len(second) - len(first)


def test_a_failure_leaves_no_half_read_cache(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, _ = chat.fitted([user("one two three")])
    expected = "".join(Reply(chat, ids, GREEDY))
    layer = chat.model.model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            "".join(Reply(chat, [*ids, 300], GREEDY))
    assert "".join(Reply(chat, ids, GREEDY)) == expected


def test_a_cache_that_cannot_go_back_is_filled_again(tokenizer: Any) -> None:
    windows: dict[str, Any] = {
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * 2,
    }
    chat = Chat(make_model(tokenizer, **windows), tokenizer, "window")
    for text in ("one", "two " * 8, "one"):
        ids, _ = chat.fitted([user(text)])
        expected = chat.tokenizer.decode(generated(chat, ids, 24))
        assert "".join(Reply(chat, ids, GREEDY)) == expected


def test_an_answer_ends_where_the_context_does(chat: Chat) -> None:
    chat.ends = set()  # this model never ends
    ids, _ = chat.fitted([user("one")])
    reply = Reply(chat, ids, Sampling(temperature=0))
    "".join(reply)
    assert (len(ids) + reply.tokens, reply.reason) == (256, "length")


def test_the_oldest_exchanges_are_left_out_and_counted(chat: Chat) -> None:
    system = {"role": "system", "content": "Be brief."}
    said = [system, *[turn for n in range(20) for turn in (user(f"q{n}"), assistant("a" * 9))]]
    ids, cut = chat.fitted([*said, user("last")], room=40)
    assert 0 < cut < 20
    assert len(ids) + 40 <= 256
    assert ids == chat.prompt([system, *said[1 + 2 * cut :], user("last")])
    longer = chat.prompt([system, *said[2 * cut - 1 :], user("last")])
    assert len(longer) + 40 > 256
    with pytest.raises(TooLongError, match="tokens of a context of 256"):
        chat.fitted([user("x " * 120)], room=40)
    with pytest.raises(UserError, match="the last message is not the user's"):
        chat.fitted(said)


def test_a_long_conversation_is_not_read_once_per_exchange(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [turn for n in range(1000) for turn in (user(f"q{n}"), assistant("a"))]
    prompt, lengths = chat.prompt, list[int]()
    monkeypatch.setattr(chat, "prompt", lambda m: lengths.append(len(m)) or prompt(m))
    chat.fitted([*said, user("last")])
    assert len(lengths) < 15


@given(st.text(max_size=60), st.lists(st.integers(3, 258), max_size=60))
def test_pieces_are_the_text_of_the_tokens_in_whole_characters(
    tokenizer: Any, text: str, noise: list[int]
) -> None:
    ids = tokenizer(text).input_ids
    pieces = list(text_pieces(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    # What a model writes need not be UTF-8.
    assert "".join(text_pieces(tokenizer, noise)) == tokenizer.decode(noise)


@example(["ca", "c"], ["a", "cac"])
@example(["cac"], ["a", "cac"])
@given(
    st.lists(st.text("abc", max_size=3), max_size=12),
    st.lists(st.text("abc", min_size=1), max_size=3),
)
def test_a_stop_ends_the_answer_wherever_it_falls(pieces: list[str], stops: list[str]) -> None:
    class Written(Reply):
        def _drawn(self) -> Iterator[int]:
            yield from range(len(pieces))
            self.reason = "length"

    whole = "".join(pieces)
    # Where each first ends, and where that begins: of two that overlap the first to end counts.
    ends = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatting, "text_pieces", lambda _, tokens: (pieces[i] for i in tokens))
        reply = Written(_Nothing(), [], GREEDY, stops)
        assert "".join(reply) == whole[: min(ends)[1] if ends else None]
    assert reply.reason == ("stop" if ends else "length")


class _Nothing(Chat):
    tokenizer = None

    def __init__(self) -> None: ...


def test_draws_follow_the_chances_that_are_left() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(1)

    def shares(sampling: Sampling) -> list[float]:
        drawn = torch.tensor([draw(logits, sampling, generator) for _ in range(4000)])
        return (drawn.bincount(minlength=4) / 4000).tolist()

    assert shares(Sampling(temperature=1, top_k=0)) == pytest.approx(
        [0.5, 0.3, 0.15, 0.05], abs=0.03
    )
    assert shares(Sampling(temperature=1, top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(Sampling(temperature=1, top_p=0.75))[2:] == [0, 0]
    halved = [p**2 / 0.365 for p in (0.5, 0.3, 0.15, 0.05)]
    assert shares(Sampling(temperature=0.5, top_k=0)) == pytest.approx(halved, abs=0.03)
    assert draw(logits, GREEDY, generator) == 0


def test_a_seed_repeats_an_answer(chat: Chat) -> None:
    ids, _ = chat.fitted([user("one")])
    one, same, other = (
        "".join(Reply(chat, ids, Sampling(temperature=2, max_tokens=24, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_newest_run_gives_its_last_stage(tmp_path: Path) -> None:
    import os

    for at, name in enumerate(("old/sft", "new/base", "new/mid"), start=1):
        stage = tmp_path / name
        stage.mkdir(parents=True)
        (stage / "complete.json").write_text("{}")
        os.utime(stage / "complete.json", (at, at))
    (tmp_path / "new/sft").mkdir()  # not complete
    assert newest_stage(tmp_path) == tmp_path / "new/mid"
    with pytest.raises(UserError, match="holds no complete stage"):
        newest_stage(tmp_path / "old")


def test_flags_of_the_scripts_are_checked() -> None:
    options = parsed(TalkSettings, ["-p", "why?", "--temperature", "5e-1", "--seed=3"])
    assert (options.p, options.sampling.temperature, options.sampling.seed) == ("why?", 0.5, 3)
    assert parsed(ServeSettings, []).host == "127.0.0.1"
    for words, problem in (
        (["--top_p", "0"], "must be a number above 0"),
        (["--port", "70000"], "at most 65535"),
        (["--device", "tpu"], "must be one of auto, cuda, mps, cpu"),
        (["--prot", "1"], "unrecognized arguments: --prot"),
    ):
        with pytest.raises(UserError, match=problem):
            parsed(ServeSettings, words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="--device cuda: there is none here"):
        Chat.load("tiny", "cuda")


def test_the_shipped_base_answers_turn_by_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["", "um dois", "/new", "x " * 3000, "três"])

    def typing(_: str) -> str:
        for text in typed:
            return text
        raise EOFError

    monkeypatch.setattr("builtins.input", typing)
    options = TalkSettings(model="tiny", device="cpu", sampling=GREEDY)
    talk(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny, a context of 2048 tokens")
    assert lines[1]
    assert lines[2].startswith("the last message alone takes")
    assert lines[3]


def test_a_prompt_is_answered_and_the_program_ends(capsys: pytest.CaptureFixture[str]) -> None:
    talk(TalkSettings(model="tiny", device="cpu", sampling=GREEDY, p="um dois três"))
    out = capsys.readouterr().out
    assert out.strip()
    tokenizer = load_tokenizer(shipped())
    assert len(tokenizer(out.removesuffix(" (cut)\n")).input_ids) <= 26


def test_ctrl_c_stops_an_answer_and_keeps_what_came(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, left = chat.scores, iter(range(4))

    def interrupted(ids: list[int]) -> torch.Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return scores(ids)

    monkeypatch.setattr(chat, "scores", interrupted)
    chat.ends = set()
    text = chatting._answer(chat, [user("one")], GREEDY)
    out = capsys.readouterr().out
    assert text
    assert out.endswith(" (stopped)\n")


def test_escape_sequences_of_an_answer_do_not_reach_the_terminal(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Reply, "__iter__", lambda _: iter(["\x1b[2J", "ok\n"]))
    assert chatting._answer(chat, [user("one")], GREEDY) == "\x1b[2Jok\n"
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert "ok\n" in out


@pytest.mark.slow
def test_the_script_answers_and_says_what_is_wrong(tmp_path: Path) -> None:
    def ran(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "scripts.chat_cli", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = ran("--model=tiny", "-p", "um dois três", "--temperature=0", "--device=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    for words, problem in (
        (["--model", str(tmp_path)], "error: "),
        (["--temperature", "x"], "error: command line: temperature is 'x', expected float"),
    ):
        done = ran(*words)
        assert done.returncode == 2
        assert re.match(problem, done.stderr)
        assert done.stderr.count("\n") == 1
