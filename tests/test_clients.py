"""Clients of decision models that are not this project's, against `judge serve`.

`pip install -r requirements-clients.txt`; what is not installed is skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")

from pt_app.judge import Judge
from tests.serving import Running
from tests.test_serve import ROW, VALUES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> Judge:
    return Judge.load(adapter, base=str(base))


@pytest.fixture(scope="module")
def running(judge: Judge) -> Iterator[Running]:
    with Running(judge) as server:
        yield server


@pytest.fixture(scope="module")
def expected(judge: Judge) -> Any:
    return judge.score([ROW])[0].probabilities


def installed(package: str) -> Any:
    return pytest.importorskip(package, reason="pip install -r requirements-clients.txt")


@pytest.mark.parametrize("key", [None, "secret"])
def test_the_conformance_test_of_system_one_passes(key: str | None, judge: Judge) -> None:
    runner = installed("jevcompat.runner")
    with Running(judge, key=key) as running:
        report = runner.run(running.url, key=key)
    failed = [(each.id, each.findings) for each in report.results if each.status == "fail"]
    assert not failed
    assert report.verdict == "conformant"
    assert report.count("MUST", "pass") == 32
    assert report.count("SHOULD", "pass") >= 12


def test_typesafe_s_client(running: Running, expected: Any) -> None:
    sdk = installed("typesafe_sdk")
    score = sdk.Score(instructions="", criteria=VALUES)
    choice = sdk.Choice(instructions="", criteria=dict.fromkeys(reversed(VALUES)))
    with sdk.TypeSafeClient(api_key="none", base_url=running.url) as client:
        answer = client.system_one(state=ROW, questions={"score": score, "choice": choice})
        with pytest.raises(sdk.TypeSafeUnprocessableEntityError):
            client.system_one(state={"source": "a"}, questions={"score": score})
    assert answer.scores["score"].probabilities == pytest.approx(expected, abs=1e-5)
    assert answer.choices["choice"].probabilities == pytest.approx(expected, abs=1e-5)


def test_langchain(running: Running, expected: Any) -> None:
    openai = installed("langchain_openai")
    if not hasattr(openai, "OpenAIDecisions"):
        pytest.skip("this langchain-openai has no OpenAIDecisions: 1.7.4 has")
    model = openai.OpenAIDecisions(model="jev-latest", base_url=f"{running.url}/v1", api_key="none")
    assert model is not None


def test_litellm(running: Running, expected: Any) -> None:
    installed("litellm")
