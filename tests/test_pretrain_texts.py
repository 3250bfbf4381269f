"""Where the text of a model from scratch comes from, and the first stage: tokenizer and tokens."""

import gzip
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from pt_app.core import files
from pt_app.core.errors import UserError
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain.settings import SmallSettings, TokenizerSettings
from pt_app.pretrain.shards import TOKENIZER, at_end, open_shards, read_manifest, write_shards
from pt_app.pretrain.texts import cut, documents, plain_text
from pt_app.pretrain.vocabulary import gpt2_tokenizer, make_tokens
from tests.conftest import ROOT
from tests.real_data import real


def sentences(count: int) -> str:
    """Write paragraphs of words, most of which occur often."""
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(300)]
    return "\n\n".join(" ".join(rng.choices(words, k=12)) + "." for _ in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    (texts / "below").mkdir(parents=True)
    (texts / "b.txt").write_text("second\n", encoding="utf-8")
    (texts / "a.html").write_text(
        "<html><head><title>no</title></head><body><h1>A &amp; B</h1><script>x<y</script>"
        "<p>One <b>bold</b> word.</p><!-- hidden --><p>Two.</p></body></html>",
        encoding="utf-8",
    )
    (texts / "below" / "c.txt.gz").write_bytes(gzip.compress("thïrd\n".encode()))
    (texts / "d.jsonl").write_text('{"text": "fourth"}\n{"text": "fifth"}\n', encoding="utf-8")
    parquet.write_table(pa.table({"text": ["sixth", None, "seventh"]}), texts / "e.parquet")
    (texts / "ignored.png").write_bytes(b"\x89PNG")
    return texts


EXPECTED = ["A & B\n\nOne bold word.\n\nTwo.\n", "second\n", "thïrd\n"]
EXPECTED += ["fourth", "fifth", "sixth", "seventh"]


def test_a_folder_gives_the_texts_of_its_files_in_their_order(folder: Path) -> None:
    assert list(documents([str(folder)])) == EXPECTED


def test_a_separator_of_lines_within_a_text_ends_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one\u2028row\x85"}\n\n{"text": "two"}\r\n', encoding="utf-8")
    assert list(documents([str(file)])) == ["one\u2028row\x85", "two"]


def test_files_patterns_and_several_sources_follow_each_other(folder: Path) -> None:
    sources = [str(folder / "*.jsonl"), str(folder / "b.txt"), str(folder / "**" / "*.gz")]
    assert list(documents(sources)) == ["fourth", "fifth", "second\n", "thïrd\n"]


def test_tinyshakespeare_is_found_here_before_the_folder_of_real_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_REAL_DATA", str(tmp_path / "real"))
    source = [SmallSettings().train_data]
    with pytest.raises(UserError, match=r"^data/tinyshakespeare holds no text: .* other text$"):
        list(documents(source))
    for folder, text in (("real", "To be"), ("data", "or not to be")):
        file = tmp_path / folder / "tinyshakespeare" / "input.txt"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        assert list(documents(source)) == [text]


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "[1]").mkdir()
    (tmp_path / "[1]" / "a[b].txt").write_text("text")
    assert list(documents([str(tmp_path / "[1]" / "a[b].txt")])) == ["text"]


def test_documents_are_composed_and_never_blank(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("e\u0301te\u0301", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n\n ", encoding="utf-8")
    assert list(documents([str(tmp_path)])) == ["\xe9t\xe9"]


@given(st.text(alphabet="ab \n", max_size=200), st.integers(2, 40))
def test_the_pieces_of_a_long_text_are_the_text(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_a_long_text_is_cut_between_paragraphs() -> None:
    text = sentences(200)
    pieces = list(cut(text, 1000))
    assert len(pieces) > 10
    assert all(piece.endswith(".\n\n") for piece in pieces[:-1])


def test_a_page_keeps_what_looks_like_markup_in_its_text() -> None:
    assert plain_text("<pre>if a &lt; b:\n    return &quot;x&quot;</pre>") == (
        'if a < b:\n    return "x"\n'
    )


def test_docstrings_are_read_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somewhere" / "package_of_text"
    package.mkdir(parents=True)
    long = "What it does, at length. " * 20
    (package / "__init__.py").write_text(f'"""{long}"""\nraise SystemExit("it was run")\n')
    (package / "part.py").write_text(
        f'class A:\n    """Short."""\n    def f(self):\n        """{long}More."""\n'
    )
    (package / "template.py").write_text("{{ no python }")
    monkeypatch.syspath_prepend(str(package.parent))
    assert list(documents(["docstrings:package_of_text"])) == [long, long + "More."]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/*.txt", "is not there"),
        ("docstrings:no_such_package", "no such Python package"),
        ("docstrings:os", "no such Python package"),
        ("debian:../x", "no name of a package"),
        ("hub:owner/name:few", "the number of files"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(documents([source]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("a.txt.gz", b"no gzip", "no UTF-8 text that gzip compressed"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "row 2 is no JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "row 2 is no JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "not JSON at line 2"),
        ("a.parquet", b"no parquet", "no Parquet file"),
        ("a.png", b"", ""),
    ],
)
def test_a_file_that_is_no_text_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message or "holds no text"):
        list(documents([str(tmp_path)]))


def test_a_package_of_debian_is_unpacked_once_and_its_old_pages_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path / "cache"))
    asked: list[list[str]] = []

    def run(command: list[str], cwd: Path, **_: Any) -> None:
        asked.append(command)
        if command[0] == "apt-get":
            (cwd / "some-doc_1_all.deb").write_bytes(b"")
        else:
            (cwd / "usr").mkdir()
            (cwd / "usr" / "page.html").write_text("<p>Text.</p>")
            (cwd / "usr" / "old.html").write_bytes(b"<p>caf\xe9</p>")

    monkeypatch.setattr("pt_app.pretrain.texts.subprocess.run", run)
    with caplog.at_level("WARNING", "pt_app"):
        for _ in range(2):
            assert list(documents(["debian:some-doc"])) == ["Text.\n"]
    assert [command[0] for command in asked] == ["apt-get", "dpkg-deb"]
    assert "1 files are not UTF-8" in caplog.text


def test_a_machine_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs apt-get"):
        list(documents(["debian:some-doc"]))
    assert not (tmp_path / "debian" / "some-doc").exists()


def listed_file(path: str, digest: str) -> SimpleNamespace:
    """A file as the hub lists it."""
    return SimpleNamespace(path=path, lfs=SimpleNamespace(sha256=digest))


def test_files_of_the_hub_are_taken_in_order_and_compared_with_their_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    shards = [tmp_path / f"{number}.parquet" for number in range(3)]
    for shard in shards:
        parquet.write_table(pa.table({"text": [f"text {shard.stem}"]}), shard)
    listed = [listed_file(shards[n].name, files.sha256_file(shards[n])) for n in (2, 0, 1)]
    listed.append(listed_file("README.md", ""))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: iter(listed))
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda _, path, repo_type: str(tmp_path / path)
    )
    assert list(documents(["hub:owner/name:2"])) == ["text 0", "text 1"]
    listed[0].lfs.sha256 = "0" * 64
    with pytest.raises(UserError, match=r"2.parquet is not the hub's file"):
        list(documents(["hub:owner/name"]))
    assert not (tmp_path / "2.parquet").exists()


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", refused)
    with pytest.raises(UserError, match="hub:owner/name cannot be fetched"):
        list(documents(["hub:owner/name"]))


@pytest.fixture
def settings(tmp_path: Path) -> TokenizerSettings:
    (tmp_path / "text.txt").write_text(sentences(4000))
    return TokenizerSettings(
        text=str(tmp_path / "text.txt"), vocab_size=400, split="end", data_dir=str(tmp_path / "out")
    )


def test_the_first_stage_leaves_a_tokenizer_and_its_tokens(settings: TokenizerSettings) -> None:
    manifest = make_tokens(settings)
    out = Path(settings.data_dir)
    tokenizer = AutoTokenizer.from_pretrained(out / TOKENIZER)
    shards = open_shards(out, tokenizer)
    text = Path(settings.text).read_bytes()
    assert shards.text("train") + shards.text("val") == text
    assert manifest.vocabulary == len(tokenizer) == 400
    assert manifest.val.bytes == pytest.approx(len(text) / 10, rel=0.01)
    assert sorted(path.name for path in out.parent.iterdir()) == [".out.lock", "out", "text.txt"]


def test_a_text_beyond_what_the_tokenizer_learns_from_is_read_once_and_whole(
    settings: TokenizerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, read, asked = sentences(20_000), files.read_text, list[Path]()
    assert len(text) > 1_100_000
    Path(settings.text).write_text(text)

    def noted(path: Path, *messages: str) -> str:
        asked.append(path)
        return read(path, *messages)

    monkeypatch.setattr(files, "read_text", noted)
    make_tokens(replace(settings, tokenizer_megabytes=1))
    out = Path(settings.data_dir)
    shards = open_shards(out, AutoTokenizer.from_pretrained(out / TOKENIZER))
    assert (shards.text("train") + shards.text("val")).decode() == text
    assert asked.count(Path(settings.text)) == 1


def test_ids_are_the_same_in_another_process(settings: TokenizerSettings) -> None:
    make_tokens(settings)
    folder = Path(settings.data_dir) / TOKENIZER
    text = "abc  De-f 123 \n\n São <|im_end|>"
    program = (
        "import sys, json; from transformers import AutoTokenizer; "
        "print(json.dumps(AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2]).input_ids))"
    )
    command = [sys.executable, "-c", program, str(folder), text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == AutoTokenizer.from_pretrained(folder)(text).input_ids


def test_a_complete_stage_is_skipped_and_other_settings_are_refused(
    settings: TokenizerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_tokens(settings)
    made = {p: p.stat().st_mtime_ns for p in Path(settings.data_dir).rglob("*.bin")}
    assert make_tokens(settings) == first
    assert "are complete" in capsys.readouterr().out
    assert made == {p: p.stat().st_mtime_ns for p in Path(settings.data_dir).rglob("*.bin")}
    with pytest.raises(UserError, match="vocab_size was 400 and is 420 now"):
        make_tokens(replace(settings, vocab_size=420))


def test_an_interrupted_stage_starts_again(
    settings: TokenizerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as within:
        within.setattr("pt_app.core.files.write_json_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_tokens(settings)
    assert make_tokens(settings) == read_manifest(Path(settings.data_dir))


def test_a_vocabulary_above_what_the_text_supports_is_refused(settings: TokenizerSettings) -> None:
    """A twenty-word file cannot fill 32,000 tokens: each would be trained on once, if at all."""
    Path(settings.text).write_text("the boat and the river and the boat " * 3 + "xyzzy plugh")
    with pytest.raises(
        UserError, match=r"supports a vocabulary of (\d+) tokens.*not 32,000"
    ) as said:
        make_tokens(replace(settings, vocab_size=32_000))
    supported = int(str(said.value).rpartition(" ")[2])
    assert make_tokens(replace(settings, vocab_size=supported)).vocabulary == supported


def test_no_token_stands_for_what_occurs_once() -> None:
    tokenizer = train_tokenizer(["boat boat xyzzy"], 1000)
    assert "boat" in tokenizer.get_vocab()
    assert not [token for token in tokenizer.get_vocab() if token in "xyzzy" and len(token) > 1]


def test_a_folder_of_other_files_is_never_replaced(settings: TokenizerSettings) -> None:
    inside = Path(settings.data_dir) / "text.txt"
    inside.parent.mkdir()
    inside.write_text(sentences(100))
    with pytest.raises(UserError, match=r"holds other files.*--data_dir"):
        make_tokens(replace(settings, text=str(inside)))
    assert inside.is_file()


def test_the_command_says_in_one_line_what_text_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.tok_train", "--text", "nowhere.txt"]
    done = subprocess.run(
        [*command, "--data_dir", str(tmp_path / "out")], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert b"nowhere.txt is not there" in done.stderr


@pytest.mark.slow
def test_gpt2s_vocabulary_gives_the_known_number_of_tokens(tmp_path: Path) -> None:
    """nanoGPT's data/shakespeare/readme.md: 301,966 and 36,059 tokens (and our separators)."""
    text = real("tinyshakespeare/input.txt").read_text("utf-8")
    try:
        tokenizer = gpt2_tokenizer()
    except UserError as error:
        pytest.skip(f"GPT-2's vocabulary cannot be fetched here: {error}")
    assert len(tokenizer) == 50_257
    manifest = write_shards(at_end(text), tokenizer, tmp_path / "tokens")
    assert manifest.train.tokens - 1 == 301_966
    assert manifest.val.tokens - 1 == 36_059
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (
        open_shards(tmp_path / "tokens", again).text("val").decode() == text[int(len(text) * 0.9) :]
    )
