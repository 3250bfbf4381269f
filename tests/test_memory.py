"""What a process may use of the machine's memory, read from a fake /proc and /sys."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pt_app.models.memory import memory_limit, physical_memory
from tests.conftest import ROOT

GIB = 2**30
V1_UNLIMITED = 9223372036854771712  # what version 1 says where nothing was set


@pytest.fixture(autouse=True)
def no_ulimit(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)


def machine(folder: Path, **files: str) -> Path:
    """A root folder of a machine with 64 GiB and these files (`__` stands for a slash)."""
    files = {"proc__meminfo": f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\n"} | files
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_without_limits_it_is_the_machines_memory(tmp_path: Path) -> None:
    root = machine(tmp_path, proc__self__cgroup="0::/\n", **{"sys__fs__cgroup__memory.max": "max"})
    assert memory_limit(root) == (64 * GIB, "physical memory")
    assert physical_memory(root) == 64 * GIB


def test_a_container_of_version_2_is_bound_by_its_group(tmp_path: Path) -> None:
    limit = {"sys__fs__cgroup__memory.max": f"{8 * GIB}\n"}
    root = machine(tmp_path, proc__self__cgroup="0::/\n", **limit)
    assert memory_limit(root) == (8 * GIB, "cgroup limit")


def test_a_jobs_limit_binds_although_it_stands_above_the_own_group(tmp_path: Path) -> None:
    groups = {
        "sys__fs__cgroup__slurm__job_7__memory.max": f"{16 * GIB}\n",
        "sys__fs__cgroup__slurm__job_7__step_0__memory.max": "max\n",
    }
    root = machine(tmp_path, proc__self__cgroup="0::/slurm/job_7/step_0\n", **groups)
    assert memory_limit(root) == (16 * GIB, "cgroup limit")


@pytest.mark.parametrize("folder", ["", "docker__abc__"])
def test_version_1_is_read_where_the_host_shows_it_and_where_it_does_not(
    tmp_path: Path, folder: str
) -> None:
    limit = {f"sys__fs__cgroup__memory__{folder}memory.limit_in_bytes": f"{4 * GIB}\n"}
    mine = "5:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/docker/abc\n"
    root = machine(tmp_path, proc__self__cgroup=mine, **limit)
    assert memory_limit(root) == (4 * GIB, "cgroup limit")


def test_version_1_without_a_limit_is_no_limit(tmp_path: Path) -> None:
    limit = {"sys__fs__cgroup__memory__memory.limit_in_bytes": f"{V1_UNLIMITED}\n"}
    root = machine(tmp_path, proc__self__cgroup="9:memory:/\n", **limit)
    assert memory_limit(root) == (64 * GIB, "physical memory")


def test_a_machine_without_proc_is_asked_itself(tmp_path: Path) -> None:
    size, why = memory_limit(tmp_path)
    assert size > 2**28
    assert why == "physical memory"


def test_ulimit_bounds_a_real_process() -> None:
    code = "from pt_app.models.memory import memory_limit; print(*memory_limit())"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 1000000 && {sys.executable} -c '{code}'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1024000000 address space limit (ulimit -v)\n", done.stderr
