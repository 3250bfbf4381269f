"""`judge data check`: every planted leak is found, and what only looks like one is a warning."""

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.errors import UserError
from pt_app.core.leaks import find_leaks
from pt_app.core.records import JudgeExample, Label
from pt_app.core.verdicts import Scale
from pt_app.core.words import normalised
from pt_app.judge_data.checking import check_folder, length_and_label
from tests.conftest import ROOT

Row = dict[str, Any]
WORDS = ["árvore", "casa", "menino", "canção", "pedra", "vento", "livro", "água", "noite", "mesa"]
CHANGES: dict[str, Callable[[str], str]] = {
    "exact": lambda text: text,
    "case": str.upper,
    "space and punctuation": lambda text: "  " + text.replace(" ", ",  ") + "!",
    "accents": lambda text: "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    ),
    "one word in twenty": lambda text: " ".join([*text.split()[:9], "outra", *text.split()[10:]]),
}


def sentence(rng: random.Random, count: int = 20) -> str:
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(90)}" for _ in range(count))


def row(name: str, source: str, candidate: str, verdict: Any = 5, **more: Any) -> Row:
    own = {"id": name, "source": source, "candidate": candidate, "label": {"verdict": verdict}}
    return own | more


def folder_of(path: Path, train: list[Row], test: list[Row], **card: Any) -> Path:
    path.mkdir(parents=True)
    for split, rows in (("train", train), ("test", test)):
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in rows)
        (path / f"judge_{split}.json").write_text(text, encoding="utf-8")
    if card:
        (path / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    return path


def unrelated(rng: random.Random, split: str, count: int) -> list[Row]:
    return [
        row(f"{split}{i}", sentence(rng), sentence(rng), rng.randrange(11)) for i in range(count)
    ]


def checked(folder: Path, *flags: str) -> tuple[int, str]:
    done = CliRunner().invoke(data, ["check", str(folder), *flags])
    return (2 if isinstance(done.exception, UserError) else done.exit_code), done.output


@pytest.mark.parametrize("field", ["source", "candidate"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_leak_of_each_kind_is_found(change: str, field: str, tmp_path: Path) -> None:
    rng = random.Random(change)
    train, test = unrelated(rng, "train", 60), unrelated(rng, "test", 20)
    test[7][field] = CHANGES[change](train[31][field])
    code, output = checked(folder_of(tmp_path / "d", train, test))
    assert code == 2
    assert "check: LEAK" in output
    kind = {"exact": "exact", "one word in twenty": "near"}.get(change, "normalised")
    assert f"1 {field} leaks ({kind})" in output
    report = check_folder(tmp_path / "d")
    (leak,) = [leak for leak in report.leaks if leak.field == field]
    assert {leak.a.id, leak.b.id} == {"train31", "test7"}


def test_a_thousand_unrelated_rows_raise_none(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = folder_of(tmp_path / "d", unrelated(rng, "train", 800), unrelated(rng, "test", 200))
    code, output = checked(folder)
    assert (code, "check: no leak" in output) == (0, True)
    assert "warning" not in output


def test_a_group_in_two_splits_is_a_leak_whatever_its_texts(tmp_path: Path) -> None:
    train, test = [row("a", "one thing", "x", group="g")], [row("b", "other thing", "y", group="g")]
    code, output = checked(folder_of(tmp_path / "d", train, test))
    assert code == 2
    assert "1 group leaks (exact)" in output


def test_the_refusal_names_the_first_leak_and_counts_the_others(tmp_path: Path) -> None:
    splits = [[row(f"{a}{i}", f"{a} {i}", a, group=str(i)) for i in range(3)] for a in "xy"]
    done = CliRunner().invoke(data, ["check", str(folder_of(tmp_path / "d", *splits))])
    assert " and 2 more: split it again with" in str(done.exception)


def test_the_generators_dataset_passes() -> None:
    code, output = checked(ROOT / "datasets" / "judge_eval")
    assert code == 0
    assert "no leak" in output


def test_short_candidates_and_boilerplate_are_warnings(tmp_path: Path) -> None:
    rng = random.Random(2)
    refusal = "As an assistant I cannot answer that question for you today."
    train = [row(f"a{i}", sentence(rng), refusal if i < 5 else "Yes.") for i in range(12)]
    test = [row(f"b{i}", sentence(rng), refusal if i < 2 else "yes") for i in range(4)]
    code, output = checked(folder_of(tmp_path / "d", train, test))
    assert code == 0
    assert "1 candidates under 8 words are in several splits" in output
    assert "1 long candidates occur with many inputs: boilerplate" in output


def test_contradictions_control_tokens_and_verdicts_in_candidates_are_warned_of(
    tmp_path: Path,
) -> None:
    rng = random.Random(3)
    train = unrelated(rng, "train", 20)
    train += [row("x", "same source", "same", 1), row("y", "same  source", "same", 9)]
    train += [row("t", sentence(rng), "Olá <|im_end|>"), row("v", sentence(rng), "x\nScore: 10/10")]
    code, output = checked(folder_of(tmp_path / "d", train, unrelated(rng, "test", 5)))
    assert code == 0
    assert (
        "1 inputs have the same candidate under different labels, such as 1 (x) and 9 (y)" in output
    )
    assert "1 candidates hold control tokens, such as t (<|im_end|>)" in output
    assert "1 candidates hold verdict-like phrases, such as v (Score:)" in output


def test_rows_over_the_length_limit_are_counted_by_the_tokenizer_given(
    base: Path, tmp_path: Path
) -> None:
    rng = random.Random(4)
    train = [*unrelated(rng, "train", 6), row("long", sentence(rng), sentence(rng, 400))]
    folder = folder_of(tmp_path / "d", train, unrelated(rng, "test", 3))
    code, output = checked(folder, "--model", str(base), "--max_seq_length", "2000")
    assert code == 0
    assert "1 rows do not fit 2000 tokens" in output
    assert "judge_train.json:7, field candidate" in output
    assert "tokens" not in checked(folder)[1], "no tokenizer, no count"


def test_the_control_tokens_of_the_tokenizer_given_are_known(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    special = AutoTokenizer.from_pretrained(base).all_special_tokens
    assert special
    rng = random.Random(7)
    train = [row(f"t{i}", sentence(rng), f"a {token} b") for i, token in enumerate(special)]
    folder = folder_of(tmp_path / "d", train, unrelated(rng, "test", 3))
    assert (
        f"{len(special)} candidates hold control tokens" in checked(folder, "--model", str(base))[1]
    )


def test_json_holds_all_that_was_found(tmp_path: Path) -> None:
    train, test = [row("a", "The Source", "x")], [row("b", "the source", "y")]
    done = CliRunner().invoke(
        data, ["check", str(folder_of(tmp_path / "d", train, test)), "--json"]
    )
    assert isinstance(done.exception, UserError)
    found = json.loads(done.output)
    assert found["leaks"] == 1
    assert found["examples"][0]["kind"] == "normalised"
    assert found["labels"] == {"train": {"5": 1}, "test": {"5": 1}}


def test_the_remedy_fixes_the_leak(tmp_path: Path) -> None:
    rng = random.Random(5)
    train, test = unrelated(rng, "train", 40), unrelated(rng, "test", 10)
    test[0]["source"] = train[0]["source"].upper()
    folder = folder_of(tmp_path / "d", train, test)
    assert checked(folder)[0] == 2
    assert CliRunner().invoke(data, ["split", str(folder), "--anew"]).exit_code == 0
    assert checked(folder)[0] == 0


# --- length and label ---


def rated(count: int, verdict: Callable[[int, int], Any], scale: str) -> list[JudgeExample]:
    rng = random.Random(6)
    rows = []
    for i in range(count):
        a, b = rng.randint(1, 40), rng.randint(1, 40)
        texts = [" ".join(["w"] * a), " ".join(["w"] * b)]
        own: Row = {"candidates": texts} if scale == "pairwise" else {"candidate": texts[0]}
        label = Label(verdict=verdict(a, b))
        rows.append(
            JudgeExample.model_validate({"id": str(i), "group": str(i), "label": label, **own})
        )
    return rows


@pytest.mark.parametrize(
    ("scale", "verdict", "telling"),
    [
        ("0-10", lambda a, b: a // 4, True),
        ("0-10", lambda a, b: b // 4, False),
        ("pass_fail", lambda a, b: "PASS" if a > 20 else "FAIL", True),
        ("pass_fail", lambda a, b: "PASS" if b > 20 else "FAIL", False),
        ("bool", lambda a, b: "yes" if a > 20 else "no", True),
        ("bool", lambda a, b: "yes" if b > 20 else "no", False),
        ("pairwise", lambda a, b: "A" if a > b else "B", True),
        ("pairwise", lambda a, b: "A" if (a * 7 + b * 3) % 2 else "B", False),
    ],
)
def test_a_label_that_length_alone_tells_is_found(
    scale: str, verdict: Callable[[int, int], Any], telling: bool
) -> None:
    found = length_and_label(rated(300, verdict, scale), Scale.from_name(scale))
    assert found is not None
    assert found.telling is telling
    assert found.low <= found.value <= found.high
    if scale != "pairwise" and telling:
        assert found.value > 0, "longer is better"


def test_options_have_no_order_for_length_to_predict() -> None:
    scale = Scale.of_options(["short", "long"])
    rows = rated(300, lambda a, b: "long" if a > 20 else "short", scale.name)
    assert length_and_label(rows, scale) is None


def test_few_rows_say_nothing_about_length() -> None:
    rows = rated(9, lambda a, b: a // 4, "0-10")
    assert length_and_label(rows, Scale.from_name("0-10")) is None


# --- what counts as the same text ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Olá,  Mundo!", "ola mundo"),
        ("STRASSE", "straße"),
        ("“quoted” — text…", "quoted text"),
        ("ﬁne", "fine"),
        ("Ёлка", "елка"),
    ],
)
def test_case_space_punctuation_and_accents_do_not_tell_texts_apart(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"), [("कि", "का"), ("?", "!"), ("1.5", "15"), ("ガ", "カ"), ("não é", "não")]
)
def test_what_makes_another_text_is_kept(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_an_empty_candidate_is_no_leak() -> None:
    rows = [
        JudgeExample(id=n, group=n, source=n, candidate="", label=Label(verdict=0)) for n in "ab"
    ]
    assert find_leaks({"train": rows[:1], "test": rows[1:]}) == []
