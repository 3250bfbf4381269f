"""Where a run came from: command, versions, commit. No path of the machine is in it."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pt_app

# A path within a text: behind a blank, "=", a quote or a bracket.
_WITHIN = re.compile(r"""(?<=[\s='"(])(?:/[\w.-]+)+/?""")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "tokenizers")


def about_this_run() -> dict[str, object]:
    """Return the command, the versions of Python and packages, and the git commit, if any."""
    versions = {"python": sys.version.split()[0], "pt_app": pt_app.__version__}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    command = shlex.join(without_absolute_paths(sys.argv))
    return {"command": command, "versions": versions, "git_commit": git_commit()}


def without_absolute_paths(value: Any) -> Any:
    """Copy a JSON value, in which only the last part of each absolute path is kept."""
    if isinstance(value, Mapping):
        return {key: without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_absolute_paths(item) for item in value]
    if not isinstance(value, str | Path):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            return kind(value).name
    return _WITHIN.sub(lambda match: PurePosixPath(match[0]).name, str(value))


def git_commit() -> str | None:
    """Return the commit of this checkout, with "+changes" if it was edited; None outside git."""
    folder = str(Path(pt_app.__file__).parents[1])
    git = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            [*git, "--dirty=+changes"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
