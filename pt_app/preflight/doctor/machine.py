"""The device of a run and what bounds it: drivers, formats, memory."""

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
from pt_app.preflight.doctor.finding import Finding, found_by, one_line

GIB = 2**30
START = 'take the command that the page "Get started" of pytorch.org shows for'
# Chips of one family understand each other's code; AMD supports only those that torch names.
ROCM_FAMILIES = {"gfx103": "10.3.0", "gfx110": "11.0.0", "gfx115": "11.5.1"}


def check_machine(recipe: Recipe, platform: Platform, root: Path = ROOT) -> Iterator[Finding]:
    """The device that was chosen and why, what it lacks, and how much memory there is."""
    yield Finding("device", "ok", f"{platform.hardware}; {platform.reason}")
    yield from found_by("launcher", _launcher)
    yield from _drivers(root)
    yield from _unseen(recipe, platform, root)
    if platform.device == "cuda":
        yield from _gpu()
    if platform.device == "mps":
        yield from _apple()
    yield _waiting_threads()
    limit, why = memory_limit(root)
    yield Finding("memory", "ok", f"{limit / GIB:.1f} GiB for this process: {why}")


def _waiting_threads() -> Finding:
    """How the CPU's threads wait for each other, alone and beside other programs."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    asked = "".join(f"; {name}={os.environ[name]}" for name in names if name in os.environ)
    why = contention.why_not_watched()
    way = "they sleep while other programs use the CPU" if why is None else f"not watched: {why}"
    return Finding("CPU threads", "ok", f"{torch.get_num_threads()}; {way}{asked}")


def _launcher() -> Iterator[Finding]:
    """Variables of a launcher that a run would stop on."""
    launcher.check()
    yield from ()


def _drivers(root: Path) -> Iterator[Finding]:
    for maker, name in (("NVIDIA", "proc/driver/nvidia/version"), ("AMD", "sys/module/amdgpu")):
        file = root / name / "version" if maker == "AMD" else root / name
        if file.is_file():
            found = re.search(r"\d+\.[\d.]+", file.read_text(encoding="utf-8"))
            yield Finding("driver", "ok", f"{maker} {found[0] if found else 'without a version'}")


def _unseen(recipe: Recipe, platform: Platform, root: Path) -> Iterator[Finding]:
    """A GPU that the system has and torch does not see."""
    if not platform.on_cpu:
        return
    status: Any = "fail" if recipe == "cuda" else "warn"
    if (root / "proc/driver/nvidia/version").exists() and not torch.cuda.is_available():
        fix = f"{START} CUDA; if this is one, renew the driver"
        yield Finding("NVIDIA GPU", status, f"there, but torch does not see it: {_why()}", fix)
    kfd = root / "dev/kfd"
    if kfd.exists() and not torch.cuda.is_available():
        fix = f"make install-rocm: {START} ROCm"
        if not os.access(kfd, os.R_OK | os.W_OK):
            fix = "sudo usermod -aG render,video $USER, and log in again: /dev/kfd is closed to you"
        yield Finding("AMD GPU", status, f"there, but torch does not see it: {_why()}", fix)
    if recipe == "mps" and sys.platform == "darwin" and system.machine() == "arm64":
        fix = "make install-mps, on macOS 14 or newer"
        yield Finding("Apple GPU", "fail", "torch does not see it", fix)


def _why() -> str:
    """Give what torch says when it is made to use a GPU; older drivers are named there."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return one_line(error, 160)
    return "it says no reason"


def _gpu() -> Iterator[Finding]:
    """NVIDIA or AMD: whether torch has code for it, real bfloat16, memory that others hold."""
    properties: Any = torch.cuda.get_device_properties(0)
    built: list[str] = torch.cuda.get_arch_list()
    if torch.version.hip:
        yield _rocm_chip(properties.gcnArchName.split(":")[0], built)
    else:
        yield _cuda_chip(properties.major, properties.minor, built)
    # A T4 says that it has bfloat16, and emulates it several times slower: ask for the real one.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("bfloat16", "ok", "the GPU's own")
    else:
        said = "emulated at best: the recipe computes in float16"
        yield Finding("bfloat16", "warn", said, "nothing to do; Ampere and newer GPUs have it")
    free, total = torch.cuda.mem_get_info(0)
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < 0.8 * total:
        fix = "look who holds the rest (nvidia-smi, rocm-smi), or choose CUDA_VISIBLE_DEVICES"
        yield Finding("GPU memory", "warn", said, fix)
    else:
        yield Finding("GPU memory", "ok", said)


def _cuda_chip(major: int, minor: int, built: list[str]) -> Finding:
    """Whether one of the builds in this torch runs on a chip of this compute capability."""
    chip = 10 * major + minor
    said = f"compute capability {major}.{minor}"
    for kind, number in (name.split("_") for name in built):
        made_for = int(number.rstrip("af"))
        # "sm" is code for one generation, "compute" is compiled at the start for any later chip.
        if made_for > chip or (kind == "sm" and made_for // 10 != major):
            continue
        return Finding("GPU code", "ok", said)
    said += f", and this torch has code for {', '.join(built) or 'none'}"
    return Finding("GPU code", "fail", said, f"{START} an older CUDA (GPUs before Turing: 12.6)")


def _rocm_chip(chip: str, built: list[str]) -> Finding:
    forced = os.environ.get("HSA_OVERRIDE_GFX_VERSION")
    said = chip + (f", by HSA_OVERRIDE_GFX_VERSION={forced}" if forced else "")
    if chip in built:
        return Finding("GPU code", "ok", said)
    like = ROCM_FAMILIES.get(chip[:6])
    fix = "use a GPU that ROCm supports"
    if like:
        # pytorch issues 164346, 132570; it hung a Radeon 780M (ROCm/TheRock issue 1184).
        fix = f"try HSA_OVERRIDE_GFX_VERSION={like} judge doctor; AMD does not support it"
    return Finding("GPU code", "fail", f"{said}: this torch has code for {', '.join(built)}", fix)


def _apple() -> Iterator[Finding]:
    """Apple: macOS, and the two switches that change what happens at a limit."""
    version = system.mac_ver()[0]
    old = int(version.split(".")[0] or 0) < 14
    fix = "renew macOS to 14 or newer: transformers takes bfloat16 from there on" if old else ""
    yield Finding("macOS", "fail" if old else "ok", version, fix)
    back = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
    what = "is computed on the CPU, slowly" if back else "stops the run"
    said = f"an operation that the GPU lacks {what} (PYTORCH_ENABLE_MPS_FALLBACK)"
    yield Finding("fallback", "ok", said)
    ratio = os.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO")
    if ratio is not None and float(ratio) == 0:
        said = "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0: no limit, and the whole machine may stand still"
        yield Finding("GPU memory", "warn", said, "unset PYTORCH_MPS_HIGH_WATERMARK_RATIO")
        return
    most = float(ratio or 1.7) * torch.mps.recommended_max_memory() / GIB
    yield Finding("GPU memory", "ok", f"torch stops at {most:.1f} GiB; macOS swaps before that")
