"""Files that people labelled, where this machine has them: `JUDGE_REAL_DATA` names their folder."""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("JUDGE_REAL_DATA") or Path(__file__).parents[1].parent / "shared" / "data"
)


def real(name: str) -> Path:
    """Give the file or folder of that name below the real data; skips the test without it."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no real data: {name} is not in the folder that JUDGE_REAL_DATA names")
    return path
