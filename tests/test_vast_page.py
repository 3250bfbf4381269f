"""docs/VAST.md followed word by word, the trial with the real recipe on the tiny base."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("vastai", reason="pip install -r requirements-vast.txt")

from scripts.rented.record import all_launches
from tests.conftest import ROOT
from tests.contract import assert_adapter_contract
from tests.rented_host import RentedHost, why_not
from tests.test_vast import Hub
from tests.vast_fixtures import until
from tests.vast_server import VastServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
# scripts/vast.py with shorter waits, and an estimate that needs no model. Not as short as those of
# other tests: each look is an SSH connection, and takes a small machine's time from the training.
DRIVER = """
from pt_app.core.errors import exit_with
from scripts.rented import limits, offers
from tests.vast_fixtures import ESTIMATE, stand_in_estimate
from scripts.vast import main
limits.LIMITS = limits.Limits(poll=1.5, listed=10.0)
offers.ESTIMATE = stand_in_estimate(ESTIMATE)
exit_with(main)
"""


def commands() -> list[list[str]]:
    """The words of each call of scripts/vast.py on the page, in its order."""
    page = (ROOT / "docs" / "VAST.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    calls = [line.split()[2:] for line in lines if line.startswith("python scripts/vast.py ")]
    assert [words[0] for words in calls] == [
        *("launch", "offers", "launch"),
        *("list", "fetch", "attach", "destroy"),
    ], "the page has other commands than this test follows"
    return calls


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the project's data, and a hub that has the recipe's base."""
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    hub = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path
    hub.shutdown()
    hub.server_close()


def call(folder: Path, words: Sequence[str], *rental: str) -> subprocess.Popen[str]:
    """A command of the page, answered with a yes; `rental` are flags that name the test's host."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, words[0], *rental, *words[1:]],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if words[0] == "launch":
        assert process.stdin
        process.stdin.write("y\n")
        process.stdin.flush()
    return process


def done(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=1000)
    assert process.returncode == 0, output
    return output


def test_trial_trains_the_real_recipe_and_evaluates_at_home(
    vast: VastServer, rented_host: RentedHost, folder: Path
) -> None:
    python = f'#!/bin/bash\\nexec {sys.executable} "$@"\\n'
    setup = f"mkdir -p .venv/bin && printf '{python}' >.venv/bin/python && chmod +x .venv/bin/*"
    host = ["--remote_dir", str(rented_host.remote), "--setup", setup]
    output = done(call(folder, commands()[0], *host))
    assert vast.instances == {}
    (adapter,) = (folder / "adapters_eval").glob("*_final")
    assert_adapter_contract(adapter)
    assert (adapter / "evaluation" / "results.json").is_file(), output
    assert (adapter / "calibration.json").is_file()
    run = Path(str(adapter).removesuffix("_final"))
    assert list(run.glob("wandb/offline-run-*")), "its curves came home"
    assert f"judge sync {run.relative_to(folder)}" in output
    assert "step 4/4" in output


def test_the_other_commands_do_what_the_page_says(
    vast: VastServer, rented_host: RentedHost, folder: Path
) -> None:
    _, offers, launch, listed, fetch, attach, destroy = commands()
    assert "11         RTX 4090" in done(call(folder, offers))
    host = ["--remote_dir", str(rented_host.remote), "--setup", rented_host.setup()]
    words = [*launch[:1], "--no_eval", *launch[1:], "--epochs=100"]
    rented_host.hold(20)
    killed = call(folder, words, *host)
    until(lambda: any(rented_host.remote.glob("adapters_eval/*/checkpoint-20/complete.json")))
    killed.kill()
    killed.communicate()
    (label,) = [launch.label for launch in all_launches(folder / "adapters_eval")]
    assert f"{label}: instance 7000, running" in done(call(folder, listed))
    assert "copied back: adapters_eval/stand-in" in done(call(folder, fetch))
    rented_host.release()
    assert "adapter: adapters_eval/stand-in" in done(call(folder, attach))
    assert vast.instances == {}
    assert "is gone" in done(call(folder, [destroy[0], label]))
