"""The benchmarks measure the same thing on all sides, and say so; no test here looks at a clock."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import llama_cpp, scale
from benchmarks.processes import Samples
from benchmarks.scratch import FAST, SLOW, ratio
from benchmarks.serve import measure as measure_served
from benchmarks.serve import served
from benchmarks.workloads import WORKLOADS, Lengths, make_workload
from pt_app.core.errors import UserError
from pt_app.models.gemm import has_bfloat16
from pt_app.models.packing import common_prefix

ROOT = Path(__file__).parents[1]


def run_bench(tmp_path: Path, *words: str) -> Any:
    """Run `judge bench` in a process of its own, since it forks, and return its numbers."""
    out = tmp_path / "numbers.json"
    command = [sys.executable, "-m", "pt_app.cli", "bench", *words, "--rounds=1"]
    done = subprocess.run(
        [*command, f"--json={out}"], cwd=ROOT, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_rows_are_shaped_like_judge_data(name: str) -> None:
    rows = make_workload(name, 8, "0-10").encoded
    assert rows == make_workload(name, 8, "0-10").encoded
    shared = common_prefix(rows[0]["input_ids"], rows[7]["input_ids"])
    assert 190 <= shared <= 210
    of_one_source = common_prefix(rows[0]["input_ids"], rows[1]["input_ids"])
    assert (of_one_source > shared + 60) == (name == "variants")


def test_a_workload_has_the_lengths_asked_for() -> None:
    rows = make_workload("rubric", 40, "0-10", Lengths(rubric=400, body=90))
    shared = common_prefix(rows.encoded[0]["input_ids"], rows.encoded[1]["input_ids"])
    assert 390 <= shared <= 410
    assert 480 <= rows.prompt_tokens <= 505  # a log-normal text is longer than its median


@pytest.mark.slow
@pytest.mark.nightly
def test_training_is_compared_on_the_same_loss_and_gradients(tmp_path: Path) -> None:
    ways = ["judge", "TRL", "Trainer, padded", "TRL, its defaults"]
    for report in run_bench(tmp_path, "train", "--shape=tiny", f"--only={';'.join(ways)}"):
        assert [name for name, way in report["ways"].items() if not way["error"]] == ways
        assert report["loss_difference"] < 1e-5
        assert report["gradient_relative_difference"] < 1e-4
        assert report["ratio_vs_trl"] > 0
        assert report["peak_memory_ratio"] > 0


@pytest.mark.slow
@pytest.mark.nightly
def test_scoring_is_compared_on_the_same_verdicts(tmp_path: Path) -> None:
    for report in run_bench(tmp_path, "score", "--shape=tiny", "--rows=5"):
        assert not [way["error"] for way in report["ways"].values() if way["error"]]
        assert ("judge, bf16" in report["ways"]) == has_bfloat16()
        assert report["verdicts_compared"] == 2
        assert report["verdicts_changed"] == 0
        assert report["probability_difference"] < 1e-5
        assert report["ratio_vs_generate"] > 0


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="pip install xllamacpp")
def test_llama_cpp_judges_the_same_rows_with_the_same_model(tmp_path: Path) -> None:
    ways = ["judge", "llama.cpp, float32", "llama.cpp, q8_0"]
    words = ["score", "--shape=tiny", "--rows=3", "--workload=rubric", f"--only={';'.join(ways)}"]
    (report,) = run_bench(tmp_path, *words)
    assert not [way["error"] for way in report["ways"].values() if way["error"]]
    assert report["probability_difference_llama.cpp, float32"] < 2e-3
    assert report["ratio_vs_llama_cpp"] > 0
    assert report["ratio_vs_llama_cpp_in_cpu_time"] > 0
    assert report["fastest_llama_cpp"] in ("float32", "q8_0")


def test_a_server_that_is_no_llama_server_is_named() -> None:
    with pytest.raises(UserError, match="false ended with code 1: is it a llama-server"):
        llama_cpp.started(Path("false"), "none.gguf", 64)


def test_a_server_may_speak_of_its_base_before_it_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "serve"
    lines = "small: dequantised\njudge: http://127.0.0.1:1234 (OpenAI: http://127.0.0.1:1234/v1)"
    program.write_text(f"#!/bin/sh\nprintf '{lines}\\n'\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with served(tmp_path, None) as judge:
        assert judge.port == 1234


@pytest.mark.slow
@pytest.mark.nightly
def test_a_served_judge_is_measured_beside_itself(adapter: Path, base: Path) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    found = measure_served(adapter, str(base), rows=20, requests=40, body_tokens=30)
    for clients in (1, 16, 64):
        assert found[f"clients_{clients}_probability_difference"] <= 1e-5
    assert found["throughput_ratio"] > 0
    assert found["three_questions_p50_ms"] > 0
    assert len(found["memory_mib"]) == 10


def test_a_measure_of_workers_that_was_killed_counts_both_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, output, began = (tmp_path / name for name in ("python", "out.jsonl", "began"))
    said = "20 rows in 1.0 s after the start of 2 workers: 20.5 rows/s"
    stub.write_text(
        f"#!/bin/sh\nif [ -e {began} ]; then echo '{said}'; sleep 0.2; touch {output}; exit; fi\n"
        f"touch {began}; sleep 0.4; exit 9\n"
    )
    stub.chmod(0o755)
    monkeypatch.setattr(scale, "POLL", 0.05)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(SystemExit):
        scale._run([], output)
    spent = scale._run([], output)
    assert spent["rate"] == 20.5
    assert 0.4 < spent["seconds"] < 60
    assert spent["peak"] > 0
    stub.unlink()
    assert scale._run([], output) == spent, "what is finished is not run again"


@pytest.mark.slow
@pytest.mark.nightly
def test_questions_are_answered_and_trained_in_one_run(tmp_path: Path) -> None:
    report = run_bench(tmp_path, "questions", "--model=tiny", "--tokens=60", "--states=1")
    assert report["eight_against_one"] > 0
    assert report["four_trained_against_one"] > 0
    # The tiny base has no single tokens for the labels of the pipeline.
    assert {name.partition(",")[0] for name in report["errors"]} == {"pipeline"}
    assert set(report["faster_than_pipeline"].values()) == {None}


def test_a_ratio_of_speeds_is_of_the_rounds_and_has_an_interval() -> None:
    found = {f"ours, {FAST}": Samples([1.0, 2.0, 1.0]), f"theirs, {SLOW}": Samples([2.0, 4.0, 2.0])}
    assert ratio(found, FAST, SLOW) == pytest.approx({"value": 2, "low": 2, "high": 2, "n": 3})
    found[f"theirs, {SLOW}"].seconds[0] = 3.0
    measured = ratio(found, FAST, SLOW)
    assert measured is not None
    assert measured["value"] == pytest.approx(12 ** (1 / 3))
    assert 1 < measured["low"] < measured["value"] < measured["high"]
    assert ratio(found, SLOW, SLOW) is None, "one side was not measured"


@pytest.mark.slow
@pytest.mark.nightly
def test_architectures_from_scratch_get_equal_seconds(tmp_path: Path) -> None:
    words = ["--parts=architecture", "--seconds=6", "--seeds=2", f"--data_dir={tmp_path / 'data'}"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.scratch",
        *words,
        f"--json={tmp_path / 'out.json'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())["architecture"]
    assert list(report["runs"]) == ["Qwen3ForCausalLM", "NanoChatForCausalLM"]
    for runs in report["runs"].values():
        assert [run["seed"] for run in runs] == [0, 1]
        assert all(run["steps"] > 0 and 0 < run["bpb"] < 8 for run in runs)
    difference = report["difference"]
    assert difference["low"] < difference["value"] < difference["high"]


def test_rows_that_a_judge_does_not_read_end_the_benchmark_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "verify_adapter", lambda _: None)
    (file := tmp_path / "judged.jsonl").write_text(
        json.dumps({"id": "r:1", "status": "too_long", "probabilities": None, "verdict": None})
    )
    with pytest.raises(SystemExit, match=r"row r:1 has no probabilities \(status too_long\)"):
        scale._compare(file, file, tmp_path)
