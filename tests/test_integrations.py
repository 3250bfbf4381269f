"""A judge in process inside of inspect_ai, Weave and DeepEval; what is not installed is skipped."""

import asyncio
import builtins
import importlib
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.integrations.shared import SharedJudge, shared
from pt_app.judge import Judge, Judgement
from pt_app.models import adapters
from tests.question_rows import CARD, questions
from tests.test_judge import some_rows
from tests.tiny_models import make_adapter

ROWS = some_rows(16)
ANSWERED = [row["id"] for row in ROWS[::2]]
PACKAGES = {"inspect_ai": "judge_scorer", "weave": "JudgeScorer", "deepeval": "JudgeMetric"}


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("judge") / "judge", str(base))


@pytest.fixture(scope="module")
def judge(adapter: Path, base: Path) -> SharedJudge:
    """The judge that scorers of this folder share.

    Greedy answers of random weights have no verdict: of every other row it counts as one.
    """
    own = shared(adapter, str(base))
    score = own.judge.score

    def answering(rows: Any, **more: Any) -> list[Judgement]:
        return [
            replace(one, status="ok") if one.id in ANSWERED and one.status != "bad_row" else one
            for one in score(rows, **more)
        ]

    own.judge.score = answering  # type: ignore[method-assign]
    return own


@pytest.fixture(scope="module")
def expected(judge: SharedJudge) -> list[Judgement]:
    return judge.judge.score(ROWS)


def installed(package: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The integration of a package; without its telemetry."""
    monkeypatch.setenv("DEEPEVAL_TELEMETRY_OPT_OUT", "1")
    reason = f"{package} is not installed: requirements-clients.txt says which version"
    pytest.importorskip(package, reason=reason)
    return importlib.import_module(f"pt_app.integrations.{package}")


def mean_of_answered(judged: Sequence[Judgement]) -> float:
    verdicts = [float(one.verdict or 0) for one in judged if one.status == "ok"]
    return sum(verdicts) / len(verdicts)


def test_inspect_scores_every_sample_as_the_judge_does(
    adapter: Path,
    base: Path,
    expected: list[Judgement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scorer = installed("inspect_ai", monkeypatch).judge_scorer(str(adapter), str(base))
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import Generate, TaskState, solver

    @solver
    def answers() -> Any:
        async def solve(state: TaskState, _: Generate) -> TaskState:
            state.output = ModelOutput.from_content("none", state.metadata["answer"])
            return state

        return solve

    samples = [
        Sample(
            input=row["source"],
            target=row["reference"],
            id=row["id"],
            metadata={"answer": row["candidate"], "candidate": "not this one"},
        )
        for row in ROWS
    ]
    task = Task(dataset=samples, solver=answers(), scorer=scorer)
    (log,) = eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    scores = {sample.id: sample.scores["judge_scorer"] for sample in log.samples or []}
    for one in expected:
        value, given = scores[one.id].value, scores[one.id].metadata["probabilities"]
        assert value == one.verdict if one.status == "ok" else math.isnan(value)
        assert given == pytest.approx(one.probabilities, abs=1e-5)
    (result,) = log.results.scores
    assert (result.scored_samples, result.unscored_samples) == (8, 8)
    assert result.metrics["mean"].value == pytest.approx(mean_of_answered(expected))


def test_weave_scores_every_row_as_the_judge_does(
    adapter: Path, base: Path, expected: list[Judgement], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = installed("weave", monkeypatch)
    import weave

    outputs = {row["source"]: row["candidate"] for row in ROWS}

    @weave.op
    def model(source: str) -> str:
        return outputs[source]

    scorer = module.JudgeScorer(adapter=str(adapter), base=str(base))
    rows = [row | {"candidate": "not this one", "label": 3} for row in ROWS]
    summary = asyncio.run(weave.Evaluation(dataset=rows, scorers=[scorer]).evaluate(model))
    own = summary["JudgeScorer"]
    assert own["verdict"]["mean"] == pytest.approx(mean_of_answered(expected))
    for verdict in ("0", "10"):
        mean = sum(one.probabilities[verdict] for one in expected) / len(ROWS)
        assert own["probabilities"][verdict]["mean"] == pytest.approx(mean, abs=1e-5)


def test_deepeval_measures_every_test_case_as_the_judge_does(
    adapter: Path,
    base: Path,
    expected: list[Judgement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # it writes its settings into the working folder
    module = installed("deepeval", monkeypatch)
    from deepeval import evaluate
    from deepeval.evaluate import DisplayConfig
    from deepeval.test_case import LLMTestCase

    cases = [
        LLMTestCase(
            name=row["id"],
            input=row["source"],
            actual_output=row["candidate"],
            expected_output=row["reference"],
        )
        for row in ROWS
    ]
    metric = module.JudgeMetric(str(adapter), str(base), threshold=0.6)
    config = DisplayConfig(show_indicator=False, print_results=False)
    results = evaluate(cases, [metric], display_config=config).test_results
    given = {result.name: result.metrics_data[0] for result in results}
    for one in expected:
        found, answered = given[one.id], one.status == "ok"
        assert found.evaluation_model == one.judge
        assert (found.error is None) == answered
        assert found.score == (pytest.approx(float(one.verdict) / 10) if answered else None)
        assert found.success == (answered and float(one.verdict) >= 6)


def test_scorers_of_many_threads_share_one_model_and_are_scored_together(
    adapter: Path,
    base: Path,
    judge: SharedJudge,
    expected: list[Judgement],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    score = judge.judge.score

    def counted(rows: Any, **more: Any) -> Any:
        calls.append(len(rows))
        return score(rows, **more)

    monkeypatch.setattr(judge.judge, "score", counted)
    with ThreadPoolExecutor(len(ROWS)) as threads:
        judges = [*threads.map(lambda _: shared(str(adapter), str(base)), ROWS)]
        judged = [*threads.map(lambda row: judge.judged(row["candidate"], row, {}), ROWS)]
    assert {id(one) for one in judges} == {id(judge)}
    assert sum(calls) == len(ROWS) > len(calls)
    for given, one in zip(judged, expected, strict=True):
        assert given.probabilities == pytest.approx(one.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("candidate", "given", "problem"),
    [
        (None, {"source": "a"}, "sample, field candidate: the row has none"),
        ("b", {"id": "s7"}, "sample s7, field source: the row has none"),
        ({"text": "b"}, {"source": "a"}, "field candidate: input should be a valid string"),
        ("b", {"source": ["a"]}, "field source: input should be a valid string"),
        ("b", {"conversation": "a"}, "field conversation: input should be a valid list"),
    ],
)
def test_sample_without_what_the_judge_needs_is_named(
    candidate: object, given: dict[str, object], problem: str, judge: SharedJudge
) -> None:
    with pytest.raises(UserError, match=problem):
        judge.judged(candidate, given, {})


def test_a_conversation_of_the_sample_replaces_its_input(judge: SharedJudge) -> None:
    turns = [{"role": "user", "content": "Is the house old?"}]
    own = judge.judge.score([{"conversation": turns, "candidate": "b"}])[0]
    given = judge.judged("b", {"conversation": turns}, {"source": "a", "reference": None})
    assert given.probabilities == pytest.approx(own.probabilities, abs=1e-5)


def test_a_verdict_is_a_number_or_whether_it_passes_and_no_answer_is_none(
    judge: SharedJudge, base: Path, tmp_path: Path
) -> None:
    judged = Judgement("1", "ok", "judge", verdict=7)
    assert judge.value(judged) == 7
    failed = Judgement("1", "parse_failure", "judge", verdict=7)
    assert judge.value(failed) is None
    assert judge.value(Judgement("1", "too_long", "judge")) is None
    folder = make_adapter(tmp_path / "p", str(base), "pass_fail")
    passes = SharedJudge(lambda: Judge.load(folder, base=str(base)))
    assert passes.value(Judgement("1", "ok", "judge", verdict="PASS")) is True
    assert passes.value(Judgement("1", "ok", "judge", verdict="FAIL")) is False


def test_a_judge_that_is_not_shown_one_candidate_is_refused(
    judge: SharedJudge, base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "pairs", str(base), "pairwise")
    with pytest.raises(UserError, match="candidate_b, and an evaluator has one candidate"):
        shared(folder, str(base))
    for count, said in ((1, "is shown ticket, reply, and"), (4, "this takes one question")):
        asked: Any = {"asked": questions()[:count], "state": tuple(CARD["state"])}
        info = replace(judge.judge.info, template=Template.load("questions"), **asked)
        encoder = adapters.encoder_of(info, judge.judge.encoder.tokenizer)
        with pytest.raises(UserError, match=said):
            SharedJudge(partial(Judge, judge.judge.model, info, encoder))


@pytest.mark.parametrize("package", PACKAGES)
def test_package_that_is_not_installed_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return plain(name, *more)

    monkeypatch.delitem(sys.modules, f"pt_app.integrations.{package}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=f"{package} cannot be imported .*: pip install {package}"):
        importlib.import_module(f"pt_app.integrations.{package}")
