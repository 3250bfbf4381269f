"""Where a run came from: command, versions, commit. No path of the machine is in it."""

import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pt_app

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "tokenizers")


def about_this_run() -> dict[str, Any]:
    """The command, the versions of Python and the packages, and the git commit if there is one."""
    versions = {"python": sys.version.split()[0], "pt_app": pt_app.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"command": command(), "versions": versions, "git_commit": git_commit()}


def command() -> str:
    """The command line, with absolute paths cut down to their last part."""
    words = [word if not word.startswith("/") else Path(word).name for word in sys.argv]
    return shlex.join(words)


def git_commit() -> str | None:
    """The commit of this checkout, with "+changes" where it was edited; None outside git."""
    root = Path(pt_app.__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
