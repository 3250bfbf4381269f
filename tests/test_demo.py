"""The demo as a newcomer runs it: from nothing to a judge that agrees with its labels."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, run_offline
from tests.test_report_browser import CHROMIUM, SCHEMES, WIDTHS, look_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds, with a user's own data and adapter in it."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "pt_app", "configs"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for mine in ("datasets/mine/judge_train.json", "adapters_eval/mine_final/README.md"):
        (folder / mine).parent.mkdir(parents=True)
        (folder / mine).write_text("mine")
    return folder


def run_demo(clone: Path, seed: int) -> tuple[str, Path]:
    """Output of `judge demo` without network and keys, and the report that it names."""
    done = run_offline(["-m", "pt_app.cli", "demo", "--seed", str(seed)], cwd=clone, timeout=2400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, clone / done.stdout.strip().splitlines()[-1].removeprefix("report: ")


@cache
def first_demo(clone: Path, seed: int) -> tuple[str, Path]:
    """The run from nothing, which several tests look at."""
    return run_demo(clone, seed)


def named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (entry,) = [entry for entry in entries if entry["name"] == name]
    return entry


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
)
def test_demo_judge_agrees_with_unseen_labels_far_better_than_its_base(
    clone: Path, seed: int
) -> None:
    output, report = first_demo(clone, seed)
    assert "no Apple GPU here: training on the CPU" in output or sys.platform == "darwin"
    results = json.loads((report.parent / "results.json").read_text())
    adapter, base = (named(results["models"], name) for name in ("adapter", "base"))
    print(seed, {key: adapter["metrics"][key] for key in ("kappa_quadratic", "mae")})
    assert results["data"]["groups"] >= 300
    assert adapter["metrics"]["kappa_quadratic"]["n"] >= 300
    assert adapter["metrics"]["kappa_quadratic"]["value"] >= 0.80
    assert adapter["metrics"]["mae"]["value"] <= 1.0
    assert adapter["parse_failures"] / adapter["n"] < 0.02
    kappas = [judge["metrics"]["kappa_quadratic"]["value"] for judge in (adapter, base)]
    assert kappas[0] - kappas[1] >= 0.25
    assert "adapter" in report.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_the_demos_report_is_readable_on_phone_and_desk_light_and_dark(
    clone: Path, tmp_path: Path
) -> None:
    _, report = first_demo(clone, 0)
    for width in WIDTHS:
        for scheme in SCHEMES:
            look_over(report, width, scheme, tmp_path / f"{width}-{scheme}.png")
    assert report.stat().st_size < 3_000_000


def test_the_demos_judge_is_attacked_and_control_tokens_stay_text(
    clone: Path, tmp_path: Path
) -> None:
    _, report = first_demo(clone, 0)
    adapter = report.parents[1]
    words = ["attack", "--adapter", str(adapter), "--data", str(clone / "datasets/demo")]
    done = run_offline(["-m", "pt_app.cli", *words, "--rows", "20", "--out", str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "attacks.json").read_text())
    control = found["control_tokens"]
    assert control["twins"] == control["attacks"] >= 20 * 8
    assert (control["control_ids"], control["other_ids"]) == (0, 0)
    assert control["largest_difference"] * 10 < 1e-6  # times the scale: of the expected score
    assert len(found["families"]) >= 17
    assert all(one["shift"]["low"] is not None for one in found["families"].values())


def test_second_demo_uses_what_is_there_and_touches_nothing_of_the_users(clone: Path) -> None:
    first_demo(clone, 0)
    before = {p: p.stat().st_mtime_ns for p in clone.rglob("*") if p.is_file()}
    output, report = run_demo(clone, 0)
    assert "trained and evaluated before" in output
    assert report.exists()
    after = {p: p.stat().st_mtime_ns for p in clone.rglob("*") if p.is_file()}
    ours = {p: t for p, t in before.items() if "__pycache__" not in p.parts}
    assert ours == {p: t for p, t in after.items() if "__pycache__" not in p.parts}
    assert (clone / "datasets/mine/judge_train.json").read_text() == "mine"
    assert (clone / "adapters_eval/mine_final/README.md").read_text() == "mine"
