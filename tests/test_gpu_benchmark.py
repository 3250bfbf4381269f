"""The check of a rented GPU: it runs here in miniature, so that there only CUDA is new."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import results, wheels
from tests.conftest import ROOT

PARTS = [
    "bases",
    "doctor",
    "parity",
    "resume",
    "back",
    "training",
    "scoring",
    "attention",
    "estimate",
]


def write_wheel(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)
        lines = [f"{name},sha256=abc,1\n" for name in names]
        file.writestr("bitsandbytes-1.dist-info/RECORD", "".join(lines))


def test_wheel_keeps_only_the_libraries_that_the_gpu_or_the_cpu_loads(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    kept = ["bitsandbytes/nn.py", "bitsandbytes/libbitsandbytes_cuda130.so"]
    kept.append("bitsandbytes/libbitsandbytes_cpu.so")
    others = ("cuda118", "cuda132", "rocm715", "xpu2026")
    dropped = [f"bitsandbytes/libbitsandbytes_{name}.so" for name in others]
    write_wheel(wheel, [*kept, *dropped])
    wheels.slim(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.testzip() is None
        record = file.read("bitsandbytes-1.dist-info/RECORD").decode()
        assert file.namelist() == [*kept, "bitsandbytes-1.dist-info/RECORD"]
    assert [line.partition(",")[0] for line in record.splitlines()] == kept


def test_packages_to_send_are_pinned_with_hashes_in_the_lock() -> None:
    lines = wheels.pins(ROOT / "benchmarks/gpu/packages.txt", ROOT / "requirements-dev.lock")
    assert any(line.startswith("bitsandbytes==") for line in lines)
    assert all("--hash=sha256:" in line for line in lines)


def test_package_without_a_pin_is_named(tmp_path: Path) -> None:
    (tmp_path / "packages.txt").write_text("# known\nnot-there\n")
    with pytest.raises(SystemExit, match="no pin for not-there"):
        wheels.pins(tmp_path / "packages.txt", ROOT / "requirements-dev.lock")


@pytest.mark.parametrize(("code", "status"), [(0, "ok"), (1, "failed"), (124, "out of time")])
def test_results_of_a_cut_check_tell_what_ran(tmp_path: Path, code: int, status: str) -> None:
    file = tmp_path / "results.json"
    results.begin(file, ["one", "two"])
    (tmp_path / "one.json").write_text('{"rate": 3}')  # what it had found before it was cut
    (tmp_path / "one.log").write_text("the last words\n")
    results.end(file, "one", code, 7, tmp_path)
    found = json.loads(file.read_text())["parts"]
    assert found["one"]["status"] == status
    assert found["one"]["numbers"] == {"rate": 3}
    assert ("log" in found["one"]) == (code != 0)
    assert found["two"] == {"status": "not run"}


def run_check(out: Path, **env: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = subprocess.run(
        ["bash", "benchmarks/gpu/run.sh", "--smoke", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=2400,
    )
    return json.loads((out / "results.json").read_text())["parts"], done


def test_check_without_time_says_that_nothing_ran(tmp_path: Path) -> None:
    parts, done = run_check(tmp_path / "out", BUDGET="0")
    assert done.returncode == 1
    assert {part["status"] for part in parts.values()} == {"not run"}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(2700)
def test_check_runs_in_miniature_without_a_gpu(tmp_path: Path) -> None:
    parts, done = run_check(tmp_path / "out")
    said = done.stdout + done.stderr
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(PARTS, "ok"), (
        said
    )
    assert done.returncode == 0, said
    numbers = {name: part["numbers"] for name, part in parts.items()}
    for weights in ("nf4", "bf16"):
        assert numbers["training"][weights]["examples_per_second_over_trl"] > 0
        assert numbers["training"][weights]["peak_bytes_over_trl"] > 0
    assert numbers["estimate"]["nf4"]["said_bytes"] > 0
    assert numbers["estimate"]["nf4"]["measured_peak_bytes"] > 0
    assert numbers["parity"]["gpu, float32"]["gradient_relative_difference"] == 0
    assert numbers["resume"]["resumed"] == {"equal_bytes": True, "largest_difference": 0}
    assert numbers["resume"]["resumed_from_checkpoint"]
    assert numbers["attention"]["512"]["flex_difference"] < 1e-5
    assert numbers["scoring"]["judge, float32, over generate"] > 0
    assert numbers["back"]["verdicts_changed"] == 0
