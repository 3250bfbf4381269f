"""Check the machine of a run: its packages, its device with drivers and formats, its memory."""

import importlib.metadata
import importlib.util
import os
import platform as system
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from pt_app.core.settings import Recipe
from pt_app.models import contention, launcher
from pt_app.models.memory import ROOT, memory_limit
from pt_app.models.platforms import Platform
from pt_app.preflight.doctor.finding import Finding, Status, one_line, run_check
from pt_app.preflight.wheels import CHECKOUT, read_requirements

GIB = 2**30
ROCM_BITSANDBYTES = Version("0.50")  # the first release whose 4 bits work on AMD
DRIVERS = {"NVIDIA": "proc/driver/nvidia/version", "AMD": "sys/module/amdgpu/version"}
# Chips of a family run each other's code, but AMD supports only those that torch names.
ROCM_FAMILIES = {"gfx103": "10.3.0", "gfx110": "11.0.0", "gfx115": "11.5.1"}


def check_packages(
    recipe: Recipe, folder: Path | None = None, *, no_4bit: bool = False
) -> Iterator[Finding]:
    """Check Python, the build of torch, the pinned versions, and packages that download code."""
    yield _python()
    yield Finding("torch", "ok", f"{torch.__version__}, built for {_built_for()}")
    yield _pinned(recipe, folder or CHECKOUT, no_4bit)
    version = _version("bitsandbytes")
    if torch.version.hip and not no_4bit and version and Version(version) < ROCM_BITSANDBYTES:
        # NaN or garbage: bitsandbytes PRs 1856, 1885, 1887, 1979, 2012
        yield Finding.wrong("bitsandbytes", f"{version} computes NF4 wrongly on AMD")
    # bitsandbytes downloads kernels from the hub when it is imported, if `kernels` is installed.
    if importlib.util.find_spec("kernels") is None:
        yield Finding("hidden downloads", "ok", "none: the package kernels is not installed")
    else:
        said = "kernels is installed: bitsandbytes downloads code from the hub when imported"
        yield Finding.wrong("hidden downloads", said, "warn")


def _python() -> Finding:
    said = f"{system.python_version()} on {sys.platform}, {system.machine()}"
    on_mac = sys.platform == "darwin"
    if on_mac and sys.version_info >= (3, 12):
        # jingyaogong/minimind PR 852
        said += "; loader workers would hang here, and the recipe for Apple uses none"
    return Finding.of("python", not on_mac or system.machine() != "x86_64", said, "warn")


def _built_for() -> str:
    if torch.version.hip or torch.version.cuda:
        return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return "Apple GPUs" if torch.backends.mps.is_built() else "CPUs only"


def _pinned(recipe: Recipe, folder: Path, no_4bit: bool) -> Finding:
    """Compare the installed versions with the requirements file of a checkout."""
    file = folder / f"requirements-{recipe}.txt"
    if not file.is_file():
        return Finding("packages", "skip", f"no {file.name} beside the package names versions")
    pins = pins_of(read_requirements(file))
    if no_4bit:
        pins.pop("bitsandbytes", None)  # the recipe uses it for 4 bits only
    versions = {name: _version(name) for name in pins}
    if missing := [name for name, version in versions.items() if version is None]:
        return Finding.wrong("packages", f"missing: {', '.join(missing)}", file=file.name)
    other = [
        f"{name} {version} (pinned: {pins[name]})"
        for name, version in versions.items()
        if str(version).split("+")[0] != pins[name]  # +cpu and the like name a build
    ]
    said = f"not as pinned: {', '.join(other)}" if other else f"{len(pins)} as in {file.name}"
    return Finding.of("packages", not other, said, "warn", file=file.name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pins_of(lines: Iterable[str]) -> dict[str, str]:
    """Return package -> version of the requirements that pin one."""
    requirements = map(Requirement, lines)
    return {r.name: s.version for r in requirements for s in r.specifier if s.operator == "=="}


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
    wait = f"not watched: {why}" if why else "they sleep while other programs use the CPU"
    return Finding("CPU threads", "ok", f"{torch.get_num_threads()}; {wait}{variables}")


def _unseen(recipe: Recipe, platform: Platform, root: Path) -> Iterator[Finding]:
    """Report a GPU that the system has but torch does not see."""
    if not platform.on_cpu:
        return
    status: Status = "fail" if recipe == "cuda" else "warn"
    kfd, apple = root / "dev/kfd", sys.platform == "darwin" and system.machine() == "arm64"
    if not torch.cuda.is_available():
        if (root / DRIVERS["NVIDIA"]).exists():
            yield Finding.wrong("NVIDIA GPU", f"present, unseen by torch: {_why()}", status)
        if kfd.exists():
            case = "" if os.access(kfd, os.R_OK | os.W_OK) else "AMD GPU without permission"
            yield Finding.wrong("AMD GPU", f"present, unseen by torch: {_why()}", status, fix=case)
    if recipe == "mps" and apple:
        yield Finding.wrong("Apple GPU", "torch does not see it")


def _why() -> str:
    """Return the error of torch when it must use a GPU; it names a driver that is too old."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return one_line(error)
    return "it gives no reason"


def _gpu() -> Iterator[Finding]:
    """Check whether torch has code for a GPU, native bfloat16, and its free memory."""
    properties = torch.cuda.get_device_properties(0)
    built = torch.cuda.get_arch_list()
    if torch.version.hip:
        yield _rocm_chip(properties.gcnArchName.split(":")[0], built)
    else:
        yield _cuda_chip(properties.major, properties.minor, built)
    # A T4 reports bfloat16 and emulates it several times slower, so ask for the native format.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    said = "native" if native else "emulated at best: the recipe computes in float16"
    yield Finding.of("bfloat16", native, said, "warn")
    free, total = torch.cuda.mem_get_info(0)
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    yield Finding.of("GPU memory", free >= 0.8 * total, said, "warn")


def _cuda_chip(major: int, minor: int, built: Sequence[str]) -> Finding:
    """Check whether a build in this torch runs on a chip of this compute capability."""

    def runs(build: str) -> bool:
        # "sm" is code for one generation; "compute" is compiled at the start for any later chip.
        kind, _, number = build.partition("_")
        made_for = int(number.rstrip("af"))
        return made_for <= 10 * major + minor and (kind != "sm" or made_for // 10 == major)

    said = f"compute capability {major}.{minor}; this torch has code for {', '.join(built)}"
    return Finding.of("GPU code", any(map(runs, built)), said)


def _rocm_chip(chip: str, built: Sequence[str]) -> Finding:
    """Check whether this torch has code for an AMD chip."""
    forced = os.environ.get("HSA_OVERRIDE_GFX_VERSION")
    said = chip + (f", by HSA_OVERRIDE_GFX_VERSION={forced}" if forced else "")
    if chip in built:
        return Finding("GPU code", "ok", said)
    said += f": this torch has code for {', '.join(built)}"
    family = ROCM_FAMILIES.get(chip[:6])
    case = f"GPU code of {'a' if family else 'no'} family"
    return Finding.wrong("GPU code", said, fix=case, family=family)


def _apple() -> Iterator[Finding]:
    """Check macOS, and the two variables that change what happens at a limit."""
    version = system.mac_ver()[0]
    yield Finding.of("macOS", int(version.split(".")[0] or 0) >= 14, version)
    fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
    effect = "is computed on the CPU, slowly" if fallback else "stops the run"
    said = f"an operation that the GPU lacks {effect} (PYTORCH_ENABLE_MPS_FALLBACK)"
    yield Finding("fallback", "ok", said)
    ratio = float(os.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO", 1.7))
    said = "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0: no limit, and the whole machine may stall"
    if ratio:
        limit = ratio * torch.mps.recommended_max_memory() / GIB
        said = f"torch stops at {limit:.1f} GiB; macOS swaps before that"
    yield Finding.of("GPU memory", ratio != 0, said, "warn", fix="memory without a limit")
