"""Words and cuts in scripts with blanks and without: one splitter for all who count words."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.commands.data import data
from pt_app.core.attack_families import attacked, families
from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.metrics import rouge_l
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.verdicts import Scale
from pt_app.core.words import normalised, units, words
from tests.test_prompts import build, encoder, example
from tests.test_prompts import words as many_words

LETTERS = {
    "Chinese": list("天地人山水火土木金月日年花鸟风云"),
    "Japanese": list("あいうえおカキクケコ東京は"),
    "Thai": ["ที่", "นี่", "กำ", "ลัง", "ไป", "บ้าน"],
    "Khmer": ["ខ្ញុំ", "ស្រ", "ឡា", "ញ់"],
    "Lao": ["ສະ", "ບາຍ", "ດີ", "ນີ້"],
    "family": ["\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"],
    "flags": ["\U0001f1f5\U0001f1f9", "\U0001f1e7\U0001f1f7"],
    "skin": ["\U0001f44d\U0001f3fd"],
    "address": list("abcdefghij/%?=&-"),
    "Hindi without blanks": ["पा", "नी", "की", "हूँ"],
}


def unspaced(name: str, count: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(LETTERS[name], k=count))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ﾃﾞｰﾀ", ["ﾃ", "ﾞ", "ｰ", "ﾀ"]),  # half width: a mark that stands alone
        ("\x1bำก", ["\x1bำ", "ก"]),
        ("\u0600文字", ["\u0600", "文", "字"]),
        ("\u094dក", ["\u094d", "ក"]),
        ("\u200d\U0001f1f5\U0001f1f9文", ["\u200d\U0001f1f5\U0001f1f9", "文"]),
        ("က\u1039က\u103aက", ["က\u1039က\u103a", "က"]),
    ],
)
def test_a_text_is_cut_between_characters(text: str, pieces: list[str]) -> None:
    assert [text[start:end] for start, end in units(text)] == pieces


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("翻译准确术语一致", "翻译准确术语不一致", 16 / 17),
        ("ภาษาไทยถูกต้อง", "ภาษาไทยผิด", 14 / 21),
        ("पानी", "पीना", 0.0),
        ("पानी ठंडा", "पानी गरम", 0.5),
        ("the verb is wrong", "the noun is wrong", 0.75),
        ("ＡＢＣ　１２", "abc 12", 1.0),  # full width
        ("ﾃｽﾄ", "テスト", 1.0),  # half width
        ("می\u200cخواهم", "میخواهم", 1.0),  # a joiner is no letter
        ("co\u00adoperate", "cooperate", 1.0),
        ("ไป\u200bบ้าน", "ไป บ้าน", 1.0),  # but this space, which is not shown, is one
        ("Straße", "STRASSE", 1.0),
        ("avó", "avô", 0.0),  # accents count
        ("ความสุข 100%", "ความสุข １００％", 1.0),
    ],
)
def test_rouge_l_counts_words_of_any_script(reference: str, text: str, expected: float) -> None:
    assert rouge_l(reference, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("กำลังไปบ้าน", ["กำ", "ลั", "ง", "ไ", "ป", "บ้", "า", "น"]),
        ("ខ្ញុំស្រ", ["ខ្ញុំ", "ស្រ"]),
        ("ນີ້ດີ", ["ນີ້", "ດີ"]),
        ("が\u304b\u3099", ["が", "か\u3099"]),
        ("iPhone手机，好", ["iPhone", "手", "机", "，", "好"]),
        ("x" * 90, ["x" * 40, "x" * 40, "x" * 10]),
    ],
)
def test_a_unit_holds_whole_characters(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in units(text)] == expected


@pytest.mark.parametrize("name", ["family", "flags", "skin", "Hindi without blanks"])
def test_a_long_run_is_not_cut_within_a_character(name: str) -> None:
    text = unspaced(name, 60)
    assert len(units(text)) > 1
    for start, end in units(text):
        piece = text[start:end]
        for letter in sorted(LETTERS[name], key=len, reverse=True):
            piece = piece.replace(letter, "")
        assert piece == ""


def test_units_of_ordinary_text_are_its_words() -> None:
    text = "  uma casa,\tvelha\n(e branca) "
    assert [text[a:b] for a, b in units(text)] == text.split()


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("field", ["context", "source", "reference", "conversation"])
def test_a_long_text_without_blanks_is_cut_and_not_dropped(name: str, field: str) -> None:
    text = unspaced(name, 1500)
    value: Any = [{"role": "user", "content": text}] if field == "conversation" else text
    row = example(**{field: value})
    encode: PromptEncoder = PromptEncoder(
        build("chatml"),
        Template.load("response" if field == "conversation" else "translation"),
        Scale.from_name("0-10"),
        512,
    )
    (whole,), cuts = encode.fit([row])
    fitted = whole.example
    kept = fitted.conversation[0].content if fitted.conversation else getattr(fitted, field)
    assert text.endswith(kept) if field == "conversation" else text.startswith(kept)
    (encoded,), _ = encode.encode([row])
    # What could be kept was: a unit more would not fit (an address is cut every 40 characters).
    assert encoded.prompt_length > (512 - 96) - 170
    assert cuts.rows_cut == 1
    assert (fitted.candidate, fitted.label) == (row.candidate, row.label)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"candidate": unspaced("Chinese", 900)}, "candidate"),
        ({"candidate": unspaced("address", 900)}, "candidate"),
        ({"rubric": many_words(400)}, "rubric"),
        ({"prompt": "x", "system": many_words(400)}, "system"),
        (
            {"conversation": [{"role": "user", "content": "palavra"}] * 300, "source": None},
            "conversation",
        ),
        (
            {"source": unspaced("Thai", 900), "label": {"verdict": 1, "feedback": many_words(400)}},
            "label",
        ),
    ],
)
def test_a_row_that_cannot_fit_names_the_field_that_is_too_long(
    changes: dict[str, Any], field: str
) -> None:
    kind = "response" if "conversation" in changes else "translation"
    with pytest.raises(UserError, match=rf"judge_train.json:1, field {field}: .*max_seq_length"):
        encoder(max_seq_length=512, template=kind).encode([example(**changes)])


@pytest.mark.parametrize("field", ["source", "context"])
def test_preview_shows_what_is_kept_of_a_chinese_text(field: str, tmp_path: Path) -> None:
    rows = [
        {"id": f"{i}", "source": f"row {i}", "candidate": "ok", "label": {"verdict": 5}}
        | {field: unspaced("Chinese", 900, seed=i)}
        for i in range(3)
    ]
    for split, own in (("train", rows[:2]), ("test", rows[2:])):
        text = json.dumps(own, ensure_ascii=False)
        (tmp_path / f"judge_{split}.json").write_text(text, encoding="utf-8")
    card = {"task": "score", "scale": "0-10", "template": "response"}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    done = CliRunner().invoke(data, ["preview", str(tmp_path), "-n", "1"])
    assert done.exit_code == 0, done.output
    assert rows[0][field][:40] in "".join(done.output.split())


def test_an_attack_drops_half_of_a_sentence_without_blanks() -> None:
    chosen = [family for family in families() if family.change == "dropped"]
    texts = {"天地人山水火": "天地人", "天地人。山水火。": "天地人。", "um gato velho": "um gato"}
    rows = [JudgeExample(source="x", candidate=text) for text in texts]
    found = attacked(rows, Scale.from_name("0-10"), chosen)
    assert [one.example.candidate for one in found] == list(texts.values())


def test_signs_that_are_not_shown_do_not_make_another_text() -> None:
    assert normalised("Uma\u200b casa\ufeff") == normalised("uma casa")
    assert normalised("não✔\ufe0f") == "nao"
    assert normalised("?!") == "?!"
    assert words("?!") == []
