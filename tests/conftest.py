"""What several tests share: a base, data, and a command line without network and keys."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.rows import write_rows
from tests.tiny_models import make_model_folder
from tests.vast_fixtures import quick, rented_host, vast  # noqa: F401  (fixtures)

ROOT = Path(__file__).parents[1]

# Hypothesis takes 0.2 s for an example, and a slow start, for faults: a machine can stand still.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# A shell starts what runs in its background with interrupts ignored, and processes pass that on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The files that take longest, longest first: workers that take a file at a time then end at about
# the same moment. Files that mostly wait, those of rented hosts and of SLURM, stand beside others.
LONGEST = (
    *("test_demo", "test_ranks", "test_vast_host", "test_kills", "test_slurm", "test_bundle"),
    *("test_estimate_measured", "test_gpu_benchmark", "test_tasks", "test_streams", "test_bench"),
    *("test_recipes", "test_base_model", "test_formats", "test_agree_reading", "test_repeats"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files; within a file, the order stays."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


def slow_case(*values: Any) -> Any:
    """Mark one case of a parametrized test as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


_modules_frozen = 0
gc.set_threshold(50_000, 20, 20)  # as in the product's processes


@pytest.fixture(autouse=True)
def cheap_garbage_collection() -> None:
    """Keep what the imports left out of later collections.

    A run collects garbage when it frees memory. Beside the modules of torch and transformers that
    takes a second each time, and a third of a short training.
    """
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 500:
        _modules_frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def process_wide_settings() -> None:
    """Undo what an earlier run in this process set: training on a CPU flushes denormal numbers."""
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")
    if gemm := sys.modules.get("pt_app.models.gemm"):
        gemm._earlier_choice = None


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests' own cache folder, for child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 base of width 64, the least that NF4 takes on a CPU."""
    folder = tmp_path_factory.mktemp("base") / "small-base"
    return make_model_folder(folder, hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 24, 4 and 12 random rows."""
    return write_rows(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def adapter(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge trained for a few steps, evaluated."""
    from pt_app.eval_model.judge_train_mps import main as train

    out = tmp_path_factory.mktemp("judge")
    flags = {"model": base, "data_dir": rows, "output_dir": out, "epochs": 1, "tracking": "off"}
    train([f"--{name}={value}" for name, value in flags.items()])
    (folder,) = out.glob("*_final")
    return folder


def without_network() -> list[str]:
    """The words to put before a command so that it has no network; none where that is barred."""
    unshare = shutil.which("unshare")
    if unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode == 0:
        return [unshare, "-rn"]
    return []


def run_offline(
    command: Sequence[str], cwd: Path = ROOT, timeout: float = 900, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with `command` without network, keys and terminal; `timeout` in seconds.

    Fails where the command leaves a process of its session running.
    """
    keys = ("WANDB_API_KEY", "HF_TOKEN", "WANDB_MODE")
    kept = {name: value for name, value in os.environ.items() if name not in keys}
    words = [*without_network(), sys.executable, *command]
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=kept | {"NETRC": os.devnull} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    end = time.monotonic() + 20  # what was killed takes a moment to go
    while (left := _living(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, f"still running: {left}"
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _living(session: int) -> list[list[str]]:
    """The command lines of a session's processes."""
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                lines.append(process.cmdline())
    return lines
