"""Collect the wheels for a machine without a network, and check that none is missing."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import pt_app
from pt_app.core.errors import UserError

CHECKOUT = Path(pt_app.__file__).parents[1]
SOURCES = ("pt_app", "pyproject.toml", "README.md", "LICENSE")
TAG = re.compile(r"manylinux_2_(\d+)_(\w+)|macosx_\d+_0_(arm64)")
LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}  # older names, PEP 600


@dataclass(frozen=True)
class Target:
    """The machine that a bundle is for: a platform tag of wheels ("": this one) and a Python."""

    platform: str = ""
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    def __post_init__(self) -> None:
        """Raise UserError for a tag or a version that no wheel can have."""
        if self.platform and not TAG.fullmatch(self.platform):
            raise UserError(
                f"--platform {self.platform}: give a wheel's tag, such as manylinux_2_28_x86_64, "
                "manylinux_2_28_aarch64 or macosx_14_0_arm64"
            )
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UserError(f"--python_version {self.python}: give it like 3.11")

    def pip_flags(self) -> list[str]:
        """Return the flags of `pip download` that choose the wheels of this machine."""
        flags = ["--only-binary=:all:", f"--python-version={self.python}"]
        if not self.platform:
            return flags
        return [*flags, "--implementation=cp", *(f"--platform={tag}" for tag in self._tags())]

    def _tags(self) -> list[str]:
        """Return all tags that run there: pip adds the older ones to macOS tags only."""
        minor, machine, _ = TAG.fullmatch(self.platform).groups()  # type: ignore[union-attr]
        if minor is None:
            return [self.platform]
        names = [(f"manylinux_2_{older}", LEGACY.get(older)) for older in range(int(minor), 4, -1)]
        return [f"{name}_{machine}" for name in (*chain(*names), "linux") if name]

    def environment(self) -> dict[str, str]:
        """Return the values of the markers of requirements there (PEP 508)."""
        values = {name: str(value) for name, value in default_environment().items()}
        values |= {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        if match := TAG.fullmatch(self.platform):
            system = "Darwin" if match[3] else "Linux"
            values |= {"platform_machine": match[2] or match[3], "platform_system": system}
            values |= {"sys_platform": system.lower(), "os_name": "posix"}
        return values


def read_requirements(file: Path) -> list[str]:
    """Return the requirements of a file and of those that it includes, without this project."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += read_requirements(file.parent / line.removeprefix("-r ").strip())
        elif line.strip() and not line.startswith(("#", "-e ")):
            lines.append(line.strip())
    return lines


def fetch_wheels(requirements: Sequence[str], folder: Path, target: Target) -> None:
    """Download all wheels that `requirements` need on `target` into `folder`, with pip.

    pip evaluates the markers of requirements for its own machine, so that a Mac omits the CUDA
    packages that torch needs on Linux: what is still missing is requested by name.
    """
    wanted = list(requirements)
    while wanted:
        flags = [*target.pip_flags(), "--dest", str(folder)]
        _pip("download", *flags, *wanted, remedy="or give a folder of wheels with --wheels")
        before, wanted = wanted, missing(requirements, folder, target)
        if wanted == before:
            raise UserError(f"pip does not fetch {wanted[0]}: give a folder of wheels (--wheels)")


def missing(requirements: Sequence[str], folder: Path, target: Target) -> list[str]:
    """Return the requirements, also those of wheels in `folder`, that no wheel in it satisfies."""
    wheels = {parse_wheel_filename(path.name)[0]: path for path in folder.glob("*.whl")}
    environment = target.environment()
    waiting = _holding([Requirement(line) for line in requirements], environment)
    seen: set[str] = set()
    lacking: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        requirement.marker = None  # it holds
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        wheel = wheels.get(canonicalize_name(requirement.name))
        version = parse_wheel_filename(wheel.name)[1] if wheel else ""
        if wheel and requirement.specifier.contains(version, prereleases=True):
            waiting += _holding(_needs(wheel), environment, requirement.extras)
        else:
            lacking.add(str(requirement))
    return sorted(lacking)


def _holding(
    requirements: Sequence[Requirement],
    environment: Mapping[str, str],
    extras: Collection[str] = (),
) -> list[Requirement]:
    """Return those whose marker holds in `environment`, with one of `extras` or without."""
    environments = [{**environment, "extra": extra} for extra in ("", *extras)]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments))
    ]


def _needs(wheel: Path) -> list[Requirement]:
    """Return what a wheel requires, by the metadata at the top level of its archive."""
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    return [Requirement(line) for line in distribution.requires or ()]


def build_own_wheel(root: Path, folder: Path) -> None:
    """Build the wheel of this project into `folder`; the same sources give the same bytes.

    It is built from a copy, since files of an earlier build in the checkout would be included.
    """
    copy = folder / "source"
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, copy / name)
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(copy), remedy="and try again")
    shutil.rmtree(copy)


def _pip(*words: str, remedy: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    env = os.environ | {"SOURCE_DATE_EPOCH": "315532800"}  # 1980, the first year of zip files
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        said = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip()[-200:]
        raise UserError(f"pip {words[0]}: {said}: fix it, {remedy}")
