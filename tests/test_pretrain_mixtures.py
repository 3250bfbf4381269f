"""Where conversations come from: files with what is wrong in them, and the built-in mixtures."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pt_app.core.errors import UserError
from pt_app.models import known_bases
from pt_app.pretrain import mixtures
from pt_app.tiny_base.corpus import Corpus

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b\n"}]
SYSTEM = {"role": "system", "content": "s"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_holds_lists_of_messages_or_objects_with_one(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", TURNS, {"messages": [SYSTEM, *TURNS * 2]})
    one, other = mixtures.read(f" {path} ,", seed=1)
    assert [turn["content"] for turn in one] == ["a", "b"]
    assert [turn["role"] for turn in other] == ["system", *["user", "assistant"] * 2]


def test_a_separator_of_lines_within_a_message_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    said = json.dumps([TURNS[0] | {"content": "a\u2028b"}, TURNS[1]], ensure_ascii=False)
    path.write_text(f"{said}\n", encoding="utf-8")
    assert mixtures.of_file(path)[0][0]["content"] == "a\u2028b"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "a"}, "not a list of messages"),
        (["a"], "not a list of messages"),
        ([], "the roles are not user and assistant in turn"),
        (TURNS[:1], "the roles are not"),
        (TURNS[::-1], "the roles are not"),
        ([*TURNS, TURNS[1]], "the roles are not"),
        ([*TURNS, SYSTEM, *TURNS], "the roles are not"),
        ([TURNS[0], {"role": "assistant", "content": " "}], "the assistant's content is no text"),
        ([{"role": "user", "content": 3}, TURNS[1]], "the user's content is no text"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(row: object, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", TURNS, row)
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2: {problem}")):
        mixtures.read(str(path), seed=1)


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=6))
def test_only_user_and_assistant_in_turn_are_a_conversation(roles: list[str]) -> None:
    turns = [{"role": role, "content": "x"} for role in roles]
    rest = "".join(role[0] for role in roles)
    assert (mixtures.fault(turns) == "") == bool(re.fullmatch(r"s?(ua)+", rest))


def test_an_unknown_mixture_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="talk is neither a mixture"):
        mixtures.read("chat,talk", seed=1)
    with pytest.raises(UserError, match="holds no conversation"):
        mixtures.read(str(write(tmp_path / "empty.jsonl")), seed=1)


def test_the_built_in_mixtures_are_conversations_and_follow_the_seed() -> None:
    said = mixtures.read("chat,judge", seed=4)
    assert len(said) > 5000
    assert not [problem for turns in said if (problem := mixtures.fault(turns))]
    assert said == mixtures.read("chat,judge", seed=4) != mixtures.read("chat,judge", seed=5)
    assert mixtures.digest(said) != mixtures.digest(mixtures.read("chat,judge", seed=5))
    assert max(map(len, said)) > 3  # several exchanges


def test_spelling_answers_what_is_asked() -> None:
    rng = random.Random(2)
    seen = set()
    for _ in range(300):
        asked, answer = mixtures._spelling(rng)
        letters, _, said = answer.partition(": ")
        word = letters.replace("-", "")
        assert re.search(rf"\b{word}\b", asked)
        if "letter" in said:
            assert int(said.split()[0]) == len(word)
        elif said:
            letter = re.search(r"\b(?:letter|a) (\w)\b", asked)
            assert letter
            assert int(said.split()[0]) == word.count(letter[1])
        seen.add(said[:1])
    assert {"", "0", "1", "2"} <= seen


def test_a_document_is_the_conversation_that_its_text_shows() -> None:
    document = Corpus.of_grammar("small").sample(random.Random(1))
    text = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in document.messages
    )
    assert text == document.prompt + document.answer


def test_the_same_question_is_on_one_side_of_the_split() -> None:
    said = mixtures.read("chat", seed=1)
    training, validation = mixtures.split(said)
    assert len(training) + len(validation) == len(said)
    assert 0.01 < len(validation) / len(said) < 0.06
    asked = [{turns[0]["content"] for turns in side} for side in (training, validation)]
    assert not asked[0] & asked[1]


def test_so_few_conversations_that_none_is_for_validation_are_refused(tmp_path: Path) -> None:
    few = mixtures.read(str(write(tmp_path / "own.jsonl", TURNS)), seed=1)
    for said in (few, []):
        with pytest.raises(UserError, match=f"{len(said)} conversations leave none .*: add more"):
            mixtures.split(said)


def test_small_talk_is_read_from_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    source = mixtures.TEXTS["smalltalk"]
    wheel = tmp_path / "wheel.whl"
    content = "conversations:\n- - ' ask '\n  - answer\n  - another\n"
    with zipfile.ZipFile(wheel, "w") as file:
        for language in ("english", "portuguese"):
            for name in source[language]:
                file.writestr(f"{source['wheel']['member']}{language}/{name}.yml", content)
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(mixtures, "cached", lambda *_: wheel)
    said = mixtures.read("smalltalk", seed=1)
    assert len(said) == len(source["english"]) + len(source["portuguese"])
    assert [turn["content"] for turn in said[0]] == ["ask", "answer"]


@pytest.mark.slow
def test_small_talk_is_fetched_from_the_package_index() -> None:
    try:
        said = mixtures.read("smalltalk", seed=1)
    except UserError as error:
        pytest.skip(f"the package index does not give it: {error}")
    assert known_bases.Wheel(**mixtures.TEXTS["smalltalk"]["wheel"]).package.startswith("chatter")
    assert len(said) > 1500
    assert not [problem for turns in said if (problem := mixtures.fault(turns))]


@pytest.mark.slow
def test_choices_are_questions_of_no_test_set() -> None:
    try:
        bundle = mixtures.Bundle()
    except UserError as error:
        pytest.skip(f"the package index does not give it: {error}")
    said = mixtures.read("choices", seed=1)
    assert 2500 < len(said) < 1531 + 285 + 570 + 299
    texts = "\0".join(turns[0]["content"] for turns in said)
    tested = [q.text for task in mixtures.TEXTS["choices"] for q in bundle.questions(task)]
    assert not [text for text in tested if f"\0{text}\nA. " in texts]
    assert {turns[1]["content"] for turns in said} <= set("ABCDE")
