"""Which versions are installed, against those that the project names."""

import importlib.metadata
import importlib.util
import platform as system
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import pt_app
from pt_app.core.settings import Recipe
from pt_app.preflight.doctor.finding import Finding

CHECKOUT = Path(pt_app.__file__).parents[1]
ROCM_BITSANDBYTES = (0, 50)  # the first release whose 4-bit path is whole on AMD
_PIN = re.compile(r"([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)")


def check_packages(
    recipe: Recipe, folder: Path | None = None, *, no_4bit: bool = False
) -> Iterator[Finding]:
    """Python, the build of torch, the pinned versions, and packages that fetch by themselves."""
    yield _python()
    yield Finding("torch", "ok", f"{torch.__version__}, built for {_built_for()}")
    yield _pinned(recipe, folder or CHECKOUT, no_4bit)
    if torch.version.hip and not no_4bit:
        yield from _bitsandbytes_on_rocm()
    yield _kernels()


def _python() -> Finding:
    said = f"{system.python_version()} on {sys.platform}, {system.machine()}"
    if sys.platform == "darwin" and system.machine() == "x86_64":
        fix = "install a Python for Apple silicon (arm64): this one is for Intel and sees no GPU"
        return Finding("python", "warn", said, fix)
    if sys.platform == "darwin" and sys.version_info >= (3, 12):
        # jingyaogong/minimind PR 852
        said += "; loader workers would hang here, and the recipe for Apple uses none"
    return Finding("python", "ok", said)


def _built_for() -> str:
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return "Apple GPUs" if torch.backends.mps.is_built() else "the CPU alone"


def _pinned(recipe: Recipe, folder: Path, no_4bit: bool) -> Finding:
    """Compare with the requirements file of a checkout, else with what the package declares."""
    file = folder / f"requirements-{recipe}.txt"
    pins = pins_of(file) if file.is_file() else _declared()
    if not pins:
        return Finding("packages", "skip", "no checkout, and no pins in the installed package")
    if no_4bit:
        pins.pop("bitsandbytes", None)  # nothing else of the recipe's uses it
    missing, other = [], []
    for name, pinned in pins.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed.split("+")[0] != pinned:  # +cpu and the like name a build
            other.append(f"{name} {installed} (named: {pinned})")
    fix = f"pip install -r {file.name} (make install)"
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", fix)
    if other:
        return Finding("packages", "warn", f"not as named: {', '.join(other)}", fix)
    return Finding("packages", "ok", f"{len(pins)} as {file.name} names them")


def pins_of(file: Path) -> dict[str, str]:
    """Package -> version of the lines `name==version` of a file and of those that it reads."""
    pins: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            pins |= pins_of(file.parent / line[3:].strip())
        elif found := _PIN.match(line):
            pins[found[1]] = found[2]
    return pins


def _declared() -> dict[str, str]:
    try:
        lines = importlib.metadata.requires("pt-app") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {found[1]: found[2] for line in lines if (found := _PIN.match(line))}


def _bitsandbytes_on_rocm() -> Iterator[Finding]:
    """4 bits on AMD: garbage or NaN before 0.50 (bitsandbytes PRs 1856, 1885, 1887, 1979, 2012)."""
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return  # missing: said above
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < ROCM_BITSANDBYTES:
        fix = "pip install 'bitsandbytes>=0.50', or train with --no_4bit"
        yield Finding("bitsandbytes", "fail", f"{version} computes NF4 wrongly on AMD", fix)


def _kernels() -> Finding:
    """bitsandbytes fetches kernels from the hub as it is imported, where `kernels` is there."""
    if importlib.util.find_spec("kernels") is None:
        return Finding("hidden downloads", "ok", "none: the package kernels is not installed")
    said = "kernels is installed: bitsandbytes then fetches code from the hub as it is imported"
    return Finding("hidden downloads", "warn", said, "pip uninstall kernels")
