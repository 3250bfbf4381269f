"""The offline default: its tokenizer, its corpus, its training and the base that is shipped."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.core.files import sha256_file
from pt_app.judge_data.generator.errors import reserved_for_judges
from pt_app.models.bases import shipped
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.tiny_base import train
from pt_app.tiny_base.build import CARD, _work_folder, train_base
from pt_app.tiny_base.corpus import Corpus, Document
from pt_app.tiny_base.options import BaseOptions

MAX_BYTES = 4_000_000
SMALL: dict[str, Any] = {
    "steps": 20,
    "lexicon": "small",
    "vocab_size": 500,
    "width": 32,
    "layers": 2,
}


def read_card(folder: Path) -> dict[str, str]:
    """The facts of a base's card by name, and the detection rate of each kind."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (folder / CARD).read_text("utf-8"), re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(3)
    corpus = Corpus.of_grammar("full")
    return [corpus.sample(rng) for _ in range(6000)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bases") / "small"
    return train_base(output, BaseOptions(**SMALL))


def test_the_corpus_holds_no_source_of_judge_data(documents: list[Document]) -> None:
    shown = [
        line for d in documents for line in re.findall(r"^Source: (.*?)(?:<|$)", d.prompt, re.M)
    ]
    assert len(shown) > 4000
    assert not [source for source in shown if reserved_for_judges(source)]


def test_no_number_follows_from_a_candidate(documents: list[Document]) -> None:
    judged = [d for d in documents if "Candidate:" in d.prompt + d.answer]
    digits = [d for d in judged if re.search(r"\d", d.prompt.partition("Source:")[2] + d.answer)]
    assert {d.task for d in digits} == {"given_score"}
    assert len(digits) > 500
    scores: dict[bool, list[int]] = {True: [], False: []}
    for document in digits:
        given = re.search(r"\nGiven score: (\d+)<", document.prompt)
        assert given is not None
        assert re.findall(r"\d+", document.answer) == [given[1], "10"]
        scores[bool(document.kinds)].append(int(given[1]))
    # Drawn by lot: the mean score of candidates with and without errors is the same.
    means = {some: sum(drawn) / len(drawn) for some, drawn in scores.items()}
    assert abs(means[True] - means[False]) < 4 * 3.2 * (2 / 500) ** 0.5


def test_the_first_phase_holds_unrelated_words_only() -> None:
    rng = random.Random(3)
    corpus = Corpus.of_grammar("small")
    tasks = Counter(corpus.sample(rng, first_phase=True).task for _ in range(200))
    assert set(tasks) == {"repetition", "unrelated", "changes"}


def test_an_annotation_marks_each_word_that_differs(documents: list[Document]) -> None:
    marked = [d for d in documents if d.task == "annotation" and d.kinds]
    assert len(marked) > 500
    named = 0
    for document in marked:
        reference, candidate = (
            set(re.findall(r"\w+", document.prompt.partition(f"{name}: ")[2].partition("\n")[0]))
            for name in ("Reference", "Candidate")
        )
        agreeing = set(re.findall(r"(\w+)\.? =", document.answer))
        assert {word.casefold() for word in agreeing} <= {word.casefold() for word in reference}
        named += set(document.kinds) <= set(re.findall(r"\w+", document.answer))
        assert candidate - {"im_end", "assistant"} <= set(re.findall(r"\w+", document.answer))
    # Two errors side by side may be marked "other".
    assert named > 0.8 * len(marked)


@pytest.mark.slow
def test_auto_tokenizer_gives_the_ids_of_the_file(made: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(made)
    raw = Tokenizer.from_file(str(made / "tokenizer.json"))
    for text in ("O cão comeu 12 maçãs.\n\n  é?", "don't <|im_end|> x", "日本 \x00 😀", "e\u0301"):
        assert read(text).input_ids == raw.encode(text).ids
    assert read.decode(read("日本 \x00 😀").input_ids) == "日本 \x00 😀"
    assert len(read("2048").input_ids) == 4


def test_the_chat_template_writes_what_the_corpus_holds(made: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    turns = [{"role": "system", "content": "Repeat."}, {"role": "user", "content": "o cão"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    expected = (
        "<|im_start|>system\nRepeat.<|im_end|>\n<|im_start|>user\no cão<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids) == expected
    assert ids == tokenizer(expected).input_ids
    assert tokenizer.eos_token == "<|im_end|>"


def test_training_writes_a_base_that_transformers_loads(made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(made)("O menino", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()
    assert model.config.model_type == "qwen2"
    assert not [path for path in made.parent.iterdir() if path != made]


@pytest.mark.slow
def test_weights_do_not_depend_on_how_the_process_computed_matmuls_before(tmp_path: Path) -> None:
    hashes = set()
    for precision in ("highest", "medium"):  # the latter is what a recipe leaves on a CPU
        torch.set_float32_matmul_precision(precision)
        base = train_base(tmp_path / precision, BaseOptions(**SMALL))
        hashes.add(read_card(base)["weights sha256"])
    assert len(hashes) == 1


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))
    loss = train.DocumentLoss.loss

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "SNAPSHOT_EVERY", 5)
        patch.setattr(train.DocumentLoss, "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_base(tmp_path / "base", BaseOptions(**SMALL))
    assert not (tmp_path / "base").exists()
    again = train_base(tmp_path / "base", BaseOptions(**SMALL))
    assert read_card(again)["weights sha256"] == read_card(made)["weights sha256"]


def test_the_folder_of_an_interrupted_training_is_that_of_earlier_versions(tmp_path: Path) -> None:
    folder = _work_folder(tmp_path / "base", BaseOptions(3, quick=True, lexicon="small"))
    assert folder.name == ".base-4e7b30f5.partial"


def test_a_base_is_replaced_but_no_other_folder(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no base that this command made"):
        train_base(other, BaseOptions(steps=1))
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"steps": 0}, "--steps"), ({"width": 100}, "--width"), ({"max_words": 9}, "--max_words")],
)
def test_settings_out_of_range_are_named(
    settings: dict[str, int], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        train_base(tmp_path / "base", BaseOptions(**settings))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_parallel_corpus_replaces_the_grammar(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    rows = [
        f"The small dog number {i} sleeps.\tO cão pequeno número {i} dorme." for i in range(200)
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    corpus = Corpus.of_file(file, None)
    rng = random.Random(1)
    shown = {corpus.example(rng, ()).source for _ in range(400)}
    assert 50 < len(shown) < 150
    assert not any(map(reserved_for_judges, shown))


def test_the_shipped_base_is_what_its_card_says() -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    folder = shipped()
    facts = read_card(folder)
    weights = folder / "model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    assert facts["weights sha256"] == sha256_file(weights)
    assert facts["tokenizer sha256"] == sha256_file(folder / "tokenizer.json")
    assert facts["command"].startswith("`judge base train")
    assert {"corpus", "seed", "steps", "held-out loss", "wrong_word", "tense"} <= set(facts)
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert facts["parameters"] == f"{parameters:,}"
    assert 1_000_000 <= parameters <= 3_000_000


@pytest.mark.slow
def test_the_figures_on_the_card_of_the_shipped_base_are_those_measured() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = read_card(shipped())
    tokenizer = AutoTokenizer.from_pretrained(shipped())
    model = AutoModelForCausalLM.from_pretrained(shipped(), dtype=torch.float32).eval()
    corpus = replace(Corpus.of_grammar("full"), measuring=True)
    yardstick = train.Yardstick(corpus, tokenizer)
    measured = yardstick.measure(model)
    assert measured["loss"] == pytest.approx(float(facts["held-out loss"].split()[0]), abs=1e-3)
    for kind in yardstick.kinds:
        assert measured[kind] == pytest.approx(float(facts[kind]), abs=0.05), kind
    # Before comparing has formed some kind, or "none", is hardly ever named.
    assert min(measured[kind] for kind in yardstick.kinds) > 0.5


def test_words_of_the_grammar_are_one_token_each() -> None:
    rng = random.Random(5)
    corpus = Corpus.of_grammar("small")
    tokenizer = train_tokenizer(
        (d.prompt + d.answer for d in (corpus.sample(rng) for _ in range(3000))), 2048
    )
    for word in (" menino", " comeu", " pão", " ="):
        assert len(tokenizer(word).input_ids) == 1
