"""`judge prefetch`: what it fetches is what a run reads, and it is read with the hub off."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pt_app.core.errors import UserError
from pt_app.preflight.prefetch import verify
from tests.conftest import ROOT, run_offline, without_network
from tests.hub_server import hub_with

pytestmark = pytest.mark.slow
NAME = "some/judge-base"


def prefetch(config: Path, cache: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    words = ["-m", "pt_app.cli", "prefetch", "--recipe", "mps", "--config", str(config)]
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def config(rows: Path, tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(f"model: {NAME}\ndata_dir: {rows}\noutput_dir: {tmp_path / 'out'}\n")
    return file


def test_fetched_base_is_found_by_a_run_without_a_network(
    base: Path, config: Path, tmp_path: Path
) -> None:
    with hub_with(NAME, base) as (endpoint, asked):
        done = prefetch(config, tmp_path / "cache", endpoint)
    assert done.returncode == 0, done.stderr
    assert any(path.endswith("model.safetensors") for path in asked)
    assert re.search(rf"{NAME}: read with the hub off: [\d,]+ parameters, 24 rows", done.stdout)
    if not without_network():
        pytest.skip("network namespaces are barred on this machine: the run had its network")
    recipe = ["pt_app/eval_model/judge_train_mps.py", "--config", str(config)]
    run = run_offline(
        [*recipe, "--epochs=1", "--skip_eval", "--tracking=off"],
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "cache"),
    )
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "out").glob("judge-base-judge-1ep-*_final"))


def test_what_an_earlier_fetch_left_undone_is_fetched(
    base: Path, config: Path, tmp_path: Path
) -> None:
    with hub_with(NAME, base) as (endpoint, _):
        assert prefetch(config, tmp_path / "cache", endpoint).returncode == 0
        (tokenizer,) = (tmp_path / "cache").glob("hub/*/snapshots/*/tokenizer.json")
        tokenizer.resolve().unlink()
        tokenizer.unlink()
        assert prefetch(config, tmp_path / "cache", endpoint).returncode == 0
    assert tokenizer.exists()


def test_damaged_weights_are_found_before_any_job_is_submitted(
    base: Path, config: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in base.iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(
            content[:-1000] if path.suffix == ".safetensors" else content
        )
    with hub_with(NAME, broken) as (endpoint, _):
        done = prefetch(config, tmp_path / "cache", endpoint)
    assert done.returncode == 2
    assert re.search(r"error: .*model.safetensors is truncated.*bytes", done.stderr)
    assert "Traceback" not in done.stderr


def test_data_with_a_fault_stops_before_the_hub_is_asked(
    base: Path, config: Path, tmp_path: Path
) -> None:
    config.write_text(f"model: {NAME}\ndata_dir: {tmp_path / 'none'}\n")
    with hub_with(NAME, base) as (endpoint, asked):
        done = prefetch(config, tmp_path / "cache", endpoint)
    assert done.returncode == 2
    assert "data folder" in done.stderr
    assert not asked


def test_bitsandbytes_that_cannot_be_imported_is_found_before_any_job_is_submitted(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # its import fails
    words = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"4 bits needs bitsandbytes .*train with no_4bit: true"):
        verify("cuda", words)


def test_cached_base_is_checked_where_the_hub_is_gone(
    base: Path, config: Path, tmp_path: Path
) -> None:
    with hub_with(NAME, base) as (endpoint, _):
        assert prefetch(config, tmp_path / "cache", endpoint).returncode == 0
    done = prefetch(config, tmp_path / "cache", endpoint)
    assert done.returncode == 0, done.stderr
    assert "what the cache holds is checked instead" in done.stdout
