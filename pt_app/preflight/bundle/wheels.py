"""Wheels for a machine that has no network: fetched for it, and checked to be all that it needs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from pt_app.core.errors import UserError
from pt_app.preflight.bundle.target import Target

SOURCES = ("pt_app", "pyproject.toml", "README.md", "LICENSE")


def read_requirements(file: Path) -> list[str]:
    """The lines of a requirements file and of those it reads, without this project itself."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            lines += read_requirements(file.parent / line.removeprefix("-r ").strip())
        elif line.strip() and not line.startswith(("#", "-e ")):
            lines.append(line.strip())
    return lines


def fetch_wheels(requirements: Sequence[str], folder: Path, target: Target) -> None:
    """Fetch all wheels that `requirements` need on `target` into `folder`, by pip.

    pip decides by its own machine which requirements of a package hold, so that a Mac leaves out
    the CUDA packages of torch for Linux: what is still missing is asked for by name.
    """
    wanted = list(requirements)
    while wanted:
        flags = [*target.pip_flags(), "--dest", str(folder)]
        _pip("download", *flags, *wanted, remedy="or give a folder of wheels with --wheels")
        before, wanted = wanted, missing(requirements, folder, target)
        if wanted == before:
            raise UserError(f"pip does not fetch {wanted[0]}: give a folder of wheels (--wheels)")


def missing(requirements: Sequence[str], folder: Path, target: Target) -> list[str]:
    """Which requirements, of packages in `folder` too, no wheel in `folder` meets on `target`."""
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
        if wheel is None or not _meets(wheel, requirement):
            lacking.add(str(requirement))
        else:
            waiting += _holding(_needs(wheel), environment, requirement.extras)
    return sorted(lacking)


def _holding(
    requirements: Sequence[Requirement],
    environment: Mapping[str, str],
    extras: Collection[str] = (),
) -> list[Requirement]:
    """Those whose marker holds in `environment` with at least one of `extras`, or with none."""
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)
        )
    ]


def _meets(wheel: Path, requirement: Requirement) -> bool:
    version = parse_wheel_filename(wheel.name)[1]
    return requirement.specifier.contains(version, prereleases=True)


def _needs(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        # At the top: setuptools carries the metadata of others within its own package.
        (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def build_own_wheel(root: Path, folder: Path) -> None:
    """Build this project's wheel into `folder`; the same sources give the same bytes.

    Built from a copy: what an earlier build left in the checkout would get into the wheel.
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
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words],
        env=os.environ | {"SOURCE_DATE_EPOCH": "315532800"},  # 1980, the first year of zip files
        capture_output=True,
        text=True,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        said = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip()[-200:]
        raise UserError(f"pip {words[0]}: {said}: mend it, {remedy}")
