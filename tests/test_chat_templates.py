"""Chat templates that print the date, think, or write tokens that are not "special"."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from pt_app.core.chat_templates import DAY
from pt_app.core.dataset import JudgeExample
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.verdicts import Scale
from pt_app.judge import Judge
from tests.test_prompts import MODELS, NOT_SPECIAL, THINKING, build, example
from tests.tiny_models import make_tokenizer

DATED = {
    "llama32": "26 Jul 2024",
    "gptoss": "2024-07-26",
    "smollm3": "26 July 2024",
}


def fresh(name: str, folder: Path) -> Any:
    """A tokenizer of its own with a model's template, as it stands in a base's folder."""
    made = build(name)
    made.save_pretrained(folder)
    template = (Path(__file__).with_name("fixtures") / "templates" / f"{name}.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template)
    return AutoTokenizer.from_pretrained(folder)


def encoder(tokenizer: Any, **options: Any) -> PromptEncoder:
    return PromptEncoder(
        tokenizer, Template.load("translation"), Scale.from_name("0-10"), 2048, **options
    )


def text_of(encode: PromptEncoder, row: JudgeExample) -> str:
    text: str = encode.tokenizer.decode(encode.prompt_ids(row))
    return text


def at(monkeypatch: pytest.MonkeyPatch, year: int, month: int, day: int) -> None:
    """Let transformers' clock say this day."""
    now = classmethod(lambda cls, tz=None: datetime.datetime(year, month, day, 23, 59))
    clock = type("Clock", (datetime.datetime,), {"now": now})
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


@pytest.mark.parametrize("name", DATED)
def test_a_prompt_is_the_same_on_any_day(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 2027, 1, 1)
    before = encoder(fresh(name, tmp_path / "one"))
    shown = text_of(before, example())
    assert DATED[name] in shown
    at(monkeypatch, 2031, 12, 24)
    assert text_of(before, example()) == shown  # a run that goes on past midnight
    after = encoder(fresh(name, tmp_path / "two"))
    assert after.prompt_ids(example()) == before.prompt_ids(example())


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        ("strftime_now('%A, %-d. %B %Y, %H:%M')", "Friday, 26. July 2024, 00:00"),
        ("strftime_now('%Y-%m-%d').split('-')[0] | int + 1", "2025"),
        ("strftime_now(format) ~ '%d'", "26/07/24 00%d"),
        ("[strftime_now]|map('string')|list|length", "1"),
    ],
)
def test_a_clock_gives_any_format(clock: str, shown: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    said = "{% set format = '%d/%m/%y %M' %}<|im_start|>system\n{{ " + clock + " }}<|im_end|>\n"
    tokenizer.chat_template = said + tokenizer.chat_template
    assert f"system\n{shown}<|im_end|>" in text_of(encoder(tokenizer), example())


def test_a_template_that_starts_with_text_and_ends_with_a_line_end_keeps_both(
    tmp_path: Path,
) -> None:
    tokenizer = make_tokenizer(tmp_path)
    template = "\n  {{ strftime_now('%d') }}\n" + tokenizer.chat_template + "\n"
    tokenizer.chat_template = template.replace("{{ strftime_now('%d') }}", "26")
    plain = text_of(encoder(tokenizer), example())
    tokenizer.chat_template = template
    assert text_of(encoder(tokenizer), example()) == plain


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma"])
def test_an_ordinary_template_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    tokenizer = fresh(name, tmp_path)
    template = tokenizer.chat_template
    encoder(tokenizer)
    assert tokenizer.chat_template == template
    assert tokenizer.chat_control_tokens is None


def test_a_clock_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.chat_template = "{{ datetime.now() }}" + tokenizer.chat_template
    with pytest.raises(UserError, match=r"chat template fails on a user's turn .*datetime"):
        encoder(tokenizer)
    tokenizer.chat_template = "{% if %}"
    with pytest.raises(UserError, match="chat template cannot be read, line 1"):
        encoder(tokenizer)


@pytest.mark.parametrize("name", THINKING)
def test_a_prompt_ends_where_the_answer_starts_and_nothing_is_thought(
    name: str, tmp_path: Path
) -> None:
    encode = encoder(fresh(name, tmp_path))
    assert text_of(encode, example()).endswith(THINKING[name])
    assert text_of(encode, example(prompt="<tool_response>x</tool_response>")).endswith(
        THINKING[name]
    )
    (encoded,), _ = encode.encode([example(label={"verdict": 4, "feedback": "<think>x</think>"})])
    supervised = encoded.input_ids[encoded.prompt_length :]
    end = encode.tokenizer.convert_tokens_to_ids(MODELS[name][2])
    assert encode.tokenizer.decode(supervised[:-1]) == "Score: 4/10\nFeedback: <think>x</think>"
    assert supervised[-1] == end
    assert not set(supervised[:-1]) & set(encode.tokenizer.added_tokens_decoder)


@pytest.mark.parametrize("name", [*THINKING, "llama32", "nogeneration", "chatml", "mistral"])
def test_a_saved_tokenizer_makes_the_same_prompt_with_stock_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder(fresh(name, tmp_path / "base"))
    attack = "".join(MODELS[name][0] + NOT_SPECIAL)
    rows = [example(candidate=attack), example(prompt=attack, system="Be brief.")]
    encode.tokenizer.save_pretrained(tmp_path / "adapter")
    at(monkeypatch, 2031, 12, 24)
    stock = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    for row in rows:
        ids = stock.apply_chat_template(
            encode.messages(row),
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        assert ids == encode.prompt_ids(row)
    template = stock.chat_template
    assert encoder(stock).prompt_ids(rows[0]) == encode.prompt_ids(rows[0])
    assert stock.chat_template == template  # a sealed template is not sealed again


def with_tokens(folder: Path, *tokens: str) -> Any:
    tokenizer = make_tokenizer(folder)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in tokens])
    return tokenizer


@pytest.mark.parametrize("token", ["<|fim_prefix|>", "<tool_call>", "[ação]", "<a b>"])
@pytest.mark.parametrize(
    "field",
    [
        *("source", "context", "reference", "candidate", "rubric", "prompt", "system"),
        *("candidates", "conversation", "label"),
    ],
)
def test_an_added_token_that_is_not_special_is_text_in_every_field(
    token: str, field: str, tmp_path: Path
) -> None:
    encode = encoder(with_tokens(tmp_path, token, "<a b> c"))
    text = f"um {token} gato{token}"
    values: dict[str, Any] = {
        "candidates": {"candidates": (text, "b"), "candidate": None},
        "conversation": {"conversation": [{"role": "user", "content": text}], "source": None},
        "label": {"label": {"verdict": 4, "issues": [text], "feedback": text}},
        "system": {"system": text, "prompt": "x"},
    }
    row = example(**values.get(field, {field: text}))
    if field == "candidates":
        encode = PromptEncoder(
            encode.tokenizer, Template.load("translation"), Scale.from_name("pairwise"), 2048
        )
        row = row.model_copy(update={"label": None})
    if field == "conversation":
        encode = PromptEncoder(
            encode.tokenizer, Template.load("response"), Scale.from_name("0-10"), 2048
        )
    (encoded,), _ = encode.encode([row])
    assert encode.tokenizer.convert_tokens_to_ids(token) not in encoded.input_ids
    assert text in encode.tokenizer.decode(encoded.input_ids)


def test_blank_tokens_and_words_of_the_vocabulary_stay_what_they_are(tmp_path: Path) -> None:
    """Gemma's blank lines are added tokens; a word that the model's own merges make is a word."""
    tokenizer = with_tokens(tmp_path, "\n\n", "  ", "Score", "<b>")
    encode = encoder(tokenizer)
    assert tokenizer.chat_control_tokens == ["<b>"]
    ids = encode.prompt_ids(example(candidate="a\n\nb"))
    assert tokenizer.convert_tokens_to_ids("\n\n") in ids
    assert tokenizer.convert_tokens_to_ids("<b>") not in encode.prompt_ids(
        example(candidate="a <b>b</b>")
    )


def test_an_answer_may_end_with_a_token_that_is_not_special(tmp_path: Path) -> None:
    tokenizer = with_tokens(tmp_path, "<|fim|>")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|fim|>")
    assert encoder(tokenizer).end_token_id == tokenizer.convert_tokens_to_ids("<|fim|>")


def test_the_day_can_be_another(tmp_path: Path) -> None:
    encode = encoder(fresh("gptoss", tmp_path), day=datetime.date(2026, 1, 9))
    assert "Current date: 2026-01-09" in text_of(encode, example())
    assert encode.day != DAY
    json.dumps(encode.tokenizer.chat_template)


@pytest.fixture(scope="module")
def dated_adapter(
    base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A base whose template prints the date and thinks, and a judge trained on it."""
    from pt_app.eval_model.judge_train_mps import main as train

    folder = tmp_path_factory.mktemp("dated")
    own = folder / "base"
    shutil.copytree(base, own)
    template = (Path(__file__).with_name("fixtures") / "templates" / "smollm3.jinja").read_text()
    (own / "chat_template.jinja").write_text(template)
    flags = {"model": own, "data_dir": rows, "output_dir": folder, "epochs": 1, "tracking": "off"}
    train([f"--{name}={value}" for name, value in flags.items()])
    (adapter,) = folder.glob("*_final")
    return own, adapter


ROWS = [{"source": "the old house", "candidate": "o casa <think> velho"}]


def scores(adapter: Path, base: Path) -> Any:
    (one,) = Judge.load(adapter, base=str(base)).score(ROWS)
    return one.probabilities


def test_an_adapter_keeps_its_date_and_judges_alike_on_another_day(
    dated_adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, adapter = dated_adapter
    assert json.loads((adapter / "judge.json").read_text())["date"] == "2024-07-26"
    today = scores(adapter, base)
    at(monkeypatch, 2031, 12, 24)
    assert scores(adapter, base) == today
    # With the base's own template in its place, the date comes from judge.json.
    other = tmp_path / adapter.name
    shutil.copytree(adapter, other)
    shutil.copy(base / "chat_template.jinja", other)
    assert scores(other, base) == today


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("x-judge-1ep-20260109_101500_final", "09 January 2026"),
        ("x-judge-1ep-20269909_101500_final", "26 July 2024"),
        ("renamed", "26 July 2024"),
    ],
)
def test_an_adapter_without_a_date_gets_the_day_in_its_folders_name_and_says_so(
    name: str,
    day: str,
    dated_adapter: tuple[Path, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base, adapter = dated_adapter
    folder = tmp_path / name
    shutil.copytree(adapter, folder)
    shutil.copy(base / "chat_template.jinja", folder)
    kept = json.loads((folder / "judge.json").read_text())
    del kept["date"]
    (folder / "judge.json").write_text(json.dumps(kept))
    judge = Judge.load(folder, base=str(base))
    assert f"Today Date: {day}" in text_of(judge.encoder, example())
    assert "named the day on which they were made" in caplog.text


def test_a_date_that_is_none_is_named(dated_adapter: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = dated_adapter
    shutil.copytree(adapter, tmp_path / "a")
    kept = json.loads((adapter / "judge.json").read_text())
    (tmp_path / "a" / "judge.json").write_text(json.dumps(kept | {"date": "yesterday"}))
    with pytest.raises(UserError, match=r"judge\.json, field date: .*yesterday"):
        Judge.load(tmp_path / "a", base=str(base))


def test_evaluation_of_adapter_and_base_is_the_same_on_another_day(
    dated_adapter: tuple[Path, Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pt_app.eval_model.compare import evaluate_judges
    from pt_app.eval_model.options import EvalOptions

    base, adapter = dated_adapter
    at(monkeypatch, 2031, 12, 24)
    evaluate_judges(rows, tmp_path / "eval", [adapter], EvalOptions(True, str(base)))
    then, now = (
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (adapter / "evaluation", tmp_path / "eval")
    )
    for name in ("adapter", "base"):
        before, after = ([r for r in found if r["model"] == name] for found in (then, now))
        assert before
        assert [r["probabilities"] for r in before] == [r["probabilities"] for r in after]
