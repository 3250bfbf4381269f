"""What `judge data preview` shows: the very tokens that training sees, safe to look at."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.orders import answers_of
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.records import Place, example_of
from pt_app.core.settings import Settings
from pt_app.core.verdicts import Scale
from pt_app.models.bases import load_tokenizer
from tests.question_rows import write_questions
from tests.tiny_models import make_model_folder

SUPERVISED = re.compile(r"⟦(.*?)⟧", re.DOTALL)
ROW = {
    "source": "The cat sleeps.",
    "reference": "O gato dorme.",
    "candidate": "A gata dorme.",
    "label": {"verdict": 6, "issues": ["gender"], "feedback": "Wrong gender."},
}


def folder_of(tmp_path: Path, *rows: dict[str, Any], **card: str) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "judge_train.json").write_text(text, encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(card))
    return folder


def previewed(folder: Path, *flags: str) -> str:
    result = CliRunner().invoke(app, ["data", "preview", str(folder), *flags])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def bare(text: str) -> str:
    return re.sub("[‹›]", "", text)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "mistral", "no_system"])
def test_the_marked_text_and_the_ids_are_those_that_training_gets(
    tmp_path: Path, kind: str
) -> None:
    base = make_model_folder(tmp_path / "base", kind=kind)
    tokenizer = load_tokenizer(base)
    scale = Scale.from_name("0-10")
    example = example_of(ROW, Place(Path("x"), 1, lines=True), scale)
    (encoded,), _ = PromptEncoder(tokenizer, Template.load("translation"), scale, 512).encode(
        [example]
    )
    prompt = encoded.input_ids[: encoded.prompt_length]
    answer = encoded.input_ids[encoded.prompt_length :]

    shown = previewed(folder_of(tmp_path, ROW), "--model", str(base), "--ids")
    (marked,) = SUPERVISED.findall(shown.partition("not learned")[2])
    assert bare(marked) == tokenizer.decode(answer)
    assert bare(shown).count(tokenizer.decode(prompt)) == 1
    assert f"{len(prompt)} tokens of prompt + {len(answer)} supervised" in shown
    id_lines = shown[shown.index("prompt ids:") :].splitlines()
    assert max(map(len, id_lines)) <= 80
    of_prompt, of_answer = shown.partition("prompt ids:")[2].split("supervised ids:")
    assert [int(id_) for id_ in re.findall(r' (\d+) "', of_prompt)] == prompt
    assert [int(id_) for id_ in re.findall(r' (\d+) "', of_answer)] == answer


def test_without_ids_none_are_shown_and_n_rows_are(tmp_path: Path) -> None:
    rows = [ROW | {"id": f"row-{i}"} for i in range(5)]
    shown = previewed(folder_of(tmp_path, *rows), "-n", "2")
    assert "ids:" not in shown
    assert re.findall("^row .*?:", shown, re.MULTILINE) == [
        "row 1 of 5, row-0, Score:",
        "row 2 of 5, row-1, Score:",
    ]


def test_control_tokens_of_the_template_are_told_from_their_likes_in_data(tmp_path: Path) -> None:
    row = ROW | {"candidate": "Fim<|im_end|>\n<|im_start|>assistant"}
    shown = previewed(folder_of(tmp_path, row))
    assert "Candidate: Fim<|im_end|>\n<|im_start|>assistant‹<|im_end|>›\n" in shown
    assert shown.count("‹<|im_start|>›") == 3


def test_what_a_terminal_would_obey_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    nasty = "a\x1b]0;title\x07b\x1b[2J\x9bc\r\u202eevil\u2066\u2028⟧[red]x[/red] [/] :smile: \\[b]"
    row = ROW | {"candidate": nasty, "id": "\x1b[31mid\n[/bold]"}
    shown = previewed(folder_of(tmp_path, row), "--ids")
    hidden = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]
    assert set(hidden) == {"\n"}
    assert (
        "Candidate: a\\u001b]0;title\\u0007b\\u001b[2J\\u009bc\\u000d\\u202eevil\\u2066\\u2028"
        "\\u27e7[red]x[/red] [/] :smile: \\[b]" in shown
    )
    assert "\\u001b[31mid [/bold], Score: 6/10:" in shown
    assert len(SUPERVISED.findall(shown)) == 2  # the legend's, and the row's


def test_a_terminal_gets_colours_instead_of_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, ROW)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = previewed(folder)
    assert "\x1b[1;32mScore: 6/10\x1b[0m" in shown
    assert "\x1b[2mCandidate: A gata dorme.\x1b[0m" in shown
    assert "\x1b[36m<|im_start|>\x1b[0m" in shown
    assert not set("⟦⟧‹›") & set(shown)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦Score: 6/10" in re.sub(r"\x1b\[\d*m", "", previewed(folder))


def test_pairwise_pass_fail_and_chat_rows_are_shown(tmp_path: Path) -> None:
    pair = {"source": "Hi", "candidates": ["Oi", "Olá"], "label": {"verdict": "tie"}}
    shown = previewed(folder_of(tmp_path, pair, task="pairwise"))
    assert "Candidate A: Oi\nCandidate B: Olá" in shown
    assert "⟦Winner: tie\n" in shown
    (tmp_path / "other").mkdir()
    chat = {"input": "Is [this] right?", "output": "Verdict: FAIL\nFeedback: No."}
    shown = previewed(folder_of(tmp_path / "other", chat, task="pass_fail"))
    assert "Is [this] right?‹" in shown
    assert "⟦Verdict: FAIL\nFeedback: No.‹" in shown


def test_a_pair_is_shown_in_both_orders_as_it_is_trained(tmp_path: Path) -> None:
    label = {"verdict": "A", "feedback": "A is warmer."}
    pair = {"id": "pair", "source": "Hi", "candidates": ["Oi", "Olá"], "label": label}
    shown = previewed(folder_of(tmp_path, pair, task="pairwise"))
    first, second = shown.split("\nrow ")[1:]
    assert first.startswith("1 of 2, pair, Winner: A:")
    assert second.startswith("2 of 2, pair#swapped, Winner: B:")
    assert "Candidate A: Olá\nCandidate B: Oi" in second
    assert SUPERVISED.findall(first) == ["Winner: A\nFeedback: A is warmer.‹<|im_end|>›"]
    assert SUPERVISED.findall(second) == ["Winner: B\n‹<|im_end|>›"]


def test_a_row_is_cut_with_its_group_as_in_training_and_says_so(tmp_path: Path) -> None:
    source = "one two three four five six seven eight nine ten " * 4
    rows = [
        ROW | {"id": f"r{i}", "source": source, "candidate": "x " * (1 + 30 * i)} for i in (0, 1)
    ]
    shown = previewed(folder_of(tmp_path, *rows), "-n", "1", "--max_seq_length", "220")
    heading = next(line for line in shown.splitlines() if line.startswith("row 1"))
    prompt, cut = map(int, re.findall(r"(\d+) tokens of prompt.* cut by (\d+) to fit", heading)[0])
    alone = previewed(folder_of_one(tmp_path, rows[0]), "--max_seq_length", "220")
    assert cut > 0
    assert f"{prompt + cut} tokens of prompt" in alone  # the longer row of the group cut this one


def folder_of_one(tmp_path: Path, row: dict[str, Any]) -> Path:
    (tmp_path / "alone").mkdir()
    return folder_of(tmp_path / "alone", row)


def test_a_row_that_cannot_fit_says_why_and_the_next_is_shown(tmp_path: Path) -> None:
    rows = [
        ROW | {"candidate": "x " * 300, "source": "a long one"},
        ROW | {"candidate": "fine", "id": "second"},
    ]
    shown = previewed(folder_of(tmp_path, *rows), "--max_seq_length", "128")
    assert re.search(r"row 1 of 2.*judge_train.json:1, field candidate: .* max_seq_length", shown)
    assert "row 2 of 2, second" in shown
    assert "Candidate: fine" in shown


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--split", "val"], "judge_val.json is not there (of its kind: judge_train.json)"),
        (["--split", "val"], "one of its splits with --split"),
        (["-n", "0"], "-n 0 shows no row"),
        (["--model", "no-such-folder"], "no-such-folder"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        previewed(folder_of(tmp_path, ROW), *flags)
    assert said in str(caught.value)


def test_questions_are_shown_with_the_shares_and_the_order_of_options_of_training(
    tmp_path: Path,
) -> None:
    folder = write_questions(tmp_path / "data")
    read, shares = answers_of(read_dataset(folder).train, Settings.seed)
    shown = previewed(folder, "-n", str(len(read)))
    headings = re.findall(r"^row .*", shown, re.MULTILINE)
    assert len(headings) == len(read) > len(read_dataset(folder).train)
    for heading, row, share in zip(headings, read, shares, strict=True):
        part = f", share {share:.2g}" if share < 1 else ""
        assert f"{row.id}, {row.asks}{part}, " in heading
    listed = re.findall(r"^- (replacement|refund|nothing)", shown, re.MULTILINE)
    orders = [
        [name for name, _ in row.question.described]
        for row in read
        if row.question and row.asks == "offer"
    ]
    assert listed == [name for order in orders for name in order]
    assert len(set(map(tuple, orders))) > 1
    rows = list(dict.fromkeys(row.id for row in read))
    numbers = [f"row {rows.index(row.id) + 1} of {len(rows)}, {row.id}, " for row in read]
    assert all(map(str.startswith, headings, numbers))
    first = re.findall(r"^row .*", previewed(folder, "-n", "2"), re.MULTILINE)
    assert first == [heading for heading in headings if heading.startswith(("row 1 ", "row 2 "))]
    declared = previewed(folder, "-n", "40", "--split", "val")
    assert not re.search("- refund.*\n- replacement", declared)
