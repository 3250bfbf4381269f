"""`judge_agreement/`: other people's code gets this project's numbers through `evaluate.load`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pt_app.core.verdicts import Scale, Verdict
from pt_app.evidence.intervals import Resampler
from pt_app.evidence.summary import summarise
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Any:
    evaluate = pytest.importorskip("evaluate")
    cache = tmp_path_factory.mktemp("evaluate")
    return evaluate.load(str(ROOT / "judge_agreement"), cache_dir=str(cache))


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in found.items() if name != "parse_failures"}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, one in expected.items():
        for part in ("value", "low", "high", "n"):
            assert found[name][part] == pytest.approx(one[part], abs=1e-9), (name, part)


@pytest.mark.parametrize("groups", [12, 60])
def test_scores_have_the_numbers_of_the_evidence(metric: Any, groups: int) -> None:
    rng = np.random.default_rng(0)
    labels: list[Verdict] = rng.integers(0, 11, groups * 3).tolist()
    verdicts: list[Verdict] = [min(10, max(0, int(v) + int(rng.integers(-2, 3)))) for v in labels]
    index = np.repeat(np.arange(groups), 3).tolist()
    found = metric.compute(
        predictions=[float(v) for v in verdicts],
        references=[float(v) for v in labels],
        groups=index,
        resamples=300,
    )
    sample = Resampler(index, 300)
    ours = summarise(labels, verdicts, sample, Scale.from_name("0-10")).metrics
    expected = {n: one.as_json() for n, one in ours.items() if not n.endswith("_strict")}
    if groups < 20:
        expected = {name: one | {"low": None, "high": None} for name, one in expected.items()}
    same(numbers(found), expected)


def test_names_have_the_numbers_of_the_evidence(metric: Any) -> None:
    rng = np.random.default_rng(1)
    labels: list[Verdict] = rng.choice(["PASS", "FAIL"], 90).tolist()
    verdicts: list[Any] = [v if rng.random() < 0.8 else "PASS" for v in labels]
    verdicts[3] = verdicts[40] = ""
    found = metric.compute(predictions=verdicts, references=labels, resamples=300)
    assert found["parse_failures"] == 2
    sample = Resampler(range(90), 300)
    own = [verdict or None for verdict in verdicts]
    ours = summarise(labels, own, sample, Scale.from_name("pass_fail")).metrics
    names = ("accuracy", "f1_macro", "kappa", "alpha", "mcc")
    same(numbers(found), {name: ours[name].as_json() for name in names})


@pytest.mark.slow
def test_the_folder_needs_nothing_of_this_project(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pt_app'] = None\n"
        "import evaluate\n"
        f"m = evaluate.load({str(ROOT / 'judge_agreement')!r}, cache_dir={str(tmp_path)!r})\n"
        "print(m.compute(predictions=[1.0, 2.0], references=[1.0, 2.0])['exact']['value'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip().splitlines()[-1] == "1.0", done.stderr
