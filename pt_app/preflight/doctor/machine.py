"""Check the device of a run and its limits: drivers, formats, memory."""

import os
import platform as system
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pt_app.core.settings import Recipe
from pt_app.models import contention, launcher
from pt_app.models.memory import ROOT, memory_limit
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.finding import Finding, Status, one_line, run_check

GIB = 2**30
START = 'use the command that the page "Get started" of pytorch.org shows for'
DRIVERS = {"NVIDIA": "proc/driver/nvidia/version", "AMD": "sys/module/amdgpu/version"}
# Chips of a family run each other's code, but AMD supports only those that torch names.
ROCM_FAMILIES = {"gfx103": "10.3.0", "gfx110": "11.0.0", "gfx115": "11.5.1"}


def check_machine(recipe: Recipe, platform: Platform, root: Path = ROOT) -> Iterator[Finding]:
    """Check the chosen device, what it lacks, and how much memory there is."""
    yield Finding("device", "ok", f"{platform.hardware}; {platform.reason}")
    yield from run_check("launcher", _check_launcher)
    for maker, name in DRIVERS.items():
        if (root / name).is_file():
            version = re.search(r"\d+\.[\d.]+", (root / name).read_text(encoding="utf-8"))
            said = f"{maker} {version[0] if version else 'without a version'}"
            yield Finding("driver", "ok", said)
    yield from _unseen(recipe, platform, root)
    if platform.device == "cuda":
        yield from _gpu()
    if platform.device == "mps":
        yield from _apple()
    yield _cpu_threads()
    limit, why = memory_limit(root)
    yield Finding("memory", "ok", f"{limit / GIB:.1f} GiB for this process: {why}")


def _check_launcher() -> Iterator[Finding]:
    """Check the variables of launchers, which stop a run if they do not fit together."""
    launcher.check()
    yield from ()


def _cpu_threads() -> Finding:
    """Report how the threads of the CPU wait, alone and beside other programs."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    variables = "".join(f"; {name}={os.environ[name]}" for name in names if name in os.environ)
    why = contention.why_not_watched()
    wait = "they sleep while other programs use the CPU" if why is None else f"not watched: {why}"
    return Finding("CPU threads", "ok", f"{torch.get_num_threads()}; {wait}{variables}")


def _unseen(recipe: Recipe, platform: Platform, root: Path) -> Iterator[Finding]:
    """Report a GPU that the system has but torch does not see."""
    if not platform.on_cpu:
        return
    status: Status = "fail" if recipe == "cuda" else "warn"
    if not torch.cuda.is_available():
        if (root / DRIVERS["NVIDIA"]).exists():
            fix = f"{START} CUDA; if this is one, update the driver"
            yield Finding("NVIDIA GPU", status, f"present, unseen by torch: {_why()}", fix)
        kfd = root / "dev/kfd"
        if kfd.exists():
            fix = f"make install-rocm: {START} ROCm"
            if not os.access(kfd, os.R_OK | os.W_OK):
                fix = "sudo usermod -aG render,video $USER, and log in again, to open /dev/kfd"
            yield Finding("AMD GPU", status, f"present, unseen by torch: {_why()}", fix)
    if recipe == "mps" and sys.platform == "darwin" and system.machine() == "arm64":
        fix = "make install-mps, on macOS 14 or newer"
        yield Finding("Apple GPU", "fail", "torch does not see it", fix)


def _why() -> str:
    """Return the error of torch when it must use a GPU; it names a driver that is too old."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return one_line(error, 160)
    return "it gives no reason"


def _gpu() -> Iterator[Finding]:
    """Check whether torch has code for a GPU, native bfloat16, and its free memory."""
    properties: Any = torch.cuda.get_device_properties(0)
    built: list[str] = torch.cuda.get_arch_list()
    if torch.version.hip:
        yield _rocm_chip(properties.gcnArchName.split(":")[0], built)
    else:
        yield _cuda_chip(properties.major, properties.minor, built)
    # A T4 reports bfloat16 and emulates it several times slower, so ask for the native format.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    said = "native" if native else "emulated at best: the recipe computes in float16"
    fix = "nothing to do; GPUs from Ampere on have it"
    yield Finding.of("bfloat16", native, said, fix, "warn")
    free, total = torch.cuda.mem_get_info(0)
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    fix = "see which processes hold the rest (nvidia-smi, rocm-smi), or set CUDA_VISIBLE_DEVICES"
    yield Finding.of("GPU memory", free >= 0.8 * total, said, fix, "warn")


def _cuda_chip(major: int, minor: int, built: list[str]) -> Finding:
    """Check whether a build in this torch runs on a chip of this compute capability."""

    def runs(build: str) -> bool:
        # "sm" is code for one generation; "compute" is compiled at the start for any later chip.
        kind, _, number = build.partition("_")
        made_for = int(number.rstrip("af"))
        return made_for <= 10 * major + minor and (kind != "sm" or made_for // 10 == major)

    said = f"compute capability {major}.{minor}"
    right = any(map(runs, built))
    if not right:
        said += f", and this torch has code for {', '.join(built) or 'none'}"
    return Finding.of("GPU code", right, said, f"{START} an older CUDA (GPUs before Turing: 12.6)")


def _rocm_chip(chip: str, built: list[str]) -> Finding:
    """Check whether this torch has code for an AMD chip."""
    forced = os.environ.get("HSA_OVERRIDE_GFX_VERSION")
    said = chip + (f", by HSA_OVERRIDE_GFX_VERSION={forced}" if forced else "")
    if chip in built:
        return Finding("GPU code", "ok", said)
    fix = "use a GPU that ROCm supports"
    if family := ROCM_FAMILIES.get(chip[:6]):
        # pytorch issues 164346, 132570; a Radeon 780M hung with it (ROCm/TheRock issue 1184).
        fix = f"try HSA_OVERRIDE_GFX_VERSION={family} judge doctor; AMD does not support it"
    return Finding("GPU code", "fail", f"{said}: this torch has code for {', '.join(built)}", fix)


def _apple() -> Iterator[Finding]:
    """Check macOS, and the two variables that change what happens at a limit."""
    version = system.mac_ver()[0]
    fix = "update macOS to 14 or newer: transformers needs it for bfloat16"
    yield Finding.of("macOS", int(version.split(".")[0] or 0) >= 14, version, fix)
    fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
    effect = "is computed on the CPU, slowly" if fallback else "stops the run"
    said = f"an operation that the GPU lacks {effect} (PYTORCH_ENABLE_MPS_FALLBACK)"
    yield Finding("fallback", "ok", said)
    ratio = float(os.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO", 1.7))
    said = "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0: no limit, and the whole machine may stall"
    if ratio:
        limit = ratio * torch.mps.recommended_max_memory() / GIB
        said = f"torch stops at {limit:.1f} GiB; macOS swaps before that"
    fix = "unset PYTORCH_MPS_HIGH_WATERMARK_RATIO"
    yield Finding.of("GPU memory", ratio != 0, said, fix, "warn")
