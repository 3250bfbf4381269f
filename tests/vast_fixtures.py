"""What the tests of rented GPUs share: the command in this process, with small time limits."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from scripts.rented import limits, offers
from scripts.rented.record import Launch
from tests.rented_host import RentedHost
from tests.vast_server import ACCOUNT_KEY, Faults, VastServer, offer

SECRETS = {
    "VAST_API_KEY": ACCOUNT_KEY,
    "WANDB_API_KEY": "wandb-key-0123456789abcdef",
    "HF_TOKEN": "hf_0123456789abcdefghij",
    "OPENAI_API_KEY": "openai-key-0123456789abcdef",
}
# Small is what a test waits out. All else is wide, for a machine that stands still for a while: a
# test whose limit must run out sets it itself.
QUICK = limits.Limits(
    poll=0.1,
    states=dict.fromkeys(("", "created", "loading", "rebooting", "running"), 240.0),
    away=0.5,
    unheard=240.0,
    listed=120.0,
    copy=240.0,
    command=120.0,
    last_minutes=180.0,
)
# One hour on 82 TFLOPS at the utilisation that offers.py assumes.
FLOPS = 3600 * 82e12 * 0.25
ESTIMATE: dict[str, Any] = {
    "steps": 100,
    "flops": FLOPS,
    "tokens": 1,
    "memory": {"total": 8 * 2**30},
    "disk_bytes": 0.0,
    "base_bytes": 4e9,
    "seconds": None,
}


def until(what: Callable[[], object], seconds: float = 240) -> None:
    """Wait for something that comes about sooner or later, however slow the machine is."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def stand_in_estimate(estimate: dict[str, Any]) -> list[str]:
    """Give a command that prints what `judge estimate --json` would."""
    return [sys.executable, "-c", f"print({json.dumps(json.dumps(estimate))})"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small limits, keys in the environment, an estimate that needs no model."""
    for name, value in (SECRETS | {"HOME": str(tmp_path), "NETRC": "/dev/null"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "LIMITS", replace(QUICK, states=dict(QUICK.states)))
    monkeypatch.setattr(offers, "ESTIMATE", stand_in_estimate(ESTIMATE))


@pytest.fixture
def vast(quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[VastServer]:
    """Vast with three offers on three machines, cheapest first."""
    rows = [offer(11), offer(12, dph_total=0.5), offer(13, dph_total=0.6)]
    with VastServer(*rows, faults=Faults()) as server:
        monkeypatch.setenv("VAST_URL", server.url)
        yield server


@pytest.fixture
def rented_host(vast: VastServer) -> Iterator[RentedHost]:
    """A host that Vast's instances turn out to be."""
    with RentedHost() as made:
        vast.address, vast.home, vast.on_destroy = made.address, made.home, made.wipe
        yield made


def launch_words(rows: Path, out: Path, *more: str, host: RentedHost | None = None) -> list[str]:
    """Give the words of a launch on the tiny base; flags after "--" in `more` are the recipe's."""
    cut = more.index("--") if "--" in more else len(more)
    words = ["launch", "--yes", "--no_eval", *more[:cut]]
    if host is not None:
        words += ["--remote_dir", str(host.remote), "--setup", host.setup()]
    recipe = ["--model=tiny", f"--data_dir={rows}", f"--output_dir={out}", "--epochs=3"]
    return [*words, "--", *recipe, *more[cut + 1 :]]


def attempt(rows: Path, out: Path, *more: str) -> str:
    """Run a launch that must fail with a UserError; return its message."""
    from scripts.vast import main as launch

    with pytest.raises(UserError) as failed:
        launch(launch_words(rows, out, *more))
    return str(failed.value)


def a_launch(out: Path) -> Launch:
    """Make a launch's record as it is on disk before anything is created."""
    launch = Launch(
        label="judge-1",
        output_dir=str(out),
        recipe=[],
        flags=[],
        data_dir="data",
        image="",
        setup="",
        disk_gb=40,
        max_hours=1.0,
        max_dollars=1.0,
        remote_dir="/work",
        fetch_minutes=5.0,
        eval_at_home=False,
    )
    launch.folder.mkdir(parents=True)
    return launch
