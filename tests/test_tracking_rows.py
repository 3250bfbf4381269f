"""What may leave the machine: rows, settings, metrics and the files of an adapter."""

import json
from pathlib import Path

import pytest

from pt_app.core.results import Results
from pt_app.tracking.tracker import adapter_artifact, clean_settings, summarize
from pt_app.tracking.weave_rows import as_row, write_rows
from tests.tracking_server import TEXTS, prediction

KEY = "5ecret" + "0" * 34


def test_rows_hold_texts_only_if_asked() -> None:
    plain, full = as_row(prediction(0), log_texts=False), as_row(prediction(0), log_texts=True)
    assert not any(text in json.dumps(plain) for text in TEXTS)
    assert all(text in json.dumps(full) for text in TEXTS)
    assert plain["inputs"]["label"] == 7
    assert plain["output"]["verdict"] == 6
    assert plain["output"]["probabilities"] == {"6": 0.75, "7": 0.25}
    assert plain["scores"] == {"parsed": True, "exact": False, "absolute_error": 1}


def test_a_verdict_that_did_not_parse_is_counted_as_such() -> None:
    row = as_row({**prediction(0), "verdict": 7, "greedy": None}, False)
    assert row["output"]["greedy"] is None
    assert row["scores"] == {"parsed": False, "exact": True, "absolute_error": 0}


def test_rows_are_json_even_where_a_number_is_none(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps({**prediction(0), "verdict_mass": float("nan")}) + "\n")
    write_rows(tmp_path / "rows", {"project": "judge", "loss": float("inf")}, file, False)
    lines = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert lines[0]["loss"] is None
    assert lines[1]["output"]["verdict_mass"] is None


def test_settings_leave_without_secrets_and_paths() -> None:
    settings = {
        "lr": 2e-4,
        "max_tokens": 64,
        "hub_token": "hf_1",
        "OPENAI_API_KEY": "sk-1",
        "note": f"with {KEY} in it",
        "output_dir": Path("/home/someone/runs/one"),
        "nested": {"password": "p", "targets": ["q_proj", "/home/someone/x"]},
    }
    assert clean_settings(settings, KEY) == {
        "lr": 2e-4,
        "max_tokens": 64,
        "note": "with *** in it",
        "output_dir": "one",
        "nested": {"targets": ["q_proj", "x"]},
    }


def test_metrics_go_with_their_interval_and_n() -> None:
    metrics = {"mae": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 300}}
    model = {"name": "adapter", "metrics": metrics, "parse_failures": 2}
    assert summarize(Results.model_validate({"models": [model]})) == {
        "adapter": {"mae": 0.5, "mae_low": 0.4, "mae_high": 0.6, "mae_n": 300, "parse_failures": 2}
    }


@pytest.mark.parametrize("texts", [False, True])
def test_the_artifact_leaves_out_files_that_quote_rows(tmp_path: Path, texts: bool) -> None:
    (tmp_path / "evaluation").mkdir()
    for name in ("adapter_model.safetensors", "evaluation/predictions.jsonl"):
        (tmp_path / name).write_text("content")
    artifact = adapter_artifact("tiny judge", tmp_path, texts)
    quoting = {"evaluation/predictions.jsonl"} if texts else set()
    assert set(artifact.manifest.entries) == {"adapter_model.safetensors"} | quoting
    assert artifact.name.startswith("tiny-judge")
