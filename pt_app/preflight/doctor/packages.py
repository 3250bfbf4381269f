"""Compare the installed versions with those that the project pins."""

import importlib.metadata
import importlib.util
import platform as system
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from packaging.version import Version

import pt_app
from pt_app.core.settings import Recipe
from pt_app.preflight.bundle.wheels import read_requirements
from pt_app.preflight.doctor.finding import Finding

CHECKOUT = Path(pt_app.__file__).parents[1]
ROCM_BITSANDBYTES = Version("0.50")  # the first release whose 4 bits work on AMD
_PIN = re.compile(r"([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)")


def check_packages(
    recipe: Recipe, folder: Path | None = None, *, no_4bit: bool = False
) -> Iterator[Finding]:
    """Check Python, the build of torch, the pinned versions, and packages that download code."""
    yield _python()
    yield Finding("torch", "ok", f"{torch.__version__}, built for {_built_for()}")
    yield _pinned(recipe, folder or CHECKOUT, no_4bit)
    if torch.version.hip and not no_4bit:
        yield from _bitsandbytes_on_rocm()
    # bitsandbytes downloads kernels from the hub when it is imported, if `kernels` is installed.
    absent = importlib.util.find_spec("kernels") is None
    said = "none: the package kernels is not installed"
    if not absent:
        said = "kernels is installed: bitsandbytes downloads code from the hub when imported"
    yield Finding.of("hidden downloads", absent, said, "pip uninstall kernels", "warn")


def _python() -> Finding:
    said = f"{system.python_version()} on {sys.platform}, {system.machine()}"
    on_mac = sys.platform == "darwin"
    if on_mac and sys.version_info >= (3, 12):
        # jingyaogong/minimind PR 852
        said += "; loader workers would hang here, and the recipe for Apple uses none"
    fix = "install a Python for Apple silicon (arm64): this one is for Intel and sees no GPU"
    return Finding.of("python", not on_mac or system.machine() != "x86_64", said, fix, "warn")


def _built_for() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return "Apple GPUs" if torch.backends.mps.is_built() else "CPUs only"


def _pinned(recipe: Recipe, folder: Path, no_4bit: bool) -> Finding:
    """Compare with the requirements file of a checkout, else with what the package declares."""
    file = folder / f"requirements-{recipe}.txt"
    pins = pins_of(read_requirements(file) if file.is_file() else _declared())
    if not pins:
        return Finding("packages", "skip", "no checkout, and no pins in the installed package")
    if no_4bit:
        pins.pop("bitsandbytes", None)  # the recipe uses it for 4 bits only
    installed = {name: _version(name) for name in pins}
    fix = f"pip install -r {file.name} (make install)"
    if missing := [name for name, version in installed.items() if version is None]:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", fix)
    other = [
        f"{name} {version} (pinned: {pins[name]})"
        for name, version in installed.items()
        if version and version.split("+")[0] != pins[name]  # +cpu and the like name a build
    ]
    said = f"{len(pins)} as pinned in {file.name}"
    if other:
        said = f"not as pinned: {', '.join(other)}"
    return Finding.of("packages", not other, said, fix, "warn")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pins_of(requirements: Iterable[str]) -> dict[str, str]:
    """Return package -> version of the requirements that pin one."""
    return {pin[1]: pin[2] for line in requirements if (pin := _PIN.match(line))}


def _declared() -> list[str]:
    try:
        return importlib.metadata.requires("pt-app") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _bitsandbytes_on_rocm() -> Iterator[Finding]:
    """Check 4 bits on AMD: NaN or garbage before 0.50 (PRs 1856, 1885, 1887, 1979, 2012)."""
    version = _version("bitsandbytes")
    if version is None:
        return  # reported as missing
    if Version(version) < ROCM_BITSANDBYTES:
        fix = "pip install 'bitsandbytes>=0.50', or train with --no_4bit"
        yield Finding("bitsandbytes", "fail", f"{version} computes NF4 wrongly on AMD", fix)
