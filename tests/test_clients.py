"""Clients of decision models that are not this project's, against `judge serve`.

`pip install -r requirements-clients.txt`; what is not installed is skipped.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

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
    reason = f"{package.partition('.')[0]} is not installed (docs/CLIENTS.md)"
    return pytest.importorskip(package, reason=reason)


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
    assert [*answer.scores["score"].probabilities.values()] == pytest.approx(
        [*expected.values()], abs=1e-5
    )
    assert answer.choices["choice"].probabilities == pytest.approx(expected, abs=1e-5)


def rubric(running: Running) -> str:
    """The words of the judge's own question: some clients send no empty instructions."""
    (model,) = running.client.models.list()
    words: str = model.model_extra["x_judge"]["instructions"]  # type: ignore[index]
    return words


def test_langchain_s_decisions(running: Running, expected: Any) -> None:
    decisions = installed("langchain_openai.decisions")
    words = rubric(running)
    score = decisions.Score(instructions=words, levels=VALUES)
    choice = decisions.Choice(instructions=words, choices=dict.fromkeys(VALUES))
    url = f"{running.url}/v1"
    model = decisions.OpenAIDecisions(model="jev-latest", base_url=url, api_key="none")
    answer = model.invoke({"input": ROW, "questions": {"score": score, "choice": choice}})
    assert answer.choices["choice"].probabilities == pytest.approx(expected, abs=1e-5)
    assert [*answer.scores["score"].probabilities.values()] == pytest.approx(
        [*expected.values()], abs=1e-5
    )


def test_langchain_s_typesafe_classifier(running: Running, expected: Any) -> None:
    typesafe = installed("langchain_typesafe")
    choice = typesafe.Choice(instructions=rubric(running), criteria=dict.fromkeys(VALUES))
    model = typesafe.TypeSafeClassifier(model="jev-latest", base_url=running.url, api_key="none")
    answer = model.invoke({"state": ROW, "questions": {"choice": choice}})
    assert answer.choices["choice"].probabilities == pytest.approx(expected, abs=1e-5)


def test_litellm(running: Running, expected: Any) -> None:
    litellm = installed("litellm")
    choices = [{"value": value} for value in VALUES]
    asked = {"type": "choice", "name": "q", "instructions": rubric(running), "choices": choices}
    answer = litellm.decisions(
        model="openai/jev-latest",
        input=json.dumps(ROW),
        questions=[asked],
        api_base=f"{running.url}/v1",
        api_key="none",
    )
    (chosen,) = answer.answers
    given = {each.value: each.probability for each in chosen.probabilities}
    assert given == pytest.approx(expected, abs=1e-5)


def test_mlflow_s_make_judge(
    running: Running, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = installed("mlflow.genai.judges")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judge = judges.make_judge(
        name="quality",
        instructions=f"{rubric(running)} {{{{ inputs }}}}",
        model="openai:/jev-latest",
        base_url=f"{running.url}/v1",
        model_api="decisions",
        feedback_value_type=Literal[tuple(VALUES)],  # type: ignore[valid-type]
    )
    feedback = judge(inputs=ROW)
    given = json.loads(feedback.metadata["openai.decisions.probabilities"])
    assert [each["probability"] for each in given] == pytest.approx([*expected.values()], abs=1e-5)


AI_SDK = """
import { experimental_decide as decide } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
const openai = createOpenAI({ baseURL: process.env.URL, apiKey: "none" });
const values = JSON.parse(process.env.VALUES);
const options = Object.fromEntries(values.map((value) => [value, null]));
const { answers } = await decide({
  model: openai.decisionModel("jev-latest"),
  state: JSON.parse(process.env.ROW),
  questions: {
    choice: { type: "choice", instructions: process.env.RUBRIC, criteria: options },
    score: { type: "score", criteria: values },
  },
});
console.log(JSON.stringify(answers));
"""


def node_folder(*packages: str) -> Path:
    """The folder with packages of npm."""
    folder = os.environ.get("JUDGE_NODE_CLIENTS", "")
    if not folder or not all(Path(folder, "node_modules", name).is_dir() for name in packages):
        words = " ".join(("npm install", *packages))
        pytest.skip(f"{words} in a folder, and name it in JUDGE_NODE_CLIENTS")
    return Path(folder).absolute()


def test_the_ai_sdk(running: Running, expected: Any, tmp_path: Path) -> None:
    folder = node_folder("ai", "@ai-sdk/openai")
    script = folder / f"{tmp_path.name}.mjs"
    script.write_text(AI_SDK)
    given = {"URL": f"{running.url}/v1", "ROW": json.dumps(ROW), "VALUES": json.dumps(VALUES)}
    env = os.environ | given | {"RUBRIC": rubric(running)}
    try:
        ran = subprocess.run(["node", script], env=env, capture_output=True, text=True, check=False)
    finally:
        script.unlink()
    assert ran.returncode == 0, ran.stderr
    for answer in json.loads(ran.stdout).values():
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)


def promptfoo(url: str) -> dict[str, Any]:
    """Its settings: an output is the candidate, which the judge grades."""
    questions = {"quality": {"type": "score", "criteria": VALUES}}
    graded = "{output: {pass: true, score: json.answers.quality.score / 10, reason: json.model}}"
    config = {
        "url": f"{url}/v1/systemone",
        "method": "POST",
        "headers": {"Content-Type": "application/json"},
        "body": {"state": "{{prompt}}", "questions": questions},
        "transformResponse": f"({graded})",
    }
    row = ", ".join(f'"{name}": {{{{ {name} | dump }}}}' for name in ("source", "reference"))
    row = f'{{{row}, "candidate": {{{{ output | dump }}}}}}'
    grader = {"provider": {"id": "http", "config": config}, "rubricPrompt": row}
    graded_by_the_judge = {"type": "llm-rubric", "value": "quality"}
    return {
        "prompts": ["{{ candidate }}"],
        "providers": ["echo"],
        "defaultTest": {"options": grader},
        "tests": [{"vars": ROW, "assert": [graded_by_the_judge]}],
    }


def test_promptfoo(running: Running, judge: Judge, tmp_path: Path) -> None:
    command = node_folder("promptfoo") / "node_modules" / ".bin" / "promptfoo"
    (tmp_path / "config.json").write_text(json.dumps(promptfoo(running.url)))
    off = dict.fromkeys(("PROMPTFOO_DISABLE_TELEMETRY", "PROMPTFOO_DISABLE_UPDATE"), "1")
    env = os.environ | off | {"PROMPTFOO_CONFIG_DIR": str(tmp_path)}
    words = [command, "eval", "-c", "config.json", "--no-cache", "-o", "out.json"]
    ran = subprocess.run(
        words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]["results"]
    (own,) = judge.score([ROW])
    assert own.expected is not None
    assert row["gradingResult"]["score"] == pytest.approx(own.expected / 10, abs=1e-5)
    (grade,) = row["gradingResult"]["componentResults"]
    assert grade["reason"] == judge.name
