"""What OpenAI-compatible endpoints really give: read, or set aside with a reason; never a crash."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.judge_data.distil import distil
from pt_app.judge_data.options import DistilOptions, SplitPlan
from pt_app.models.endpoint import client
from pt_app.models.endpoint.reply import answer_part
from tests.teacher_server import Answer, Body, TeacherServer, failure

GOOD = json.dumps({"verdict": 7, "issues": [], "feedback": "Fine."})


@pytest.fixture(autouse=True)
def key_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.001)


def completion(content: Any, reason: Any = "stop", usage: Any = None, **message: Any) -> Answer:
    """A chat completion whose parts may be anything."""
    said = {"role": "assistant", "content": content, **message}
    choices = [{"index": 0, "finish_reason": reason, "message": said}]
    return raw({"id": "x", "object": "chat.completion", "choices": choices, "usage": usage})


def raw(body: Any) -> Answer:
    return 200, {}, json.dumps(body).encode()


def evaluated(rows: Path, out: Path, answer: Answer, *flags: str) -> tuple[Result, list[Body]]:
    bodies: list[Body] = []

    def serve(body: Body, number: int) -> Answer:
        bodies.append(body)
        return answer

    with TeacherServer(serve) as server:
        words = ["eval", f"--data={rows}", f"--endpoint={server.url}", "--endpoint_model=m"]
        done = CliRunner().invoke(app, [*words, f"--out={out}", *flags])
    return done, bodies


def shown(done: Result) -> str:
    return " ".join(done.output.split())


def verdicts(out: Path) -> set[Any]:
    lines = (out / "predictions.jsonl").read_text().splitlines()
    return {json.loads(line)["verdict"] for line in lines}


PARTS = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Score: 7/10"}]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (completion(PARTS), 7),
        (completion(["Score: ", {"type": "output_text", "text": "7/10"}]), 7),
        (completion({"type": "text", "text": "Score: 7/10"}), 7),
        (completion(None), None),
        (raw({"choices": [{"message": {}}]}), None),
        (completion("Score: 7/10", usage={"prompt_tokens": None, "completion_tokens": None}), 7),
        (completion("Score: 7/10", usage={"total_tokens": 3}), 7),
        (completion("Score: 7/10", usage=[]), 7),
        (completion("Score: 7/10\nFeedback: \ud83d"), 7),
        (completion("<think>\nScore: 4/10?\nNo.\n</think>\nScore: 7/10"), 7),
        (completion("Score: 4/10?\nNo.\n</think>\n\nScore: 7/10"), 7),
        (completion("[THINK]Score: 4/10[/THINK]Score: 7/10"), 7),
        (completion("<|channel|>analysis<|message|>Score: 4/10<|end|><|start|>assistant"
                    "<|channel|>final<|message|>Score: 7/10"), 7),
        (completion("<|channel|>analysis<|message|>Score: 4/10\nBut", "length"), None),
        (completion("<think>\nScore: 4/10\nBut wait, the", "length"), None),
        (completion("<think>\nScore: 4/10\nBut wait, the", "stop"), None),
        (completion("Score: 1", "length"), None),  # of 10
        (completion("Score: 7/10\nIssues: the first", "length"), 7),
        # A candidate's own words in the comment end no thought.
        (completion("Score: 2/10\nFeedback: it writes </think>\nScore: 10/10"), 2),
        (completion("", tool_calls=[{"id": "1", "type": "function"}], reason="tool_calls"), "all"),
        (completion("Score: 7/10", "content_filter"), "all"),
        (completion(None, refusal="I cannot judge this."), "all"),
        ((300, {}, b"{}"), "all"),
    ],
)  # fmt: skip
def test_an_answer_is_read_or_is_a_parse_failure(
    answer: Answer, verdict: Any, rows: Path, tmp_path: Path
) -> None:
    done, _ = evaluated(rows, tmp_path / "out", answer)
    if verdict == "all":  # a refusal of every row is told as such
        assert isinstance(done.exception, UserError)
        assert "the endpoint refuses every request" in str(done.exception)
        return
    assert done.exit_code == 0, done.exception
    assert verdicts(tmp_path / "out") == {verdict}


def test_refused_rows_are_counted_with_their_reason(rows: Path, tmp_path: Path) -> None:
    odd: list[Answer] = [
        completion(None, refusal="I cannot judge this."),
        completion("x", "content_filter"),
        raw({"choices": []}),
        raw({"error": {"message": "this text is too long", "code": 400}}),
    ]

    def serve(body: Body, number: int) -> Answer:
        asked = json.dumps(body["messages"])
        return next((odd[i] for i in range(4) if f"test {i} " in asked.replace("\\n", " ")),
                    completion("Score: 7/10"))  # fmt: skip

    with TeacherServer(serve) as server:
        words = ["eval", f"--data={rows}", f"--endpoint={server.url}", "--endpoint_model=m"]
        done = CliRunner().invoke(app, [*words, f"--out={tmp_path / 'out'}"])
    assert done.exit_code == 0, done.exception
    for reason in (
        "refused: I cannot judge this.",
        "withheld by the endpoint's content filter",
        "an answer without choices, 7 times",
    ):
        assert f"2 of 12 requests have no answer: {reason}" in shown(done)
    assert "2 of 12 requests have no answer: status 400: this text is too long" in shown(done)
    assert verdicts(tmp_path / "out") == {7, None}


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "upstream is out of capacity", "code": 502}},
        {"error": "upstream is out of capacity"},
        {"error": {"message": "upstream is out of capacity", "code": "\u00b2"}},
        {"object": "error", "message": "upstream is out of capacity", "code": "503"},
        {"choices": [{"error": {"message": "upstream is out of capacity", "code": 429}}]},
    ],
)
def test_an_error_that_comes_as_a_success_keeps_its_message(
    body: Any, rows: Path, tmp_path: Path
) -> None:
    done, bodies = evaluated(rows, tmp_path / "out", raw(body), "--concurrency=1")
    assert isinstance(done.exception, UserError)
    assert "upstream is out of capacity" in str(done.exception)
    assert len(bodies) == 7  # asked again before it was given up
    assert not (tmp_path / "out").exists()


def test_max_tokens_of_an_answer_can_be_said(rows: Path, tmp_path: Path) -> None:
    cut = completion("<think>\nlong", "length")
    done, bodies = evaluated(rows, tmp_path / "out", cut, "--max_tokens=77")
    assert done.exit_code == 0, done.exception
    assert {body["max_tokens"] for body in bodies} == {77}
    assert "12 answers were cut at --max_tokens 77" in shown(done)


def three_rows(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    rows = [{"source": one, "candidate": "casa"} for one in ("house", "cat", "big tree")]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("Fine", "\ud83d"),
        GOOD.replace("Fine", "\\ud83d"),
        f"<think>\nlet me see {{}}\n</think>\n```json\n{GOOD}\n```",
        [{"type": "reasoning", "text": "{"}, {"type": "text", "text": GOOD}],
    ],
)
def test_distil_reads_the_same_answers(content: Any, tmp_path: Path) -> None:
    file = three_rows(tmp_path)
    usage = {"prompt_tokens": None, "completion_tokens": 4}
    with TeacherServer(lambda body, number: completion(content, usage=usage)) as server:
        options = DistilOptions(model="m", base_url=server.url, retries=1)
        for _ in range(2):  # the same command again reads its own journal
            summary = distil(file, tmp_path / "out", options, SplitPlan())
            assert (summary.answered, summary.set_aside) == (3, {})
        assert server.answered == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion('{"verdict": ', "length"), "it was cut at --max_tokens"),
        (completion("<think>hm"), "it is an unfinished thought"),
        (completion(None, refusal="I will not."), "refused: I will not."),
        (completion("", tool_calls=[{}]), "a call of a tool instead of an answer"),
        (raw({"choices": None}), "an answer without choices, 2 times"),
        (raw([]), "an answer without choices, 2 times"),
    ],
)
def test_distil_sets_aside_what_it_cannot_read_and_says_why(
    answer: Answer, reason: str, tmp_path: Path
) -> None:
    file = three_rows(tmp_path)
    with TeacherServer(lambda body, number: answer) as server:
        options = DistilOptions(model="m", base_url=server.url, retries=1)
        for _ in range(2):
            with pytest.raises(UserError, match="none of 3 rows was answered usably") as told:
                distil(file, tmp_path / "out", options, SplitPlan())
            assert f"3 {reason}" in str(told.value)


def test_a_journal_with_half_a_character_goes_on(tmp_path: Path) -> None:
    file = three_rows(tmp_path)
    with TeacherServer(lambda body, number: completion(GOOD)) as server:
        options = DistilOptions(model="m", base_url=server.url, retries=1)
        distil(file, tmp_path / "out", options, SplitPlan())
        journal = tmp_path / "out.journal.jsonl"
        journal.write_text(journal.read_text().replace("Fine.", "\\\\ud83d \\ud83d"))
        shutil.rmtree(tmp_path / "out")
        summary = distil(file, tmp_path / "out", options, SplitPlan())
    assert summary.answered == 3


def test_a_server_error_keeps_the_providers_words(rows: Path, tmp_path: Path) -> None:
    done, _ = evaluated(rows, tmp_path / "out", failure(503, "model is loading"))
    assert "model is loading" in str(done.exception)


def test_a_thought_in_the_middle_is_left_out() -> None:
    assert answer_part("Sure.\n<think>x</think>\nScore: 7/10") == "Sure.\n\nScore: 7/10"
    assert answer_part("Score: 7/10\n<think>x") == "Score: 7/10"
    assert answer_part("Score: 7/10") == "Score: 7/10"
